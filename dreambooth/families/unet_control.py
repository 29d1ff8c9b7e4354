"""ControlNets of UNets (Zhang et al. 2023, arXiv 2302.05543): they add to skip connections and the middle.

Shapes: B batch, C channels, H/W height and width (pixels of a map, latents of the rest).
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from diffusers import ControlNetModel
from torch import Tensor

from dreambooth.families.conditioning import Conditioning, DenoiserInputs
from dreambooth.families.control import MAP, block_by_block, fields_of, residuals_of

DOWN, MID = "down", "mid"


class ControlledUNet(ABC):
    """The members of `ControlledDenoiser` for a family whose denoiser is a UNet."""

    control_class: ClassVar[type[Any]] = ControlNetModel
    controls_read_prompts: ClassVar[bool] = False

    @abstractmethod
    def text_inputs(self, noisy_BCHW: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Return the UNet's arguments beside noisy latents and timesteps."""

    def control_condition(self, network: Any, kind: str, map_1CHW: Tensor) -> Conditioning:
        """Return the map's pixels, in [0, 1]."""
        return Conditioning({MAP: map_1CHW.add(1).div(2)})

    def control(self, network: Any, condition: Conditioning, weight: float, inputs: DenoiserInputs) -> Conditioning:
        texts = self.text_inputs(inputs.noisy_BCHW, inputs.conditioning)
        if "added_cond_kwargs" in texts:  # it reads no image prompt
            own = {name: value for name, value in texts["added_cond_kwargs"].items() if name != "image_embeds"}
            texts = {**texts, "added_cond_kwargs": own}
        down, mid = network(
            inputs.noisy_BCHW,
            inputs.t_B,
            controlnet_cond=condition[MAP],
            conditioning_scale=weight,
            return_dict=False,
            **texts,
        )
        return Conditioning(fields_of(DOWN, down) | fields_of(MID, [mid]))


def residual_inputs(conditioning: Conditioning) -> dict[str, Any]:
    """Return the arguments of a UNet that ControlNets have added to its conditioning."""
    down, mid = (residuals_of(conditioning, {part: block_by_block}) for part in (DOWN, MID))
    if down is None or mid is None:
        return {}
    return {"down_block_additional_residuals": tuple(down.values()), "mid_block_additional_residual": mid[0]}
