"""An adapter as a single file, under the names that other tools look for.

diffusers and peft name a LoRA's tensors by module; kohya's scripts, AUTOMATIC1111, SD.Next and ComfyUI by the module's
name with underscores behind "lora_unet_" and "lora_te_", with an alpha beside each, which they divide by the rank.
LyCORIS names LoHa and LoKr in the same way. Of a transformer ComfyUI takes the name with its points behind
"diffusion_model."; the one with underscores it skips without an error. Of some families the
names are those of the authors' code (`NamedByAuthors`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from safetensors.torch import save_file
from torch import Tensor

from dreambooth.exporting import word
from dreambooth.exporting.joined import joined_loras
from dreambooth.exporting.metadata import file_metadata, kohya_version
from dreambooth.exporting.names import link_old_name, weights_file
from dreambooth.exporting.original import original_unet_name
from dreambooth.families import Family
from dreambooth.families.protocols import NamedByAuthors
from dreambooth.methods import adapter_files, adapters
from dreambooth.subject_info import ExportCard, SubjectInfo, write_card

KOHYA_FILE = "kohya.safetensors"  # the name of earlier versions
ModuleName = Callable[[str, Any, str, bool], str]  # network's name and itself, module's name, whether of XL -> prefix


def write_lora(family: Family, card: ExportCard, folder: Path, name: str) -> None:
    """Write the file that diffusers' `load_lora_weights` reads, a learned word beside it, and the subject's card."""
    metadata = file_metadata(family, card, "diffusers", "lora")
    adapter_files.save_lora(family, folder, metadata, weights_file(name))
    link_old_name(folder, weights_file(name), adapter_files.LORA_FILE)
    word.write_beside(family, card, folder, name)
    write_card(card, folder)


def write_kohya(family: Family, card: ExportCard, folder: Path, name: str) -> None:
    """Write one file in kohya's layout, a learned word beside it, and the subject's card."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(family, card, folder / weights_file(name), kohya_state(family))
    link_old_name(folder, weights_file(name), KOHYA_FILE)
    word.write_beside(family, card, folder, name)
    write_card(card, folder)


def write_comfyui(family: Family, card: ExportCard, folder: Path, name: str) -> None:
    """Write one file under the names that ComfyUI takes whole, a learned word beside it, and the subject's card."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(family, card, folder / weights_file(name), comfyui_state(family))
    word.write_beside(family, card, folder, name)
    write_card(card, folder)


def write_file(family: Family, card: SubjectInfo, path: Path, state: dict[str, Tensor]) -> None:
    """Write every adapter into one file. state: its tensors by the names of the format."""
    metadata = (
        file_metadata(family, card, "sd-scripts", "lora") | kohya_version(family) | adapter_files.stated_alpha(family)
    )
    save_file(state, path, metadata=metadata)


def has_dora(family: Family) -> bool:
    """Return whether any adapter has magnitudes, which most readers of kohya's names drop or apply otherwise."""
    layers = [layer for layer in adapters.adapted_layers(family) if isinstance(layer, LoraLayer)]
    return any(len(layer.lora_magnitude_vector) for layer in layers)


def kohya_state(family: Family) -> dict[str, Tensor]:
    """Return every adapted module's tensors by kohya's and LyCORIS' names.

    kohya's scripts have the authors' code, and so their names, where diffusers' are others.
    """
    if not isinstance(family, NamedByAuthors):
        return named_state(family, kohya_name)
    leaves = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight", "dora_scale": "dora_scale"}
    state: dict[str, Tensor] = {}
    for name, own in joined_loras(family, "kohya").items():
        prefix = f"lora_unet_{name.replace('.', '_')}"
        state |= {f"{prefix}.{leaves[leaf]}": tensor for leaf, tensor in own.items()}
        state[f"{prefix}.alpha"] = torch.tensor(float(len(own["lora_A"])))
    return state


def comfyui_state(family: Family) -> dict[str, Tensor]:
    """Return every adapted module's tensors by the names that ComfyUI takes whole.

    Beside diffusers' and authors' names diffusers takes no alpha, so strengths are in the matrices.
    """
    if not isinstance(family, NamedByAuthors):
        return named_state(family, comfyui_name)
    if family.comfyui_prefix == "transformer.":
        if not (parts := adapters.adapted_components(family, LoraConfig)):
            return named_state(family, lambda part_name, part, name, is_xl: f"transformer.{name}")
        state = adapter_files.portable_state(parts["transformer"], "transformer")
        return {f"transformer.{key}": tensor.detach() for key, tensor in map(with_dora_scale, state.items())}
    return {
        f"{family.comfyui_prefix}{name}.{leaf}{'' if leaf == 'dora_scale' else '.weight'}": tensor
        for name, own in joined_loras(family, "comfyui").items()
        for leaf, tensor in own.items()
    }


