"""Samplers by name, and the settings of sampling. Nothing heavy is imported here."""

import difflib
import math
import re
from dataclasses import dataclass
from typing import Any

from dreambooth.errors import UserError
from dreambooth.subject_info import SubjectInfo

KARRAS = {"use_karras_sigmas": True}  # Karras et al. 2022, arXiv 2206.00364, eq. 5: more steps at little noise
DPM = "DPMSolverMultistepScheduler"
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-karras": ("EulerDiscreteScheduler", KARRAS),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": (DPM, {"algorithm_type": "dpmsolver++"}),
    "dpm++-karras": (DPM, {"algorithm_type": "dpmsolver++", **KARRAS}),
    "dpm++-sde": (DPM, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++-sde-karras": (DPM, {"algorithm_type": "sde-dpmsolver++", **KARRAS}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc-karras": ("UniPCMultistepScheduler", KARRAS),
    "lms": ("LMSDiscreteScheduler", {}),
    "lms-karras": ("LMSDiscreteScheduler", KARRAS),
    "heun": ("HeunDiscreteScheduler", {}),
    "heun-karras": ("HeunDiscreteScheduler", KARRAS),
}
# The same names on flow matching. DDIM's step is Euler's where paths are straight; a sampler that is not here has no
# form for them in diffusers.
FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
FLOW_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": (FLOW_EULER, {}),
    "euler": (FLOW_EULER, {}),
    "euler-a": (FLOW_EULER, {"stochastic_sampling": True}),
    "dpm++": (DPM, {"algorithm_type": "dpmsolver++"}),
    "dpm++-sde": (DPM, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
# Names in other programs, in lower case and without the words of IGNORED; diffusers' classes are added below.
OTHER_NAMES = {"plms": "pndm", "euler-ancestral": "euler-a", "dpmsolver++": "dpm++", "dpm": "dpm++"}
for short_name, (class_name, _) in SCHEDULERS.items():
    OTHER_NAMES.setdefault(class_name.lower(), short_name)
IGNORED = ("2m", "k", "sampler")
MAX_STEPS = 1000  # as many timesteps as the bases have been trained on; no sampler takes more


@dataclass(frozen=True)
class SamplerSettings:
    """Hold how images are sampled. A step is one call of the scheduler.

    guidance_scale: as the family counts it (`Guidance`); none is 1, of some families 0.

    guidance_min_noise: steps at less noise, as a part of the schedule, are not guided, which halves what they compute.
    Guidance matters at middle noise (Kynkäänniemi et al. 2024, arXiv 2404.07724); 0 guides all, .3 some two thirds.

    The text of these settings is part of the fingerprint of class latents: a new field would make them all anew.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    scheduler: str = "ddim"
    negative_prompt: str = ""
    guidance_min_noise: float = 0.0

    def __post_init__(self) -> None:
        for field in ("scheduler", "num_inference_steps", "guidance_scale"):
            if (problem := problem_of(field, getattr(self, field))) is not None:
                raise UserError(f"{field}={getattr(self, field)}: {problem}")


def problem_of(field: str, value: Any) -> str | None:
    """Return what is wrong with the value of a field of `SamplerSettings` and what to do; None if nothing is."""
    if field == "scheduler" and value not in SCHEDULERS:
        return f"unknown sampler; {suggest_scheduler(value)}one of {', '.join(SCHEDULERS)}"
    if field == "num_inference_steps" and not 1 <= value <= MAX_STEPS:
        return f"must be from 1 to {MAX_STEPS}; 20 to 50 is usual"
    if field == "guidance_scale" and not (value >= 0 and math.isfinite(value)):
        return "must be a finite number from 0 on; 1 is no guidance (of z_image and krea2 0), 4 to 10 is usual"
    return None


def suggest_scheduler(name: str) -> str:
    """Return "did you mean NAME? " for a name that is like a known one, or another program's; else nothing."""
    words = [word for word in re.split(r"[\s_-]+", name.lower()) if word not in IGNORED]
    plain = "-".join(words)
    known = {**OTHER_NAMES, **{each: each for each in SCHEDULERS}}
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.5)
    return f"did you mean {known[near[0]]}? " if near else ""


def check_size(factor: int, size: tuple[int, int]) -> None:
    """Raise UserError for a size (height, width) that a model has no latents for, with the nearest that it has.

    factor: pixels a latent, along a side.
    """
    height, width = size
    if all(side > 0 and side % factor == 0 for side in size):
        return
    near = []
    for round_to in (math.floor, math.ceil):
        near_height, near_width = (max(factor, round_to(side / factor) * factor) for side in size)
        near.append(f"{near_width}x{near_height}")
    raise UserError(
        f"size={width}x{height}: width and height must be multiples of {factor} pixels; "
        f"use {' or '.join(dict.fromkeys(near))}"
    )


def sampler_settings(
    card: SubjectInfo | None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    negative_prompt: str = "",
) -> SamplerSettings:
    """Return the settings requested; for those that are None the run's own of its grids, else the defaults.

    Raises UserError for a value that is not allowed.
    """
    if card is None:
        usual = SamplerSettings()
    else:
        usual = SamplerSettings(card.num_inference_steps, card.guidance_scale, card.scheduler)
    return SamplerSettings(
        usual.num_inference_steps if num_inference_steps is None else num_inference_steps,
        usual.guidance_scale if guidance_scale is None else guidance_scale,
        usual.scheduler if scheduler is None else scheduler,
        negative_prompt,
    )
