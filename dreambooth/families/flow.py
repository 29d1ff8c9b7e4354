"""The noise process of families of flow matching (Lipman et al. 2022, arXiv 2210.02747).

Their samplers go from sigma 1 to 0 in steps that a shift moves towards noise: by a number, or by the image's size.
"""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
from torch import Tensor, nn

from dreambooth.errors import ModelError, first_line
from dreambooth.families.conditioning import Conditioning
from dreambooth.families.inspection import LOADING_ERRORS
from dreambooth.schedules import Schedule
from dreambooth.timesteps import UNIFORM, Shift, ShiftBySize, Size, TimestepDensity, shift_at

logger = logging.getLogger(__name__)

SCHEDULER_FILE = "scheduler/scheduler_config.json"


def warn_of_distilled(base: str, trained_instead: str) -> None:
    """Warn that a model which was distilled to few steps loses these in training. trained_instead: hub id."""
    logger.warning(
        f"model.base={base}: a distilled model, which loses its few steps when it is trained; train the base "
        f"({trained_instead}), and sample its LoRA on the distilled one"
    )


class OneTransformer:
    """The members that families share whose denoiser is one transformer, the only network that trains."""

    unread_by_diffusers: ClassVar[tuple[str, ...]] = ()
    has_idle_weights: ClassVar[bool] = False
    transformer: nn.Module

    @property
    def denoiser(self) -> nn.Module:
        return self.transformer

    def components(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer}

    def swapped_modules(self) -> frozenset[str]:
        """Return none: the authors' matrices have the outputs in the same order."""
        return frozenset()

    def size_conditioning(self, size_crop_B6: Tensor) -> Conditioning:
        """Return none: these transformers are not told of sizes and crops."""
        return Conditioning({})


@dataclass
class FlowProcess:
    """The `NoiseProcess` of a family whose base has a `FlowMatchEulerDiscreteScheduler`.

    The subclass calls `set_scheduler({})` when it is made, and says how its base was trained.
    """

    even_sigmas: ClassVar[bool] = True
    TRAINED_WITH: ClassVar[TimestepDensity] = UNIFORM
    PATCH: ClassVar[int] = 2  # latents a token, along a side

    scheduler_config: dict[str, Any]

    def set_scheduler(self, changes: dict[str, Any]) -> None:
        """Change settings of the sampler. Raises ModelError for a sampler that is not of flow matching."""
        self.scheduler_config = {**self.scheduler_config, **changes}
        name = self.scheduler_config["_class_name"]
        if not name.startswith("FlowMatch"):
            raise ModelError(f"{SCHEDULER_FILE}: _class_name: {name} is not of flow matching, as this family is")
        try:
            self.schedule = Schedule.flow(self.scheduler().config.num_train_timesteps, self.trained_density)
            shift_at(self.sampler_shift, (8, 8))
        except LOADING_ERRORS as error:
            raise ModelError(f"{SCHEDULER_FILE}: cannot be used: {first_line(error)}") from error

    @property
    def trained_density(self) -> TimestepDensity:
        """Return how often the base was trained on each timestep."""
        return self.TRAINED_WITH

    def scheduler(self) -> Any:
        """Make the base's own sampler."""
        return getattr(diffusers, self.scheduler_config["_class_name"]).from_config(self.scheduler_config)

    @property
    def sampler_shift(self) -> Shift:
        config = self.scheduler().config
        if not config.get("use_dynamic_shifting"):
            return float(config.shift)
        return ShiftBySize(
            config.base_shift, config.max_shift, config.base_image_seq_len, config.max_image_seq_len, self.PATCH
        )

    def shift_for(self, num_steps: int) -> Shift:
        """Return the sampler's shift in so many steps; of most families the number of steps does not count."""
        return self.sampler_shift

    def pipeline_arguments(self, noise_BCHW: Tensor, guidance_scale: float) -> dict[str, Any]:
        return {"latents": noise_BCHW, "guidance_scale": guidance_scale}

    def sampler_config(self, size: Size, num_steps: int) -> dict[str, Any]:
        """Return the settings with the shift for latents of this size as a number, by the names of all samplers."""
        config = {key: value for key, value in self.scheduler_config.items() if not key.startswith("_")}
        shift = shift_at(self.shift_for(num_steps), size)
        named = {"shift": shift, "flow_shift": shift, "use_dynamic_shifting": False}
        return config | named | {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
