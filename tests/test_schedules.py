"""The meaning of a timestep: identities, and agreement with diffusers' schedulers."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from dreambooth.schedules import Schedule

CONFIGS = [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True},
    {"beta_schedule": "linear"},
]


@pytest.fixture(params=CONFIGS, ids=("sd", "zero-snr", "linear"))
def ddpm(request: pytest.FixtureRequest) -> DDPMScheduler:
    return DDPMScheduler(**request.param)


def drawn(t_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(len(t_B), 4, 5, 6), torch.randn(len(t_B), 4, 5, 6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_target_and_coefficients_give_back_x0(ddpm: DDPMScheduler, prediction: str) -> None:
    schedule = Schedule.from_alphas_cumprod(ddpm.alphas_cumprod, prediction)
    t_B = torch.tensor([0, 1, 250, 500, 900, 999 if prediction == "v_prediction" else 950])
    x0, noise = drawn(t_B)
    noisy = schedule.add_noise(x0, noise, t_B)
    found = schedule.x0_from(schedule.target(x0, noise, t_B), noisy, t_B)
    torch.testing.assert_close(found, x0, atol=1e-3, rtol=1e-3)


def test_noisy_latents_and_velocity_are_those_of_diffusers(ddpm: DDPMScheduler) -> None:
    schedule = Schedule.from_alphas_cumprod(ddpm.alphas_cumprod, "v_prediction")
    t_B = torch.tensor([0, 17, 400, 999])
    x0, noise = drawn(t_B)
    torch.testing.assert_close(schedule.add_noise(x0, noise, t_B), ddpm.add_noise(x0, noise, t_B))
    torch.testing.assert_close(schedule.target(x0, noise, t_B), ddpm.get_velocity(x0, noise, t_B))


def test_the_tables_keep_the_total_variance_at_one(ddpm: DDPMScheduler) -> None:
    schedule = Schedule.from_alphas_cumprod(ddpm.alphas_cumprod, "epsilon")
    torch.testing.assert_close(schedule.alpha_T**2 + schedule.sigma_T**2, torch.ones(schedule.num_timesteps))


def test_flow_goes_straight_from_picture_to_noise_as_diffusers_has_it() -> None:
    schedule, theirs = Schedule.flow(1000), FlowMatchEulerDiscreteScheduler(1000)
    t_B = torch.tensor([0, 250, 700, 999])
    x0, noise = drawn(t_B)
    noisy = schedule.add_noise(x0, noise, t_B)
    torch.testing.assert_close(schedule.sigma_T.flip(0), theirs.sigmas[:1000])
    torch.testing.assert_close(noisy, x0 + schedule.coefficients(t_B)[1] * schedule.target(x0, noise, t_B))
    torch.testing.assert_close(schedule.x0_from(noise - x0, noisy, t_B), x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(schedule.add_noise(x0, noise, torch.tensor([999] * 4)), noise)


def test_half_precision_latents_do_not_lose_the_first_timesteps() -> None:
    schedule = Schedule.from_alphas_cumprod(DDPMScheduler(**CONFIGS[0]).alphas_cumprod, "epsilon")
    t_B = torch.tensor([0])
    noisy = schedule.add_noise(torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16), torch.ones(1, 4, 2, 2), t_B)
    assert float(noisy.min()) > 0.02, "sigma at t = 0 was rounded away"


def test_an_unknown_kind_of_prediction_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'sample' is not known; one of epsilon, v_prediction"):
        Schedule(torch.ones(2), torch.ones(2), "sample")


def test_a_network_is_given_what_the_sampler_of_its_kind_gives_it() -> None:
    flow, sampler = Schedule.flow(), FlowMatchEulerDiscreteScheduler()
    torch.testing.assert_close(flow.network_time(torch.arange(1000)), sampler.timesteps.flip(0), atol=1e-3, rtol=1e-5)
    t = torch.tensor([3, 999])
    assert Schedule(flow.alpha_T, flow.sigma_T, "epsilon").network_time(t) is t
