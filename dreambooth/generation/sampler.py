"""Sample images from prompts: classifier-free guidance around any diffusers sampler.

Image `i` of a seed starts from noise that is a function of `seed + i` alone, so it is the same whatever the batch
size, the prompt's neighbours and the number of images requested.
Shapes: B batch, C channels, H/W height and width (pixels or latents).
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from torch import Tensor

from dreambooth.errors import UserError
from dreambooth.families import Conditioning, DenoiserInputs, Family
from dreambooth.families.guidance import FROM_UNCONDITIONAL, Guidance
from dreambooth.generation.inputs.image_inputs import ImageInputs
from dreambooth.generation.inputs.init_latents import unmasked_conditioning
from dreambooth.generation.settings import FLOW_SCHEDULERS, SCHEDULERS, SamplerSettings
from dreambooth.generation.variation import NoiseSeed
from dreambooth.prompt_words import has_words
from dreambooth.randomness import Randomness

SAMPLER_ERRORS = (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError)  # of diffusers' samplers
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


def cut_warning(family: Family, name: str, prompt: str, identifiers: Iterable[str] = ()) -> str | None:
    """Return a warning for a prompt that is longer than the model reads, else None.

    Raises UserError where an identifier stands in what is dropped.
    """
    kept, dropped = family.truncate(prompt)
    if not dropped:
        return None
    num_tokens = family.count_tokens(prompt)
    length = f"{name} has {num_tokens} tokens with start and end; this model reads {family.max_tokens}"
    for identifier in identifiers:
        if has_words(prompt, identifier) and not has_words(kept, identifier):
            raise UserError(
                f"{length}, and the identifier {identifier!r} comes later: move it to the front, or shorten it"
            )
    return f"{length} and drops: {dropped!r}"


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
    init, device = inputs.init, next(family.denoiser.parameters()).device
    conditioning = _guidance_conditioning(encode, prompts, settings, family.guidance)
    conditioning |= _image_conditioning(family, inputs, start.noise_BCHW, len(conditioning), len(prompts))
    height, width = start.noise_BCHW.shape[-2:]
    scheduler = make_scheduler(family, settings.scheduler, (height, width), settings.num_inference_steps)
    set_timesteps(scheduler, settings.num_inference_steps, device, family.even_sigmas)
    timesteps_T = timesteps_from(scheduler, 0 if init is None else init.first_step(settings.num_inference_steps))
    dtype = next(family.denoiser.parameters()).dtype

    noise_BCHW = start.noise_BCHW.to(device)
    if init is None:
        latents_BCHW = noise_BCHW * initial_sigma(scheduler)
    else:
        latents_BCHW = init.begin(scheduler, timesteps_T, noise_BCHW)
    for number, t in enumerate(timesteps_T, start=1):
        is_guided = t >= settings.guidance_min_noise * family.schedule.num_timesteps
        scale = settings.guidance_scale if is_guided else family.guidance.none

        def predict(noisy_BCHW: Tensor, conditioning: Conditioning, t: Tensor = t, number: int = number) -> Tensor:
            step = (scheduler, timesteps_T, number - 1)
            model_inputs = DenoiserInputs(noisy_BCHW.to(dtype), t.expand(len(noisy_BCHW)), conditioning)
            return inputs.predict(family, model_inputs, step, len(prompts)).float()

        noisy_BCHW = scaled_input(scheduler, latents_BCHW, t)
        used = conditioning if is_guided else conditioning.select(range(-len(prompts), 0))
        prediction_BCHW = guided(predict, noisy_BCHW, used, scale, family.guidance)
        options = _step_options(scheduler, start.generators, number)
        latents_BCHW = scheduler.step(prediction_BCHW, t, latents_BCHW, **options).prev_sample
        if init is not None:
            latents_BCHW = init.keep(scheduler, timesteps_T, number, latents_BCHW, noise_BCHW)
        if inputs.change is not None:
            latents_BCHW = inputs.change(latents_BCHW, number, len(timesteps_T))
        if on_step is not None:
            on_step(number, len(timesteps_T))
    return latents_BCHW


def _step_options(scheduler: Any, generators: list[torch.Generator], number: int = 1) -> dict[str, Any]:
    """Return options of `scheduler.step`: generators for samplers that add noise, and of linear multistep its order.

    number: of the step, from 1 on. Linear multistep goes by the place in the schedule, and would use steps that were
    not taken where an image to start from leaves out the first ones.
    """
    known = inspect.signature(scheduler.step).parameters
    options = {"generator": generators, "order": min(number, 4)}
    return {name: value for name, value in options.items() if name in known}


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


def schedulers_of(family: Family) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the samplers that there are for a family, by name."""
    return FLOW_SCHEDULERS if family.schedule.prediction == "flow" else SCHEDULERS


