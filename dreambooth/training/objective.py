"""The arithmetic of one training step: DreamBooth's loss (Ruiz et al. 2023, arXiv 2208.12242, eq. 2).

    loss = mean over the subject's samples of  w_t |f(alpha_t x0 + sigma_t noise, t, prompt) - target|^2
         + prior_weight * the same mean over samples of the class

Plain functions over a `Batch`; training, the fixed validation loss and the memory plan all call them.
Shapes: B samples of one shape, C channels, H/W latent height and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth.data.latents import Batch, Sample, by_shape
from dreambooth.families import Conditioning, Family
from dreambooth.generation.class_prior import Predict
from dreambooth.losses import mean_over_image, pseudo_huber, squared_error, timestep_weight
from dreambooth.randomness import Randomness
from dreambooth.schedules import Schedule


@dataclass(frozen=True)
class LossSettings:
    """Hold the settings of the loss.

    prior_weight: the paper's lambda, which the module uses.
    huber_c: where the pseudo-Huber loss turns linear; None: the squared error.
    weighting, gamma: choose the weight of a timestep, see `losses.timestep_weight`.
    noise_offset: standard deviation of a shift of each channel's noise as a whole, so that brightness can be learned
        (N. Guttenberg 2023, "Diffusion with Offset Noise"; 0.05 to 0.1).
    input_perturbation: standard deviation of extra noise that the network sees and the target leaves out (Ning et al.
        2023, arXiv 2301.11706; 0.1).
    unmasked_weight: how much latent positions count that a mask leaves out, 0 to 1.
    """

    prior_weight: float = 1.0
    huber_c: float | None = None
    weighting: str = "none"
    gamma: float = 5.0
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    unmasked_weight: float = 0.0


@dataclass(frozen=True)
class Draws:
    """Hold a batch's random draws. `noise` makes the target; `added_noise`, which the network sees, may have more."""

    t_B: Tensor
    noise_BCHW: Tensor
    added_noise_BCHW: Tensor

    def to(self, device: torch.device) -> "Draws":
        t_B, noise_BCHW = self.t_B.to(device, non_blocking=True), self.noise_BCHW.to(device, non_blocking=True)
        is_same = self.added_noise_BCHW is self.noise_BCHW
        added_BCHW = noise_BCHW if is_same else self.added_noise_BCHW.to(device, non_blocking=True)
        return Draws(t_B, noise_BCHW, added_BCHW)


def sample_losses(
    family: Family,
    batch: Batch,
    draws: Draws,
    conditioning: Conditioning,
    settings: LossSettings,
    teacher: Predict | None = None,
) -> Tensor:
    """Return each sample's loss, float32 [B]; `losses.prior_preservation` sums the means of subject and class.

    teacher: predicts the target of class samples in place of the true one (`class_prior.make_teacher`).
    """
    schedule, x0_BCHW, t_B = family.schedule, batch.latents_BCHW, draws.t_B
    noisy_BCHW = schedule.add_noise(x0_BCHW, draws.added_noise_BCHW, t_B)
    time_B = schedule.network_time(t_B)  # the timestep as the network's embedding takes it
    prediction_BCHW = family.predict(noisy_BCHW, time_B, conditioning)
    target_BCHW = schedule.target(x0_BCHW, draws.noise_BCHW, t_B)
    if teacher is not None and batch.is_prior_B.any():
        target_BCHW = with_teacher(target_BCHW, teacher, noisy_BCHW, time_B, batch)
    if settings.huber_c is None:
        error_BCHW = squared_error(prediction_BCHW, target_BCHW)
    else:
        error_BCHW = pseudo_huber(prediction_BCHW, target_BCHW, settings.huber_c)
    weight_B = timestep_weight(schedule.snr(t_B), settings.weighting, schedule.prediction, settings.gamma)
    return mean_over_image(error_BCHW, batch.weight_B1HW) * weight_B


def with_teacher(target_BCHW: Tensor, teacher: Predict, noisy_BCHW: Tensor, t_B: Tensor, batch: Batch) -> Tensor:
    """Return the targets, those of class samples replaced by the teacher's predictions."""
    is_prior_B = batch.is_prior_B
    class_prompts = [prompt for prompt, is_prior in zip(batch.prompts, is_prior_B.tolist(), strict=True) if is_prior]
    target_BCHW = target_BCHW.clone()  # it may be the noise itself
    target_BCHW[is_prior_B] = teacher(noisy_BCHW[is_prior_B], t_B[is_prior_B], class_prompts)
    return target_BCHW


def encode_batch(family: Family, batch: Batch) -> Conditioning:
    """Return the conditioning of a batch: each distinct prompt encoded once, and the size and crop of images (SDXL)."""
    distinct = list(dict.fromkeys(batch.prompts))
    rows = [distinct.index(prompt) for prompt in batch.prompts]
    return family.encode_prompts(distinct).select(rows) | family.size_conditioning(batch.size_crop_B6)


def draw(batch: Batch, schedule: Schedule, randomness: Randomness, settings: LossSettings) -> Draws:
    """Draw timesteps and noise, on the CPU. Class samples draw their own: a prior changes nothing for the subject."""
    height, width = batch.latents_BCHW.shape[-2:]
    t_B = torch.tensor(
        [
            schedule.draw_timestep(randomness.generator(f"{source}/timestep", index), (height, width), is_prior)
            for source, index, is_prior in zip(
                batch.sources, batch.sample_indices, batch.is_prior_B.tolist(), strict=True
            )
        ]
    )
    shape = batch.latents_BCHW.shape[1:]
    noise_BCHW = normal(batch, "noise", randomness, shape)
    if settings.noise_offset:
        noise_BCHW = noise_BCHW + settings.noise_offset * normal(batch, "offset", randomness, (shape[0], 1, 1))
    added_BCHW = noise_BCHW
    if settings.input_perturbation:
        added_BCHW = noise_BCHW + settings.input_perturbation * normal(batch, "perturbation", randomness, shape)
    return Draws(t_B, noise_BCHW, added_BCHW)


def normal(batch: Batch, choice: str, randomness: Randomness, shape: Sequence[int]) -> Tensor:
    """Draw standard normal numbers for each sample, [B, *shape]."""
    draws = [
        randomness.normal(f"{source}/{choice}", [index], tuple(shape))
        for source, index in zip(batch.sources, batch.sample_indices, strict=True)
    ]
    return torch.cat(draws)


@torch.no_grad()
def fixed_loss(
    family: Family, samples: Sequence[Sample], randomness: Randomness, device: torch.device, at_once: int = 4
) -> float:
    """Return the mean squared error at noise and timesteps that never change, so that two steps can be compared.

    samples: of indices 0, 1 ...; their timesteps spread evenly. at_once: samples that go through the networks together.
    """
    losses, num_timesteps = [], family.schedule.num_timesteps
    for part in by_shape(samples, at_once):
        batch = Batch.stack(part, family.vae_scale_factor)
        midpoints = [(2 * index + 1) * num_timesteps // (2 * len(samples)) for index in batch.sample_indices]
        noise_BCHW = normal(batch, "noise", randomness, batch.latents_BCHW.shape[1:])
        draws = Draws(torch.tensor(midpoints), noise_BCHW, noise_BCHW).to(device)
        batch = batch.to(device)
        losses.append(sample_losses(family, batch, draws, encode_batch(family, batch), LossSettings()))
    return float(torch.cat(losses).mean())
