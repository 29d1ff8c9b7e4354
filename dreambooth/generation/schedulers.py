"""Samplers by name: diffusers' schedulers with a base's own noise schedule, and what differs from one to another.

Shapes: B batch, C channels, H/W latent height and width, T timesteps that are taken.
"""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from torch import Tensor

from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.generation.settings import FLOW_SCHEDULERS, SCHEDULERS, SamplerSettings

SAMPLER_ERRORS = (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError)  # of diffusers' samplers


@dataclass(frozen=True)
class SamplerStep:
    """Hold where sampling is: a scheduler, the timesteps that are taken, and the number of those already taken."""

    scheduler: Any
    timesteps_T: Tensor
    number: int = 0

    @property
    def num_steps(self) -> int:
        """Return the number of timesteps that are taken in all."""
        return len(self.timesteps_T)

    @property
    def t(self) -> Tensor:
        """Return the timestep that is taken next, a scalar."""
        return self.timesteps_T[self.number]

    def next(self) -> "SamplerStep":
        """Return where sampling is one timestep later."""
        return replace(self, number=self.number + 1)


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


def initial_sigma(scheduler: Any) -> float | Tensor:
    """Return by what the first noise is multiplied; the samplers of flow matching begin with it as it is."""
    return getattr(scheduler, "init_noise_sigma", 1.0)


def scaled_input(scheduler: Any, latents_BCHW: Tensor, t: Tensor) -> Tensor:
    """Return the latents as the network is to see them, where the sampler counts otherwise."""
    scale = getattr(scheduler, "scale_model_input", None)
    return latents_BCHW if scale is None else scale(latents_BCHW, t)


def step_options(scheduler: Any, generators: list[torch.Generator], number: int = 1) -> dict[str, Any]:
    """Return options of `scheduler.step`: generators for samplers that add noise, and of linear multistep its order.

    number: of the step, from 1 on. Linear multistep goes by the place in the schedule, and would use steps that were
    not taken where an image to start from leaves out the first ones.
    """
    known = inspect.signature(scheduler.step).parameters
    options = {"generator": generators, "order": min(number, 4)}
    return {name: value for name, value in options.items() if name in known}


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
            options = step_options(scheduler, generators)
            latent_1111 = scheduler.step(prediction_1111, t, latent_1111, **options).prev_sample
    except SAMPLER_ERRORS:
        return False
    return bool(torch.isfinite(latent_1111).all())
