"""Custom diffusion: only the keys and values through which the denoiser reads the prompt.

Kumari et al. 2023 (arXiv 2212.04488): what changes most in fine-tuning are `to_k` and `to_v` of the cross-attention,
some 5 % of Stable Diffusion; training them alone nearly suffices. peft keeps the originals beside the copies.
"""

from pathlib import Path
from typing import Any, cast

from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dreambooth.errors import ModelError, UserError, first_line
from dreambooth.families import Family, components
from dreambooth.methods import adapters
from dreambooth.methods.base import MethodSettings

WEIGHTS_FILE = "cross_attention.safetensors"
READERS = ("attn2.to_k", "attn2.to_v")  # attn2 attends to the prompt, attn1 to the image


def attach(family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    """Freeze the family, and put trainable float32 copies over `READERS` of the denoiser.

    Raises UserError for a denoiser that has none.
    """
    adapters.freeze(family, settings.base_dtype)
    denoiser = family.denoiser
    readers = [name for name, _ in denoiser.named_modules() if name.endswith(READERS)]
    if not readers:
        raise UserError(
            "method.name=custom_diffusion: trains the cross-attention of a UNet, which this base has not; use lora, "
            "lokr or full"
        )
    for name in readers:
        wrapper = ModulesToSaveWrapper(denoiser.get_submodule(name), adapters.ADAPTER)
        wrapper.set_adapter(adapters.ADAPTER)
        denoiser.set_submodule(name, wrapper)
    return adapters.prepare_trainable({"denoiser": denoiser})


def save(family: Family, folder: Path) -> None:
    """Write the trained weights, named as in the pipeline: "unet.down_blocks ... attn2.to_k.weight"."""
    tensors = {
        f"{part_name}.{name}.weight": cast(Any, wrapper).modules_to_save[adapters.ADAPTER].weight.detach()
        for part_name, part in components(family).items()
        for name, wrapper in part.named_modules()
        if isinstance(wrapper, ModulesToSaveWrapper)
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE)


def load(family: Family, folder: Path) -> None:
    """Load the trained weights into a base. Raises ModelError for a file that is missing or does not fit it."""
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
        for part_name, part in components(family).items():
            prefix = f"{part_name}."
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            if unknown := part.load_state_dict(own, strict=False).unexpected_keys:
                raise ModelError(f"{path}: this base has no {unknown[0]}; it was trained on another")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be loaded into this base: {first_line(error)}") from error
