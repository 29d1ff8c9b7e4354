"""Tell by configs alone which ControlNets fit which base: classes of diffusers, and the keys that have to agree."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CLASS = "_class_name"  # of a network, in its config.json


@dataclass(frozen=True)
class Fit:
    """Hold which ControlNets a class of denoisers takes.

    network: their class. keys: that agree in both configs, where the ControlNet's has a number. width: keys of the
    denoiser whose product tells the published bases of a class apart.
    """

    network: str
    keys: tuple[str, ...]
    width: tuple[str, ...] = ("num_attention_heads", "attention_head_dim")


JOINT = ("num_attention_heads", "attention_head_dim", "joint_attention_dim")
FITS = {
    "UNet2DConditionModel": Fit(
        "ControlNetModel", ("cross_attention_dim", "block_out_channels"), ("cross_attention_dim",)
    ),
    "FluxTransformer2DModel": Fit("FluxControlNetModel", (*JOINT, "pooled_projection_dim", "in_channels")),
    "SD3Transformer2DModel": Fit("SD3ControlNetModel", (*JOINT, "pooled_projection_dim", "in_channels")),
    "QwenImageTransformer2DModel": Fit("QwenImageControlNetModel", (*JOINT, "in_channels")),
    "ZImageTransformer2DModel": Fit("ZImageControlNetModel", ("dim", "n_heads"), ("dim",)),
}
MASKS = ("extra_conditioning_channels", "extra_condition_channels")  # of a ControlNet that fills masks
# The control_mode of FLUX.1's unions by kind, as the cards of InstantX/FLUX.1-dev-Controlnet-Union and
# Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro have it.
UNION_MODES = {"canny": 0, "tile": 1, "depth": 2, "blur": 3, "pose": 4, "gray": 5, "lq": 6}


def misfit(kind: str, config: Mapping[str, Any], base: Mapping[str, Any] | None) -> str | None:
    """Return why a ControlNet cannot read maps of a kind for a base; None if it can.

    config: of the ControlNet. base: of the denoiser; None: not known before it is loaded.
    """
    base = base or {}
    fit = FITS.get(str(base.get(CLASS)))
    if fit is not None and config.get(CLASS) != fit.network:
        return f"a ControlNet of another family: a {config.get(CLASS)}, this base takes a {fit.network}"
    for key in () if fit is None else fit.keys:
        both = (each.get(key) for each in (config, base))
        own, needed = (list(each) if isinstance(each, tuple) else each for each in both)
        if own != needed and None not in (own, needed):
            return f"a ControlNet of another family: its {key} is {own}, this base has {needed}"
    for key in MASKS:
        if config.get(key):
            return f"a ControlNet that fills masks ({key} is {config[key]}); use one that reads a map alone"
    if config.get("num_mode") is not None and kind not in UNION_MODES:
        return f"a union that knows no {kind}; its kinds are {', '.join(UNION_MODES)}"
    return None


def width_of(base: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the class of a base's ControlNets and its width, by the denoiser's config; None for no known class."""
    fit = FITS.get(str(base.get(CLASS)))
    return None if fit is None else (fit.network, math.prod(int(base[key]) for key in fit.width))
