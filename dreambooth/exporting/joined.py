"""LoRAs by the names of a model's authors, where one matrix may be what diffusers has as several.

The matrices that are joined stand one below another. Their LoRAs are joined to one whose rank is the sum of theirs:

    [B1 A1]   [B1  0]
    [B2 A2] = [ 0 B2] [A1; A2]

Strengths are in B, so that alpha is the rank. Shapes: R rank, I inputs, O outputs.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from torch import Tensor

from dreambooth.errors import UserError
from dreambooth.families.protocols import NamedByAuthors
from dreambooth.methods.adapters import ADAPTER
from dreambooth.methods.joined_files import with_swapped_rows


def joined_loras(family: NamedByAuthors, form: str) -> dict[str, dict[str, Tensor]]:
    """Return a LoRA's tensors by the authors' names of the matrices that it adapts, each as lora_A, lora_B, dora_scale.

    Raises UserError for what these names have no room for. form: the export format.
    """
    layers = {
        name: module for name, module in family.denoiser.named_modules() if isinstance(module, LoraLayer | LycorisLayer)
    }
    found = {}
    for original, members in family.original_modules().items():
        own = [layers.pop(name, None) for name in members]
        if any(layer is not None for layer in own):
            joined = _joined([family.denoiser.get_submodule(name) for name in members], own, form)
            found[original] = with_swapped_rows(joined) if members[0] in family.swapped_modules() else joined
    if layers:
        raise UserError(f"--format {form}: {min(layers)} has no name in it; use lora")
    return found


def _joined(modules: list[Any], layers: list[Any], form: str) -> dict[str, Tensor]:
    """Return the LoRA of matrices one below another. layers: None where one is not adapted."""
    if not all(isinstance(layer, LoraLayer) for layer in layers if layer is not None):
        raise UserError(f"--format {form}: of this family has room for a LoRA alone; use diffusers, or lora")
    adapted = [layer for layer in layers if layer is not None]
    downs = [layer.lora_A[ADAPTER].weight for layer in adapted]
    ups = [
        downs[0].new_zeros(module.out_features, 0) if layer is None else _scaled_up(layer)
        for module, layer in zip(modules, layers, strict=True)
    ]
    state = {"lora_A": torch.cat(downs), "lora_B": torch.block_diag(*ups)}
    magnitudes = [layer.lora_magnitude_vector for layer in adapted]
    if any(ADAPTER in own for own in magnitudes):
        if len(adapted) < len(layers):
            raise UserError(f"--format {form}: a DoRA of a part of query, key and value has no place in it; use lora")
        state["dora_scale"] = torch.cat([own[ADAPTER].weight for own in magnitudes]).reshape(-1, 1)
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def _scaled_up(layer: Any) -> Tensor:
    """Return B times its strength, [O, R]."""
    up = layer.lora_B[ADAPTER].weight
    return (up.float() * layer.scaling[ADAPTER]).to(up.dtype)
