"""One step of training: the two means of the paper, of samples that each draw their own numbers."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dreambooth.data.latents import Batch, Sample, Source
from dreambooth.families import Family
from dreambooth.generation.class_prior import make_teacher
from dreambooth.losses import prior_preservation
from dreambooth.randomness import Randomness
from dreambooth.training.objective import Draws, LossSettings, draw, encode_batch, fixed_loss, sample_losses

RANDOMNESS = Randomness(0)


def samples_of(*sources: Source, mask_1HW: Tensor | None = None) -> list[Sample]:
    return [
        Sample(source, index, RANDOMNESS.normal("test", [index], (4, 8, 8))[0], f"a {source}", mask_1HW=mask_1HW)
        for index, source in enumerate(sources)
    ]


def losses(family: Family, samples: Sequence[Sample], settings: LossSettings | None = None, teacher=None) -> Tensor:
    settings = settings or LossSettings()
    batch = Batch.stack(samples, family.vae_scale_factor, settings.unmasked_weight)
    draws = draw(batch, family.schedule, RANDOMNESS, settings)
    return sample_losses(family, batch, draws, encode_batch(family, batch), settings, teacher)


def gradient(family: Family, loss: Tensor) -> Tensor:
    weights = [weight for weight in family.denoiser.parameters() if weight.requires_grad]
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, weights)])


def test_the_gradient_is_the_subjects_plus_weight_times_the_classes(family: Family) -> None:
    """Eq. 2's two means, each computed by itself."""
    samples = samples_of("subject", "prior", "prior", "subject", "prior")
    is_prior = torch.tensor([sample.is_prior for sample in samples])
    together = gradient(family, prior_preservation(losses(family, samples), is_prior, 0.5).total)
    subject, prior = (
        gradient(family, losses(family, [each for each in samples if each.is_prior == wanted]).mean())
        for wanted in (False, True)
    )
    torch.testing.assert_close(together, subject + 0.5 * prior, atol=1e-6, rtol=1e-3)


def test_a_prior_of_weight_zero_is_plain_training(family: Family) -> None:
    samples = samples_of("subject", "subject", "prior")
    is_prior = torch.tensor([sample.is_prior for sample in samples])
    weightless = gradient(family, prior_preservation(losses(family, samples), is_prior, 0.0).total)
    plain = gradient(family, losses(family, samples[:2]).mean())
    torch.testing.assert_close(weightless, plain, atol=1e-6, rtol=1e-3)


def test_the_loss_is_the_papers_formula_written_out(family: Family) -> None:
    """mean (f(alpha x0 + sigma noise, t, prompt) - noise)^2, by numbers alone."""
    (sample,) = samples_of("subject")
    t = RANDOMNESS.integers("subject/timestep", [0], 1000)
    noise = RANDOMNESS.normal("subject/noise", [0], (4, 8, 8))
    alpha, sigma = family.schedule.alpha_T[t], family.schedule.sigma_T[t]
    with torch.no_grad():
        found = losses(family, [sample])
        noisy = alpha * sample.latents_CHW + sigma * noise
        prediction = family.predict(noisy, t, family.encode_prompts(["a subject"]))
    torch.testing.assert_close(found, (prediction - noise).square().mean().view(1), atol=1e-6, rtol=1e-5)


def test_what_the_subject_draws_does_not_depend_on_its_neighbours(family: Family) -> None:
    settings = LossSettings(noise_offset=0.1, input_perturbation=0.1)
    samples = samples_of("subject", "prior", "subject")
    whole, alone = (
        draw(Batch.stack(part, 8), family.schedule, RANDOMNESS, settings) for part in (samples, samples[2:])
    )
    for name in ("t_B", "noise_BCHW", "added_noise_BCHW"):
        assert torch.equal(getattr(whole, name)[2:], getattr(alone, name))


def test_class_and_subject_of_one_index_draw_different_numbers(family: Family) -> None:
    subject, prior = (
        draw(Batch.stack(samples_of(source), 8), family.schedule, RANDOMNESS, LossSettings())
        for source in ("subject", "prior")
    )
    assert not torch.equal(subject.noise_BCHW, prior.noise_BCHW)


def test_extra_noise_is_added_to_what_the_network_sees_and_left_out_of_the_target(family: Family) -> None:
    batch = Batch.stack(samples_of("subject"), 8)
    plain = draw(batch, family.schedule, RANDOMNESS, LossSettings())
    perturbed = draw(batch, family.schedule, RANDOMNESS, LossSettings(input_perturbation=0.5))
    assert torch.equal(plain.noise_BCHW, perturbed.noise_BCHW)
    extra = perturbed.added_noise_BCHW - perturbed.noise_BCHW
    assert 0.3 < float(extra.std()) < 0.7


def test_a_teacher_sets_the_target_of_class_samples_and_of_no_other(family: Family) -> None:
    """Its own student has nothing to learn from the class; the draws are left as they were."""
    samples = samples_of("subject", "prior")
    batch = Batch.stack(samples, family.vae_scale_factor)
    draws = draw(batch, family.schedule, RANDOMNESS, LossSettings())
    noise = draws.noise_BCHW.clone()
    with torch.no_grad():
        plain = losses(family, samples)
        taught = sample_losses(family, batch, draws, encode_batch(family, batch), LossSettings(), make_teacher(family))
    assert torch.equal(plain[0], taught[0])
    assert float(taught[1]) < 1e-10 < float(plain[1])
    assert torch.equal(draws.noise_BCHW, noise)


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.2])
def test_what_a_mask_leaves_out_counts_by_the_unmasked_weight(unmasked_weight: float) -> None:
    mask_1HW = torch.zeros(1, 8, 8)
    mask_1HW[:, :4] = 1
    masked, whole = samples_of("subject", mask_1HW=mask_1HW)[0], samples_of("prior")[0]
    weight = Batch.stack([masked, whole], 8, unmasked_weight).weight_B1HW
    assert weight is not None
    assert torch.equal(weight[1], torch.ones(1, 8, 8))
    torch.testing.assert_close(weight[0, :, 4:], torch.full((1, 4, 8), unmasked_weight))
    assert Batch.stack([whole], 8, unmasked_weight).weight_B1HW is None


def test_the_fixed_loss_does_not_depend_on_how_many_go_through_at_once(family: Family) -> None:
    samples = samples_of(*["validation"] * 6)
    device = torch.device("cpu")
    three, one = (fixed_loss(family, samples, RANDOMNESS, device, at_once) for at_once in (3, 1))
    assert three == pytest.approx(one, rel=1e-5)
    assert three != pytest.approx(fixed_loss(family, samples, Randomness(1), device), rel=1e-3)


def test_draws_that_are_one_tensor_stay_one_on_the_way_to_a_device() -> None:
    noise = torch.randn(2, 4, 8, 8)
    moved = Draws(torch.tensor([1, 2]), noise, noise).to(torch.device("meta"))
    assert moved.added_noise_BCHW is moved.noise_BCHW
