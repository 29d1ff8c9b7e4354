"""Load the parts of families: one at a time, straight into their dtype, each flaw reported with its file."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTokenizer, PreTrainedModel

from dreambooth.errors import ModelError, first_line
from dreambooth.families.inspection import LOADING_ERRORS, check_sampler, read_json, reason
from dreambooth.families.location import find_variants
from dreambooth.families.quantization import num_weights, quantize
from dreambooth.families.source import ModelSource

VAE = "vae"  # the folder of the network that is always whole, in float32
SMALL = 100e6  # parameters of a denoiser: the embedded base has 7 million, Stable Diffusion 1.5 has 860


def is_small(network: nn.Module) -> bool:
    """Return whether casts and fused kernels cost a denoiser of this size more than they save."""
    return num_weights(network) < SMALL


def load_part(
    model_class: Any, base: Path, subfolder: str, source: ModelSource, dtype: torch.dtype | None = None
) -> Any:
    """Load one network straight into `dtype` (None: that of the source): it is never whole in a larger one.

    Takes the source's variant of its weights where there is one, else the plain ones. With a quantization it is read in
    the format of its files, which takes no memory of its own, and then quantized layer by layer. Raises ModelError that
    says what is wrong with its files.
    """
    if not source.has_weights:
        return make_blank(model_class, base / subfolder)
    own = source.variant if source.variant in find_variants(base / subfolder) else None
    # Weights of another shape are reported below, by name; diffusers lists them anyway.
    options = {"ignore_mismatched_sizes": True} if issubclass(model_class, PreTrainedModel) else {}
    read_json(base / subfolder / "config.json")
    dtype = dtype or source.dtype
    is_quantized = source.quantize is not None and subfolder != VAE
    read_as = stored_dtype(base / subfolder, dtype) if is_quantized else dtype
    try:
        model, info = model_class.from_pretrained(
            base, subfolder=subfolder, output_loading_info=True, dtype=read_as, variant=own, **options
        )
    except LOADING_ERRORS as error:
        others = find_variants(base / subfolder) - {own}
        hint = f" (model.variant, --variant: it has {', '.join(sorted(others))})" if others else ""
        raise ModelError(f"{base / subfolder}: cannot be loaded{hint}: {reason(base / subfolder, error)}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, info[problem])):
            raise ModelError(
                f"{base / subfolder}: {len(keys)} {problem.replace('_', ' ')} in the weights, e.g. {keys[0]}: they are "
                "not those of its config.json"
            )
    if is_quantized:
        quantize(model, str(source.quantize))
        model.to(dtype)
    if isinstance(model, ConfigMixin):  # else a folder of this machine is written into every file made of it
        model.register_to_config(_name_or_path="")
    return model


def stored_dtype(place: Path, default: torch.dtype) -> torch.dtype:
    """Return the float format of a file, or of a network's folder; the default where there is no .safetensors.

    Raises ModelError.
    """
    formats = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for path in [place] if place.is_file() else sorted(place.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                found = (file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
                return next((formats[each] for each in found if each in formats), default)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read as .safetensors ({first_line(error)})") from error
    return default


def make_blank(model_class: Any, folder: Path) -> Any:
    """Make a network by its config alone, with weights that have a shape and no numbers (torch's meta device)."""
    with torch.device("meta"):
        if issubclass(model_class, PreTrainedModel):
            return model_class(model_class.config_class.from_pretrained(folder)).eval()
        return model_class.from_config(model_class.load_config(folder)).eval()


def load_tokenizer(base: Path, subfolder: str, tokenizer_class: Any = CLIPTokenizer) -> Any:
    """Load a tokenizer, CLIP's where no class is named. Raises ModelError."""
    try:
        return tokenizer_class.from_pretrained(base, subfolder=subfolder)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"{base / subfolder}: tokenizer cannot be loaded: {reason(base / subfolder, error)}"
        ) from error


def load_scheduler_config(base: Path) -> dict[str, Any]:
    """Read the settings of the base's sampler. Raises ModelError."""
    path = base / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    check_sampler(path, config.get("_class_name"))
    return config


def scheduler_config_of(scheduler: Any) -> dict[str, Any]:
    """Return a loaded sampler's config as its file has it; other samplers set what the file leaves open themselves.

    diffusers lists such settings in the config, and would undo a later change of them.
    """
    left_open = scheduler.config.get("_use_default_values", [])
    given = {key: value for key, value in scheduler.config.items() if key not in left_open and not key.startswith("_")}
    return {**given, "_class_name": type(scheduler).__name__}


def check_finite(**parts: nn.Module) -> None:
    """Raise ModelError naming the part and the weight that is not finite.

    A sum takes a twentieth of the time of looking at each number, 1 s for Stable Diffusion 1.5, and is not finite where
    one of them is not; that it overflows is no proof.
    """
    for part, network in parts.items():
        for name, parameter in network.named_parameters():
            if parameter.is_meta:  # there are no numbers
                continue
            if not bool(torch.isfinite(parameter.sum())) and not bool(torch.isfinite(parameter).all()):
                raise ModelError(f"{part}: weight {name} holds numbers that are not finite")
