"""A LoRA as a single file, under the names that other tools look for.

diffusers and peft name a LoRA's tensors by module; kohya's scripts, AUTOMATIC1111, SD.Next and ComfyUI by the module's
name with underscores behind "lora_unet_" and "lora_te_", with an alpha beside each, which they divide by the rank.
"""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from dreambooth.export import word
from dreambooth.export.metadata import file_metadata, kohya_version
from dreambooth.export.original import original_unet_name
from dreambooth.export.subject_info import ExportCard, write_card
from dreambooth.families import Family
from dreambooth.methods import adapters

KOHYA_FILE = "kohya.safetensors"


def write_lora(family: Family, card: ExportCard, folder: Path) -> None:
    """The file that diffusers' `load_lora_weights` reads, a learned word beside it, and the subject's card."""
    adapters.save_lora(family, folder, file_metadata(family, card, "diffusers", "lora"))
    word.write_beside(family, card, folder)
    write_card(card, folder)


def write_kohya(family: Family, card: ExportCard, folder: Path) -> None:
    """One file in kohya's layout, and a learned word beside it."""
    metadata = file_metadata(family, card, "sd-scripts", "lora") | kohya_version(family)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(kohya_state(family), folder / KOHYA_FILE, metadata=metadata)
    word.write_beside(family, card, folder)


def kohya_state(family: Family) -> dict[str, Tensor]:
    """Tensors by kohya's names: lora_down, lora_up, alpha and for DoRA dora_scale of every adapted module."""
    parts = adapters.adapted_components(family)
    is_xl = len(family.text_encoders) > 1
    state: dict[str, Tensor] = {}
    for part_name, part in parts.items():
        for name, layer in part.named_modules():
            if isinstance(layer, LoraLayer):
                prefix = kohya_name(part_name, part, name, is_xl)
                state |= {f"{prefix}.{key}": tensor for key, tensor in _layer_state(layer).items()}
    return state


def kohya_name(part_name: str, part: Any, name: str, is_xl: bool) -> str:
    """Of XL the denoiser's modules have their original names, as kohya's scripts write them."""
    if part_name == "unet":
        return f"lora_unet_{(original_unet_name(part, name) if is_xl else name).replace('.', '_')}"
    number = {"text_encoder": "1", "text_encoder_2": "2"}[part_name] if is_xl else ""
    return f"lora_te{number}_text_model_{name.removeprefix('text_model.').replace('.', '_')}"


def _layer_state(layer: LoraLayer) -> dict[str, Tensor]:
    """alpha is what alpha / rank has to be to give the layer's scale, whatever rule made that (rsLoRA has another)."""
    (name,) = layer.active_adapters
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    state = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(layer.scaling[name] * len(down))}
    if name in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[name].weight
        state["dora_scale"] = magnitude.reshape(-1, *[1] * (down.ndim - 1))
    return {key: tensor.detach().contiguous() for key, tensor in state.items()}
