"""Training timesteps: what is drawn has the density of the closed form, and a shift is the sampler's."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from dreambooth import build
from dreambooth.config import Config, load_config
from dreambooth.data.latents import Batch, Sample, Source
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.randomness import Randomness
from dreambooth.timesteps import ShiftBySize, TimestepDensity, shift_at, shifted
from dreambooth.training.objective import LossSettings, draw

NUM_TIMESTEPS, NUM_DRAWS = 1000, 3000
SIZE = (64, 64)


def drawn(density: TimestepDensity) -> np.ndarray:
    """Draw many timesteps, each at an address of its own, as training does."""
    randomness = Randomness(0)
    return np.array(
        [density.draw(randomness.generator("subject/timestep", i), NUM_TIMESTEPS, SIZE) for i in range(NUM_DRAWS)]
    )


def uniform_below(shift: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return how much of a shifted uniform density lies below a fraction: the inverse of the shift."""
    return lambda fraction: fraction / (shift - (shift - 1) * fraction)


def logit_normal_below(mean: float, std: float, shift: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the same of a logit-normal density, whose logit a shift moves by its logarithm."""
    below = np.vectorize(NormalDist(mean + math.log(shift), std).cdf)
    return lambda fraction: below(np.log(fraction / (1 - fraction)))


@pytest.mark.parametrize(
    ("density", "below"),
    [
        (TimestepDensity(), uniform_below(1)),
        (TimestepDensity(shift=3.0), uniform_below(3)),
        (TimestepDensity(shift=ShiftBySize()), uniform_below(math.exp(0.63))),
        (TimestepDensity("logit_normal"), logit_normal_below(0, 1, 1)),
        (TimestepDensity("logit_normal", -0.5, 1.5), logit_normal_below(-0.5, 1.5, 1)),
        (TimestepDensity("logit_normal", 0.3, 0.8, 2.2), logit_normal_below(0.3, 0.8, 2.2)),
        (TimestepDensity("sigmoid", std=0.7, shift=2.0), logit_normal_below(0, 0.7, 2)),
    ],
    ids=["uniform", "shifted", "shifted by size", "logit-normal", "its mean and width", "and shift", "sigmoid"],
)
def test_the_drawn_density_is_that_of_the_closed_form(
    density: TimestepDensity, below: Callable[[np.ndarray], np.ndarray]
) -> None:
    """The largest distance of the two distribution functions (Kolmogorov): 1.95 / sqrt(n) is exceeded once in 1000."""
    timesteps = drawn(density)
    assert timesteps.min() >= 0
    assert timesteps.max() < NUM_TIMESTEPS
    edges = np.arange(1, NUM_TIMESTEPS)
    found = np.searchsorted(np.sort(timesteps), edges) / NUM_DRAWS
    assert np.abs(found - below(edges / NUM_TIMESTEPS)).max() < 1.95 / math.sqrt(NUM_DRAWS)


def test_uniform_timesteps_are_those_that_runs_of_earlier_versions_have_drawn() -> None:
    generators = [Randomness(7).generator("subject/timestep", index) for index in range(200)]
    expected = [int(generator.integers(NUM_TIMESTEPS)) for generator in generators]
    generators = [Randomness(7).generator("subject/timestep", index) for index in range(200)]
    assert [TimestepDensity().draw(generator, NUM_TIMESTEPS, SIZE) for generator in generators] == expected


@pytest.mark.parametrize("shift", [1.0, 2.2, 3.0, 6.0])
def test_a_static_shift_is_the_samplers(shift: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(NUM_TIMESTEPS, shift=shift).sigmas[:NUM_TIMESTEPS]
    ours = torch.tensor([shifted(k / NUM_TIMESTEPS, shift) for k in range(NUM_TIMESTEPS, 0, -1)])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (128, 128), (160, 96)])
def test_a_shift_by_size_is_the_samplers(size: tuple[int, int]) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(NUM_TIMESTEPS, use_dynamic_shifting=True)
    even = [1 - step / 20 for step in range(20)]
    scheduler.set_timesteps(sigmas=even, mu=calculate_shift(size[0] // 2 * size[1] // 2))
    ours = [shifted(sigma, shift_at(ShiftBySize(), size)) for sigma in even]
    torch.testing.assert_close(torch.tensor(ours), scheduler.sigmas[:-1])


def test_an_unknown_density_is_refused() -> None:
    with pytest.raises(ValueError, match="'cubic' is not known; one of uniform, logit_normal, sigmoid"):
        TimestepDensity("cubic")


def applied(family: Family, config: Config) -> TimestepDensity:
    build.apply_schedule(family, config)
    return family.schedule.density


def test_settings_choose_the_density(family: Family, config: Config) -> None:
    assert applied(family, config) == TimestepDensity()
    config.loss.timesteps, config.loss.timestep_std = "logit_normal", 1.5
    assert applied(family, config) == TimestepDensity("logit_normal", 0.0, 1.5, 1.0)
    config.loss.timesteps, config.loss.timestep_std, config.loss.timestep_shift = "shifted", None, 3.0
    assert applied(family, config) == TimestepDensity(shift=3.0)


def test_a_shift_that_the_base_does_not_have_is_refused(family: Family, config: Config) -> None:
    config.loss.timesteps = "shifted"
    with pytest.raises(UserError, match=r"loss\.timesteps=shifted: this base's sampler shifts no timesteps"):
        build.apply_schedule(family, config)


@pytest.mark.parametrize(
    "settings",
    [["loss.timestep_shift=3"], ["loss.timesteps=sigmoid", "loss.timestep_mean=1"], ["loss.timestep_std=2"]],
    ids=str,
)
def test_a_setting_that_would_not_be_read_is_refused(settings: list[str], config_file) -> None:
    name = settings[-1].partition("=")[0]
    with pytest.raises(UserError, match=rf"{name}: \d, but loss.timesteps is \w+, which does not read it"):
        load_config(config_file, settings)


def test_class_images_can_be_trained_on_at_the_timesteps_of_the_base(family: Family, config: Config) -> None:
    """With loss.timesteps far on the side of images; the base, Stable Diffusion's kind, is trained on all alike."""
    config.loss.timesteps, config.loss.timestep_mean = "logit_normal", -3.0
    config.prior.timesteps = "base"
    build.apply_schedule(family, config)
    sources: tuple[Source, ...] = ("subject", "prior")
    samples = [Sample(source, number, torch.zeros(4, 8, 8), "") for source in sources for number in range(200)]
    batch = Batch.stack(samples, 8)
    t_B = draw(batch, family.schedule, Randomness(0), LossSettings()).t_B.float() / NUM_TIMESTEPS
    of_subject, of_class = t_B[~batch.is_prior_B].mean(), t_B[batch.is_prior_B].mean()
    assert of_subject < 0.1
    assert 0.4 < of_class < 0.6