def is_for_comfyui(family: Family, form: str) -> bool:
    """Return whether ComfyUI takes the names that a format has for a transformer's modules, all of them."""
    if not isinstance(family, NamedByAuthors):
        return form != "kohya"
    return form in ("kohya", "comfyui") or (form == "lora" and family.comfyui_prefix == "transformer.")


def is_for_diffusers(family: Family, form: str) -> bool:
    """Return whether diffusers knows the names that a format has for a transformer's modules."""
    return not isinstance(family, NamedByAuthors) or form not in family.unread_by_diffusers


def with_dora_scale(item: tuple[str, Tensor]) -> tuple[str, Tensor]:
    """Return a tensor of peft's under its name, magnitudes under the one that ComfyUI knows."""
    name, tensor = item
    module, found, _ = name.rpartition(".lora_magnitude_vector")
    return (f"{module}.dora_scale", tensor.reshape(-1, 1).contiguous()) if found else item


def named_state(family: Family, module_name: ModuleName) -> dict[str, Tensor]:
    """Return every adapted module's matrices, alpha and, for DoRA, dora_scale, as LyCORIS names these."""
    parts = adapters.adapted_components(family)
    is_xl = len(family.text_encoders) > 1
    state: dict[str, Tensor] = {}
    for part_name, part in parts.items():
        for name, layer in part.named_modules():
            if isinstance(layer, LoraLayer | LycorisLayer):
                prefix = module_name(part_name, part, name, is_xl)
                own = _lora_state(layer) if isinstance(layer, LoraLayer) else _lycoris_state(layer)
                state |= {f"{prefix}.{key}": tensor.detach().contiguous() for key, tensor in own.items()}
    return state


def kohya_name(part_name: str, part: Any, name: str, is_xl: bool) -> str:
    """Return a module's name; of XL the denoiser's have their original ones, as kohya's scripts write them."""
    if part_name == "transformer":
        return f"lora_unet_{name.replace('.', '_')}"
    if part_name == "unet":
        return f"lora_unet_{(original_unet_name(part, name) if is_xl else name).replace('.', '_')}"
    number = {"text_encoder": "1", "text_encoder_2": "2"}[part_name] if is_xl else ""
    return f"lora_te{number}_text_model_{name.removeprefix('text_model.').replace('.', '_')}"


def comfyui_name(part_name: str, part: Any, name: str, is_xl: bool) -> str:
    """Return a module's name as ComfyUI's `model_lora_keys_unet` knows it; of a UNet that is kohya's."""
    if part_name == "transformer":
        return f"diffusion_model.{name}"
    return kohya_name(part_name, part, name, is_xl)


def _lora_state(layer: LoraLayer) -> dict[str, Tensor]:
    """Return a LoRA's tensors by kohya's leaf names.

    alpha is what alpha / rank has to be to give the layer's scale, whatever rule made that (rsLoRA has another).
    """
    (name,) = layer.active_adapters
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    state = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(layer.scaling[name] * len(down))}
    if name in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[name].weight
        state["dora_scale"] = magnitude.reshape(-1, *[1] * (down.ndim - 1))
    return state


def _lycoris_state(layer: LycorisLayer) -> dict[str, Tensor]:
    """Return a LoHa's or LoKr's tensors by LyCORIS' leaf names.

    LoKr's scale is in its first matrix and alpha the rank, as not every reader scales two whole matrices.
    """
    (name,) = layer.active_adapters
    own: Mapping[str, Any] = {kind: getattr(layer, kind) for kind in layer.adapter_layer_names}
    state: dict[str, Tensor] = {kind: tensors[name] for kind, tensors in own.items() if name in tensors}
    rank, scale = layer.r[name], layer.scaling[name]
    first = next((kind for kind in ("lokr_w1", "lokr_w1_a") if kind in state), None)
    if first is None:
        return state | {"alpha": torch.tensor(float(scale * rank))}
    scaled = {first: (state[first].float() * scale).to(state[first].dtype)} if scale != 1 else {}
    return state | scaled | {"alpha": torch.tensor(float(rank))}
