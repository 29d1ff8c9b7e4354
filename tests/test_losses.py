"""The loss: parts add up, and the mask alone decides what counts as prior."""

import torch

from dreambooth.losses import prior_preservation, squared_error


def test_the_total_is_the_subjects_mean_plus_weight_times_the_priors_mean() -> None:
    loss_B = torch.tensor([1.0, 2.0, 10.0, 30.0, 50.0])
    is_prior_B = torch.tensor([False, False, True, True, True])
    parts = prior_preservation(loss_B, is_prior_B, weight=0.5)
    assert (float(parts.instance), float(parts.total)) == (1.5, 1.5 + 0.5 * 30)
    assert parts.prior is not None
    assert float(parts.prior) == 30


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
    loss_B = squared_error(prediction, target)
    assert (loss_B.dtype, tuple(loss_B.shape)) == (torch.float32, (3,))
    torch.testing.assert_close(loss_B[1], ((prediction[1].float() - target[1]) ** 2).mean())
