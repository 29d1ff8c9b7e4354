"""Load a ControlNet beside a base, and carry what it adds to the base's denoiser.

Zhang et al. 2023, arXiv 2302.05543: a copy of some of the network's blocks reads a map, and adds to what they give.
What it adds are fields of a conditioning, named by ControlNet, part of the denoiser and block.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from huggingface_hub import snapshot_download
from torch import Tensor

from dreambooth.controlnets import CLASS
from dreambooth.errors import ModelError
from dreambooth.families.conditioning import Conditioning
from dreambooth.families.inspection import LOADING_ERRORS, read_json, reason
from dreambooth.families.loading import check_finite
from dreambooth.hub import downloaded

FILES = ["config.json", "diffusion_pytorch_model*.safetensors"]
FIELD = "control"
MAP = "map"  # the field of a condition with the map as the ControlNet reads it
Residuals = Mapping[int, Tensor]  # what is added, by block
Spread = Callable[[Residuals], Residuals]  # over the denoiser's blocks, of which a ControlNet has a few


def load_control(name: str, dtype: torch.dtype, network_class: Any = ControlNetModel) -> Any:
    """Load a ControlNet's folder or hub id. Raises ModelError for one that is missing, damaged or of another class."""
    path = Path(os.path.expanduser(name))
    folder = path if path.is_dir() else downloaded(name, None, partial(snapshot_download, name, allow_patterns=FILES))
    kind = read_json(folder / "config.json").get(CLASS)
    if kind != network_class.__name__:
        raise ModelError(f"{name}: its config.json is of {kind}, this base takes a {network_class.__name__}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of diffusers, about parts of its own
            network, info = network_class.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, dtype=dtype
            )
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded: {reason(folder, error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder}: {len(missing)} missing keys in the weights, e.g. {missing[0]}")
    check_finite(**{name: network})
    return network.requires_grad_(False).eval()


# -------------------------------------------------------------------------------- what a ControlNet adds, as fields


def fields_of(part: str, residuals: Residuals | Iterable[Tensor] | None) -> dict[str, Tensor]:
    """Return what one ControlNet adds to a part of the denoiser as fields, by block or in the order of blocks."""
    found = residuals if isinstance(residuals, Mapping) else dict(enumerate(residuals or ()))
    return {f"{part}/{number}": residual for number, residual in found.items()}


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """Return the fields of several ControlNets as one conditioning; of none without fields."""
    return Conditioning(
        {f"{FIELD}/{number}/{name}": part[name] for number, part in enumerate(parts) for name in part.fields}
    )


def residuals_of(conditioning: Conditioning, spreads: Mapping[str, Spread]) -> dict[int, Tensor] | None:
    """Return what all ControlNets add to the denoiser, by block; None where they add nothing.

    spreads: how what belongs to a part comes over the denoiser's blocks, by the part's name.
    """
    found: dict[tuple[str, str], dict[int, Tensor]] = {}
    for name in conditioning:
        field, _, own = name.partition("/")
        if field == FIELD:
            network, part, number = own.split("/")
            if part in spreads:
                found.setdefault((network, part), {})[int(number)] = conditioning[name]
    return _summed([spreads[part](residuals) for (_, part), residuals in found.items()]) or None


def _summed(networks: Sequence[Residuals]) -> dict[int, Tensor]:
    """Return the sum over ControlNets for each block; blocks that get the same have it in the memory once."""
    sums: dict[tuple[int, ...], Tensor] = {}
    found = {}
    for block in sorted({block for residuals in networks for block in residuals}):
        terms = [residuals[block] for residuals in networks if block in residuals]
        key = tuple(map(id, terms))
        if key not in sums:
            sums[key] = terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)
        found[block] = sums[key]
    return found


def block_by_block(residuals: Residuals) -> Residuals:
    """Return what belongs to the denoiser's own blocks as it is."""
    return residuals


def in_runs(residuals: Residuals, num_blocks: int) -> Residuals:
    """Spread over so many blocks: the same for a run of neighbours, runs of equal length but for the last one."""
    length = math.ceil(num_blocks / len(residuals))
    return {block: residuals[block // length] for block in range(num_blocks)}


def in_proportion(residuals: Residuals, num_blocks: int) -> Residuals:
    """Spread over so many blocks: each takes what stands at its place, as a part of the whole."""
    return {block: residuals[int(block / (num_blocks / len(residuals)))] for block in range(num_blocks)}


def in_turn(residuals: Residuals, num_blocks: int) -> Residuals:
    """Spread over so many blocks: one after another, and again from the first."""
    return {block: residuals[block % len(residuals)] for block in range(num_blocks)}
