"""Load a ControlNet beside a base, and run it as diffusers does.

Zhang et al. 2023, arXiv 2302.05543: a copy of the network's first half reads a map, and adds to its skip connections.
Shapes: B batch, C channels, H/W height and width (pixels of the map, latents of the rest).
"""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from huggingface_hub import snapshot_download
from torch import Tensor

from dreambooth.errors import ModelError
from dreambooth.families.conditioning import Conditioning
from dreambooth.families.inspection import LOADING_ERRORS, read_json, reason
from dreambooth.families.loading import check_finite
from dreambooth.families.location import downloaded

FILES = ["config.json", "diffusion_pytorch_model*.safetensors"]
DOWN, MID = "control_down_{}", "control_mid"  # fields of a conditioning: what is added to skip connections and middle


def load_control(name: str, dtype: torch.dtype) -> ControlNetModel:
    """Load a ControlNet's folder or hub id. Raises ModelError for one that is missing, damaged or of another class."""
    path = Path(os.path.expanduser(name))
    folder = path if path.is_dir() else downloaded(name, None, partial(snapshot_download, name, allow_patterns=FILES))
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != ControlNetModel.__name__:
        raise ModelError(f"{name}: its config.json is of {kind}, not of {ControlNetModel.__name__}")
    try:
        network, info = ControlNetModel.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=dtype
        )
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded: {reason(folder, error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder}: {len(missing)} missing keys in the weights, e.g. {missing[0]}")
    check_finite(**{name: network})
    return network.requires_grad_(False).eval()


def run_control(
    network: ControlNetModel,
    map_1CHW: Tensor,
    weight: float,
    noisy_BCHW: Tensor,
    t_B: Tensor,
    inputs: Mapping[str, Any],
) -> Conditioning:
    """Return what a ControlNet adds, times `weight`. map_1CHW: its map in [0, 1]. inputs: what the UNet reads too."""
    map_BCHW = map_1CHW.to(noisy_BCHW).expand(len(noisy_BCHW), -1, -1, -1)
    inputs = dict(inputs)
    if "added_cond_kwargs" in inputs:  # it reads no image prompt
        own = {name: value for name, value in inputs["added_cond_kwargs"].items() if name != "image_embeds"}
        inputs["added_cond_kwargs"] = own
    dtype = next(network.parameters()).dtype
    down, mid = network(
        noisy_BCHW.to(dtype),
        t_B,
        controlnet_cond=map_BCHW.to(dtype),
        conditioning_scale=weight,
        return_dict=False,
        **inputs,
    )
    return Conditioning({**{DOWN.format(number): each for number, each in enumerate(down)}, MID: mid})


def added(parts: list[Conditioning]) -> Conditioning:
    """Return the sum of what several ControlNets add; of none without fields."""
    if not parts:
        return Conditioning({})
    return Conditioning({name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]})


def residuals_of(conditioning: Conditioning) -> dict[str, Any]:
    """Return the arguments of a UNet that ControlNets have added to its conditioning."""
    if MID not in conditioning:
        return {}
    num_down = sum(name.startswith(DOWN.format("")) for name in conditioning)
    down = tuple(conditioning[DOWN.format(number)] for number in range(num_down))
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": conditioning[MID]}
