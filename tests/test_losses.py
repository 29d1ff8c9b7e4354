"""The loss: parts add up, the mask alone decides what counts as prior, and weightings keep what they promise."""

import pytest
import torch
from torch import Tensor

from dreambooth.losses import (
    ERROR_OVER_X0,
    X0_WEIGHTS,
    mean_over_image,
    prior_preservation,
    pseudo_huber,
    sample_weights,
    squared_error,
    timestep_weight,
)
from dreambooth.schedules import Schedule


def test_the_total_is_the_subjects_mean_plus_weight_times_the_priors_mean() -> None:
    loss_B = torch.tensor([1.0, 2.0, 10.0, 30.0, 50.0])
    is_prior_B = torch.tensor([False, False, True, True, True])
    parts = prior_preservation(loss_B, is_prior_B, weight=0.5)
    assert (float(parts.instance), float(parts.total)) == (1.5, 1.5 + 0.5 * 30)
    assert parts.prior is not None
    assert float(parts.prior) == 30


def test_a_samples_share_is_what_the_total_grows_by_with_its_loss() -> None:
    loss, is_prior = torch.rand(5, requires_grad=True), torch.tensor([False, True, True, False, True])
    prior_preservation(loss, is_prior, weight=0.5).total.backward()
    torch.testing.assert_close(sample_weights(is_prior, 0.5), loss.grad)
    torch.testing.assert_close(sample_weights(~(is_prior | ~is_prior), 0.5), torch.full((5,), 0.2))


def test_the_order_of_samples_does_not_matter() -> None:
    loss_B, is_prior_B = torch.rand(8), torch.tensor([True, False] * 4)
    order = torch.randperm(8)
    whole = prior_preservation(loss_B, is_prior_B, 1.0).total
    torch.testing.assert_close(whole, prior_preservation(loss_B[order], is_prior_B[order], 1.0).total)


def test_without_prior_samples_there_is_no_prior_loss() -> None:
    parts = prior_preservation(torch.tensor([1.0, 3.0]), torch.tensor([False, False]), weight=5.0)
    assert parts.prior is None
    assert float(parts.total) == float(parts.instance) == 2.0


def test_a_loss_is_one_float32_number_a_sample_whatever_the_precision() -> None:
    prediction, target = torch.randn(3, 4, 5, 6, dtype=torch.bfloat16), torch.randn(3, 4, 5, 6)
    loss_B = mean_over_image(squared_error(prediction, target))
    assert (loss_B.dtype, tuple(loss_B.shape)) == (torch.float32, (3,))
    torch.testing.assert_close(loss_B[1], ((prediction[1].float() - target[1]) ** 2).mean())


# -------------------------------------------------------------------------------- masks


def test_what_the_mask_leaves_out_has_no_say_and_no_gradient() -> None:
    mask = (torch.rand(3, 1, 5, 6) > 0.5).float()
    prediction, target = torch.randn(3, 4, 5, 6, requires_grad=True), torch.randn(3, 4, 5, 6)
    loss_B = mean_over_image(squared_error(prediction, target), mask)
    other = target + 100 * (1 - mask)
    assert torch.equal(mean_over_image(squared_error(prediction, other), mask), loss_B)
    loss_B.sum().backward()
    assert prediction.grad is not None
    assert not (prediction.grad * (1 - mask)).any()


def test_a_mask_of_ones_is_no_mask_and_a_small_subject_counts_as_much_as_a_large_one() -> None:
    error = torch.rand(3, 4, 5, 6)
    torch.testing.assert_close(mean_over_image(error, torch.ones(3, 1, 5, 6)), mean_over_image(error))
    same = torch.full((1, 4, 5, 6), 0.7)
    small = torch.zeros(1, 1, 5, 6)
    small[..., 2, 2] = 1
    torch.testing.assert_close(mean_over_image(same, small), mean_over_image(same))


# -------------------------------------------------------------------------------- Huber


