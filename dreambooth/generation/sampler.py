"""Sample images from prompts: classifier-free guidance around any diffusers sampler.

Image `i` of a seed starts from noise that is a function of `seed + i` alone, so it is the same whatever the batch
size, the prompt's neighbours and the number of images requested.
Shapes: B batch, C channels, H/W height and width (pixels or latents).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth.families import Conditioning, DenoiserInputs, Family
from dreambooth.families.guidance import FROM_UNCONDITIONAL, Guidance
from dreambooth.generation.inputs.image_inputs import ImageInputs
from dreambooth.generation.inputs.init_latents import unmasked_conditioning
from dreambooth.generation.schedulers import (
    SamplerStep,
    initial_sigma,
    make_scheduler,
    scaled_input,
    set_timesteps,
    step_options,
    timesteps_from,
)
from dreambooth.generation.settings import SamplerSettings
from dreambooth.generation.variation import NoiseSeed
from dreambooth.randomness import Randomness

OnStep = Callable[[int, int], None]  # sampler steps taken of the batch, and how many it takes
Encode = Callable[[list[str]], Conditioning]  # prompts -> what the denoiser reads of them


@dataclass(frozen=True)
class InitialNoise:
    """Hold the initial noise of a batch, and one generator for each image, for samplers that add noise."""

    noise_BCHW: Tensor
    generators: list[torch.Generator]


def initial_noise(
    randomness: Randomness, choice: str, sample_indices: Sequence[int], shape: tuple[int, int, int]
) -> InitialNoise:
    """Return noise [B, *shape] and generators; row `b` is a function of the b-th sample index alone."""
    seeds = [randomness.torch_seed(f"{choice}/sampler", index) for index in sample_indices]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return InitialNoise(randomness.normal(f"{choice}/noise", sample_indices, shape), generators)


def noise_from_seeds(seeds: Iterable[int | NoiseSeed], shape: tuple[int, int, int]) -> InitialNoise:
    """Return the initial noise of one image for each seed."""
    starts = [_noise_from_seed(seed if isinstance(seed, NoiseSeed) else NoiseSeed(seed), shape) for seed in seeds]
    return InitialNoise(torch.cat([start.noise_BCHW for start in starts]), [start.generators[0] for start in starts])


def _noise_from_seed(seed: NoiseSeed, shape: tuple[int, int, int]) -> InitialNoise:
    start = initial_noise(Randomness(seed.seed), "picture", [0], shape)
    noise_BCHW = start.noise_BCHW
    for variation in seed.variations:
        other_BCHW = Randomness(variation.seed).normal("variation", [0], shape)
        noise_BCHW = interpolate_noise(noise_BCHW, other_BCHW, variation.strength)
    return InitialNoise(noise_BCHW, start.generators)


def interpolate_noise(one: Tensor, other: Tensor, part: float) -> Tensor:
    """Go a part of the way from one noise to another, on the great circle through both (Shoemake 1985, eq. 1):

        slerp(one, other; part) = (sin((1 - part) w) one + sin(part w) other) / sin(w),   w the angle between them

    On the straight line between them noise has less variance, which the denoiser takes for an image that is nearly
    done. part 0 is `one` itself, 1 is `other`.
    """
    if part in (0, 1):
        return other if part else one
    cosine = torch.dot(one.flatten(), other.flatten()) / (one.norm() * other.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    return (torch.sin((1 - part) * angle) * one + torch.sin(part * angle) * other) / torch.sin(angle)


def guided(
    predict: Callable[[Tensor, Conditioning], Tensor],
    noisy_BCHW: Tensor,
    conditioning: Conditioning,
    scale: float,
    guidance: Guidance = FROM_UNCONDITIONAL,
) -> Tensor:
    """Apply classifier-free guidance, both halves in one forward pass (Ho & Salimans 2022, arXiv 2207.12598, eq. 6):

        prediction = uncond + scale * (cond - uncond)        or as the family's `guidance` counts it

    scale `guidance.none` is the conditional prediction itself, for which no second half is computed; nor is it for a
    network that reads the scale.

    conditioning: of 2B samples, the unconditional half first; without guidance the B conditional ones alone.
    """
    if not guidance.is_combined(scale):
        return predict(noisy_BCHW, conditioning)
    uncond, cond = predict(torch.cat([noisy_BCHW, noisy_BCHW]), conditioning).chunk(2)
    return guidance.combine(uncond, cond, scale)


@torch.no_grad()
def sample_latents(
    family: Family,
    prompts: list[str],
    start: InitialNoise,
    settings: SamplerSettings,
    on_step: OnStep | None = None,
    encode: Encode | None = None,
    inputs: ImageInputs | None = None,
) -> Tensor:
    """Denoise one image for each prompt from `start`. Returns scaled latents, float32 [B, C, H, W].

    on_step: called after each step of the scheduler with the number of steps taken and of all. encode: how prompts are
    read; None: as in training. inputs: an image to start from, controls and a style, the same for all prompts.
    """
    inputs = inputs or ImageInputs()
    with inputs.applied(family):
        return _denoise(family, prompts, start, settings, on_step, encode or family.encode_prompts, inputs)


def _denoise(
    family: Family,
    prompts: list[str],
    start: InitialNoise,
    settings: SamplerSettings,
    on_step: OnStep | None,
    encode: Encode,
    inputs: ImageInputs,
) -> Tensor:
    """Return latents after all steps of the sampler, by a denoiser that `inputs` have changed already."""
    init, device = inputs.init, next(family.denoiser.parameters()).device
    conditioning = _guidance_conditioning(encode, prompts, settings, family.guidance)
    conditioning |= _image_conditioning(family, inputs, start.noise_BCHW, len(conditioning), len(prompts))
    height, width = start.noise_BCHW.shape[-2:]
    scheduler = make_scheduler(family, settings.scheduler, (height, width), settings.num_inference_steps)
    set_timesteps(scheduler, settings.num_inference_steps, device, family.even_sigmas)
    first = 0 if init is None else init.first_step(settings.num_inference_steps)
    step = SamplerStep(scheduler, timesteps_from(scheduler, first))
    dtype = next(family.denoiser.parameters()).dtype

    noise_BCHW = start.noise_BCHW.to(device)
    latents_BCHW = noise_BCHW * initial_sigma(scheduler) if init is None else init.begin(step, noise_BCHW)
    for t in step.timesteps_T:
        is_guided = t >= settings.guidance_min_noise * family.schedule.num_timesteps
        scale = settings.guidance_scale if is_guided else family.guidance.none

        def predict(noisy_BCHW: Tensor, conditioning: Conditioning, step: SamplerStep = step) -> Tensor:
            t_B = step.t.expand(len(noisy_BCHW))
            model_inputs = DenoiserInputs(noisy_BCHW.to(dtype), t_B, conditioning)
            return inputs.predict(family, model_inputs, step, len(prompts)).float()

        noisy_BCHW = scaled_input(scheduler, latents_BCHW, t)
        used = conditioning if is_guided else conditioning.select(range(-len(prompts), 0))
        prediction_BCHW = guided(predict, noisy_BCHW, used, scale, family.guidance)
        step = step.next()
        options = step_options(scheduler, start.generators, step.number)
        latents_BCHW = scheduler.step(prediction_BCHW, t, latents_BCHW, **options).prev_sample
        if init is not None:
            latents_BCHW = init.keep(step, latents_BCHW, noise_BCHW)
        if inputs.change is not None:
            latents_BCHW = inputs.change(latents_BCHW, step.number, step.num_steps)
        if on_step is not None:
            on_step(step.number, step.num_steps)
    return latents_BCHW


def _image_conditioning(
    family: Family, inputs: ImageInputs, noise_BCHW: Tensor, num_samples: int, num_images: int
) -> Conditioning:
    """Return what an inpainting base reads of the image, and what a style adds, for each sample."""
    height, width = noise_BCHW.shape[-2:]
    own = unmasked_conditioning(family, height, width) if inputs.init is None else inputs.init.conditioning
    fields = own.select([0] * num_samples) if own.fields else own
    return fields if inputs.style is None else fields | inputs.style.fields(num_samples - num_images, num_images)


def _guidance_conditioning(
    encode: Encode, prompts: list[str], settings: SamplerSettings, guidance: Guidance
) -> Conditioning:
    """Return the prompts' conditioning, after that of the negative prompt where guidance needs one.

    For a network that reads the scale it is a field of theirs.
    """
    if guidance.is_input:
        conditioning = encode(prompts)
        device = next(conditioning[name].device for name in conditioning)
        scale_B = torch.full((len(prompts),), settings.guidance_scale, device=device)
        return conditioning | Conditioning({"guidance": scale_B})
    if not guidance.is_combined(settings.guidance_scale):
        return encode(prompts)
    return encode([settings.negative_prompt] * len(prompts) + prompts)


def sample_pixels(
    family: Family,
    prompts: list[str],
    seeds: Sequence[int | NoiseSeed],
    size: tuple[int, int],
    settings: SamplerSettings,
    batch_size: int = 4,
    on_step: OnStep | None = None,
    encode: Encode | None = None,
    inputs: ImageInputs | None = None,
) -> Iterator[Tensor]:
    """Yield batches of pixels in [-1, 1], [B, 3, H, W], one image for each prompt and seed.

    size: (height, width). inputs: images of that size that steer the sampling.
    """
    shape = family.latent_shape(*size)
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        start = noise_from_seeds(seeds[part], shape)
        latents_BCHW = sample_latents(family, prompts[part], start, settings, on_step, encode, inputs)
        yield family.decode_latents(latents_BCHW).float().clamp(-1, 1)