def make_scheduler(
    family: Family, name: str, size: tuple[int, int] | None = None, num_inference_steps: int = 50
) -> Any:
    """Make a fresh diffusers scheduler by name, with the base's own noise schedule and kind of prediction.

    size: (height, width) of the latents, by which some families shift the timesteps; None: that of the base.
    num_inference_steps: the same; others may be set afterwards.
    """
    class_name, options = schedulers_of(family)[name]
    if size is None:
        _, *size_HW = family.latent_shape(family.resolution, family.resolution)
        size = (size_HW[0], size_HW[1])
    return getattr(diffusers, class_name).from_config(family.sampler_config(size, num_inference_steps), **options)


def initial_sigma(scheduler: Any) -> float | Tensor:
    """Return by what the first noise is multiplied; the samplers of flow matching begin with it as it is."""
    return getattr(scheduler, "init_noise_sigma", 1.0)


def scaled_input(scheduler: Any, latents_BCHW: Tensor, t: Tensor) -> Tensor:
    """Return the latents as the network is to see them, where the sampler counts otherwise."""
    scale = getattr(scheduler, "scale_model_input", None)
    return latents_BCHW if scale is None else scale(latents_BCHW, t)


def set_timesteps(
    scheduler: Any, num_inference_steps: int, device: torch.device | None = None, even_sigmas: bool = True
) -> None:
    """Set the timesteps of a fresh scheduler, and let it begin with the first of them.

    By itself it searches the first timestep among all, and takes the second of two equal ones, as Karras' have.
    even_sigmas: of the family; the Euler of flow matching then gets even steps from sigma 1 to 1 / steps.
    """
    if even_sigmas and isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        sigmas = torch.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist()
        scheduler.set_timesteps(sigmas=sigmas, device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


def timesteps_from(scheduler: Any, first: int) -> Tensor:
    """Return the timesteps from a step on, 0 the first, and let the scheduler begin there. `set_timesteps` came before.

    Heun's method lists the timesteps of both halves of a step; PNDM begins by repeating its second one.
    """
    if first == 0:
        return scheduler.timesteps
    if isinstance(scheduler, diffusers.PNDMScheduler):
        distinct_T = torch.cat([scheduler.timesteps[:1], scheduler.timesteps[2:]])[first:]
        return torch.cat([distinct_T[:2], distinct_T[1:]])
    begin = first * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler.timesteps[begin:]


def check_sampler(family: Family, settings: SamplerSettings) -> None:
    """Raise UserError, which begins with the field's name, for a sampler that this base cannot be sampled with."""
    known, name = schedulers_of(family), settings.scheduler
    check_negative_prompt(family, settings)
    if name not in known:
        raise UserError(f"scheduler={name}: is not for a base of flow matching; use one of {', '.join(known)}")
    if (problem := steps_problem(family, settings)) is not None:
        raise UserError(f"num_inference_steps={settings.num_inference_steps}: {problem}")


def check_negative_prompt(family: Family, settings: SamplerSettings) -> None:
    """Raise UserError, which begins with the field's name, for a negative prompt that this base has no use for."""
    if family.guidance.is_input and settings.negative_prompt:
        raise UserError(
            f"negative_prompt={settings.negative_prompt!r}: this base reads the guidance scale itself, and no second "
            "prompt; leave it out"
        )


def steps_problem(family: Family, settings: SamplerSettings) -> str | None:
    """Return what is wrong with so many sampler steps on this base's schedule, and how many are possible; else None.

    With almost as many steps as timesteps, samplers index beyond the schedule's end or divide by zero. Where depends
    on the sampler, the base's spacing and the version of diffusers. So all steps are tried, on a single number.
    """
    num_timesteps, steps = family.schedule.num_timesteps, settings.num_inference_steps
    if _can_take(family, settings):
        return None
    schedule = f"{settings.scheduler} on this base's schedule of {num_timesteps} timesteps"
    for fewer in (num_timesteps, num_timesteps - 1, num_timesteps - 2, num_timesteps // 2, 25):
        if fewer < steps and _can_take(family, replace(settings, num_inference_steps=fewer)):
            return f"too many for {schedule}; use at most {fewer}"
    return f"impossible for {schedule}; use another sampler"


def _can_take(family: Family, settings: SamplerSettings) -> bool:
    """Return whether the sampler gets to a finite result."""
    scheduler = make_scheduler(family, settings.scheduler)
    latent_1111 = torch.ones(1, 1, 1, 1)
    generators = [torch.Generator().manual_seed(0)]
    try:
        set_timesteps(scheduler, settings.num_inference_steps, even_sigmas=family.even_sigmas)
        latent_1111 = latent_1111 * initial_sigma(scheduler)
        for t in scheduler.timesteps:
            prediction_1111 = 0.5 * torch.ones_like(scaled_input(scheduler, latent_1111, t))
            options = _step_options(scheduler, generators)
            latent_1111 = scheduler.step(prediction_1111, t, latent_1111, **options).prev_sample
    except SAMPLER_ERRORS:
        return False
    return bool(torch.isfinite(latent_1111).all())


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
