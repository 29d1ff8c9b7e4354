"""How images are sampled: the samplers by name, and their settings. Nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Any

from dreambooth.errors import UserError
from dreambooth.export.subject_info import SubjectInfo

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}


@dataclass(frozen=True)
class SamplerSettings:
    """How pictures are sampled. guidance_scale 1 is no guidance; a step is one call of the scheduler.

    guidance_min_noise: steps at less noise, as a part of the schedule, are not guided, which halves what they compute.
    Guidance matters at middle noise (Kynkäänniemi et al. 2024, arXiv 2404.07724); 0 guides all, .3 some two thirds.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    scheduler: str = "ddim"
    negative_prompt: str = ""
    guidance_min_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise UserError(f"scheduler: {self.scheduler!r} is not known; one of {', '.join(SCHEDULERS)}")
        if self.num_inference_steps < 1:
            raise UserError(f"steps: {self.num_inference_steps} is too small; at least 1")
        if not 0 <= self.guidance_scale < float("inf"):
            raise UserError(f"guidance scale: {self.guidance_scale} is not allowed; 1 is no guidance, 4 to 10 is usual")


def sampler_settings(
    card: SubjectInfo | None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    negative_prompt: str = "",
) -> SamplerSettings:
    """Return what was asked for; of what was not (None), what the run sampled its own grids with, else the defaults.

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