def test_huber_is_the_square_below_c_and_a_line_above() -> None:
    prediction, target = torch.tensor([0.01, -0.02, 50.0, -80.0]), torch.zeros(4)
    small, large = pseudo_huber(prediction, target, 1.0)[:2], pseudo_huber(prediction, target, 0.1)[2:]
    torch.testing.assert_close(small, prediction[:2] ** 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(large, 2 * 0.1 * prediction[2:].abs(), rtol=1e-2, atol=0)
    torch.testing.assert_close(
        pseudo_huber(prediction, target, 1e4), squared_error(prediction, target), rtol=1e-3, atol=0
    )


# -------------------------------------------------------------------------------- weightings


def ladder() -> Tensor:
    """Signal-to-noise ratios from Stable Diffusion's noisiest timestep to its cleanest."""
    return torch.logspace(-2.4, 3, 25)


@pytest.mark.parametrize("weighting", X0_WEIGHTS)
def test_every_prediction_has_the_same_x0_loss(weighting: str) -> None:
    """Two derivations: the weighted error of a prediction, and the weighted error of the x0 that it implies."""
    generator = torch.Generator().manual_seed(0)
    snr_B = ladder()
    x0, noise, off = (torch.randn(len(snr_B), 4, 5, 6, generator=generator) for _ in range(3))
    for prediction in ("epsilon", "v_prediction"):
        alpha_T = (snr_B / (snr_B + 1)).sqrt()
        schedule = Schedule(alpha_T, (1 - alpha_T**2).sqrt(), prediction)
        check_one_x0_loss(schedule, snr_B, weighting, x0, noise, off)
    sigma_T = 1 / (1 + snr_B.sqrt())
    check_one_x0_loss(Schedule(1 - sigma_T, sigma_T, "flow"), snr_B, weighting, x0, noise, off)


def check_one_x0_loss(
    schedule: Schedule, snr_B: Tensor, weighting: str, x0: Tensor, noise: Tensor, off: Tensor
) -> None:
    t_B = torch.arange(len(snr_B))
    torch.testing.assert_close(schedule.snr(t_B), snr_B, rtol=1e-3, atol=0)
    noisy, target = schedule.add_noise(x0, noise, t_B), schedule.target(x0, noise, t_B)
    prediction = target + off
    by_prediction = mean_over_image(squared_error(prediction, target)) * timestep_weight(
        snr_B, weighting, schedule.prediction
    )
    implied = schedule.x0_from(prediction, noisy, t_B)
    by_x0 = mean_over_image(squared_error(implied, x0)) * X0_WEIGHTS[weighting](snr_B, 5.0)
    torch.testing.assert_close(by_prediction, by_x0, rtol=2e-3, atol=1e-4)


def test_min_snr_at_two_values_of_gamma() -> None:
    snr_B = ladder()
    torch.testing.assert_close(timestep_weight(snr_B, "min_snr", "epsilon", float("inf")), torch.ones(len(snr_B)))
    tiny = timestep_weight(snr_B, "min_snr", "epsilon", 1e-6)
    torch.testing.assert_close(tiny, 1e-6 / snr_B)
    assert (timestep_weight(snr_B, "min_snr", "epsilon", 5.0) <= 1).all()


@pytest.mark.parametrize("prediction", ERROR_OVER_X0)
def test_soft_min_snr_lies_below_min_snr_by_at_most_half(prediction: str) -> None:
    hard, soft = (timestep_weight(ladder(), name, prediction) for name in ("min_snr", "soft_min_snr"))
    assert ((soft <= hard) & (soft >= hard / 2)).all()


def test_no_weighting_is_one_whatever_is_predicted() -> None:
    assert all(torch.equal(timestep_weight(ladder(), "none", name), torch.ones(25)) for name in ERROR_OVER_X0)


@pytest.mark.parametrize("weighting", ["none", *X0_WEIGHTS])
@pytest.mark.parametrize("prediction", ERROR_OVER_X0)
def test_weights_are_finite_where_there_is_no_signal(weighting: str, prediction: str) -> None:
    """The last timestep of a schedule with zero terminal SNR."""
    snr_B = torch.tensor([0.0, 1.0])
    if (weighting, prediction) == ("debiased", "epsilon"):
        with pytest.raises(ValueError, match="debiased"):
            timestep_weight(snr_B, weighting, prediction)
    else:
        assert torch.isfinite(timestep_weight(snr_B, weighting, prediction)).all()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="min_snr"):
        timestep_weight(ladder(), "max_snr", "epsilon")
    with pytest.raises(ValueError, match="v_prediction"):
        timestep_weight(ladder(), "min_snr", "sample")


def test_a_weighting_never_mixes_the_priors_weight_into_the_subjects() -> None:
    """The bug of diffusers' script: weights of 2B samples meeting losses of B."""
    loss_B, snr_B = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([10.0, 20.0, 100.0, 1.0])
    is_prior_B = torch.tensor([False, False, True, True])
    parts = prior_preservation(loss_B * timestep_weight(snr_B, "min_snr", "epsilon"), is_prior_B, 1.0)
    assert float(parts.instance) == pytest.approx((5 / 10 + 5 / 20) / 2)
    assert parts.prior is not None
    assert float(parts.prior) == pytest.approx((5 / 100 + 1) / 2)
