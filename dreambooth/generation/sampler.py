"""From prompts to pictures: classifier-free guidance around any diffusers sampler.

Picture `i` of a seed starts from noise that is a function of `seed + i` alone, so it is the same whatever the batch
size, the prompt's neighbours and the number of pictures asked for.
Shapes: B batch, C channels, H/W height and width (pixels or latents).
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from dreambooth.errors import UserError
from dreambooth.families import Conditioning, Family
from dreambooth.families.clip import fit
from dreambooth.generation.settings import SCHEDULERS, SamplerSettings
from dreambooth.randomness import Randomness


@dataclass(frozen=True)
class InitialNoise:
    """Where a batch of pictures starts: its noise, and a generator a picture for samplers that add noise."""

    noise_BCHW: Tensor
    generators: list[torch.Generator]


def initial_noise(
    randomness: Randomness, choice: str, places: Sequence[int], shape: tuple[int, int, int]
) -> InitialNoise:
    """Noise [B, *shape] and generators; row `b` is a function of the b-th place alone."""
    seeds = [randomness.torch_seed(f"{choice}/sampler", place) for place in places]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return InitialNoise(randomness.normal(f"{choice}/noise", places, shape), generators)


def noise_from_seeds(seeds: Iterable[int], shape: tuple[int, int, int]) -> InitialNoise:
    """One picture a seed."""
    starts = [initial_noise(Randomness(seed), "picture", [0], shape) for seed in seeds]
    return InitialNoise(torch.cat([start.noise_BCHW for start in starts]), [start.generators[0] for start in starts])


def guided(
    predict: Callable[[Tensor, Conditioning], Tensor], noisy_BCHW: Tensor, conditioning: Conditioning, scale: float
) -> Tensor:
    """Classifier-free guidance, both halves in one forward pass (Ho & Salimans 2022, arXiv 2207.12598, eq. 6):

        prediction = uncond + scale * (cond - uncond)

    scale 1 is the conditional prediction itself, for which no second half is computed; 0 is the unconditional one.

    conditioning: of 2B samples, the unconditional half first; of scale 1 the B conditional ones alone.
    """
    if scale == 1:
        return predict(noisy_BCHW, conditioning)
    uncond, cond = predict(torch.cat([noisy_BCHW, noisy_BCHW]), conditioning).chunk(2)
    return uncond + scale * (cond - uncond)


def cut_warning(family: Family, name: str, prompt: str, identifiers: Iterable[str] = ()) -> str | None:
    """What to say of a prompt that is longer than the model reads; None of one that is not.

    Raises UserError where an identifier stands in what is dropped.
    """
    kept, dropped = fit(family.tokenizer, prompt)
    if not dropped:
        return None
    limit = family.tokenizer.model_max_length
    told = f"{name} has {len(family.tokenize(prompt)) + 2} tokens with start and end; this model reads {limit}"
    for identifier in identifiers:
        if identifier in prompt and identifier not in kept:
            raise UserError(
                f"{told}, and the identifier {identifier!r} comes later: move it to the front, or shorten it"
            )
    return f"{told} and drops: {dropped!r}"


@torch.no_grad()
def sample_latents(family: Family, prompts: list[str], start: InitialNoise, settings: SamplerSettings) -> Tensor:
    """Denoise one picture a prompt from `start`; scaled latents, float32 [B, C, H, W]."""
    device = next(family.denoiser.parameters()).device
    conditioning = _guidance_conditioning(family, prompts, settings)
    scheduler = make_scheduler(family, settings.scheduler)
    scheduler.set_timesteps(settings.num_inference_steps, device=device)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": start.generators} if takes_generator else {}
    dtype = next(family.denoiser.parameters()).dtype

    latents_BCHW = start.noise_BCHW.to(device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        is_guided = t >= settings.guidance_min_noise * family.schedule.num_timesteps
        scale = settings.guidance_scale if is_guided else 1.0

        def predict(noisy_BCHW: Tensor, conditioning: Conditioning, t: Tensor = t) -> Tensor:
            return family.predict(noisy_BCHW.to(dtype), t.expand(len(noisy_BCHW)), conditioning).float()

        noisy_BCHW = scheduler.scale_model_input(latents_BCHW, t)
        given = conditioning if is_guided else conditioning.select(range(-len(prompts), 0))
        prediction_BCHW = guided(predict, noisy_BCHW, given, scale)
        latents_BCHW = scheduler.step(prediction_BCHW, t, latents_BCHW, **extra).prev_sample
    return latents_BCHW


def _guidance_conditioning(family: Family, prompts: list[str], settings: SamplerSettings) -> Conditioning:
    """The prompts' condition, behind that of the negative prompt where guidance needs one."""
    if settings.guidance_scale == 1:
        return family.encode_prompts(prompts)
    return family.encode_prompts([settings.negative_prompt] * len(prompts) + prompts)


def make_scheduler(family: Family, name: str) -> Any:
    """A fresh diffusers scheduler by name, with the base's own noise schedule and kind of prediction."""
    class_name, options = SCHEDULERS[name]
    config = {key: value for key, value in family.scheduler_config.items() if not key.startswith("_")}
    return getattr(diffusers, class_name).from_config(config, **options)


def sample_pixels(
    family: Family,
    prompts: list[str],
    seeds: Sequence[int],
    size: tuple[int, int],
    settings: SamplerSettings,
    batch_size: int = 4,
) -> Iterator[Tensor]:
    """Yield batches of pixels in [-1, 1], [B, 3, H, W], a picture a prompt and seed. size: (height, width), pixels."""
    shape = family.latent_shape(*size)
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        latents_BCHW = sample_latents(family, prompts[part], noise_from_seeds(seeds[part], shape), settings)
        yield family.decode_latents(latents_BCHW).float().clamp(-1, 1)
