"""Models in one `.safetensors` of the original layout, as most of them are passed around."""

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open

from dreambooth.errors import ModelError, first_line


def load_single_file_pipeline(pipeline_class: Any, path: Path, config: str | None, **options: Any) -> Any:
    """The file as a pipeline in float32. config: folder or hub id with configs and tokenizers; None: the hub.

    Raises ModelError.
    """
    try:
        return pipeline_class.from_single_file(str(path), config=config, dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, SingleFileComponentError) as error:
        raise ModelError(
            f"{path}: cannot be read as a single-file {pipeline_class.__name__} ({first_line(error)}); "
            "without the network, name a local folder with its configs and tokenizer (model.config, --config)"
        ) from error


def family_of_file(path: Path) -> str:
    """'sdxl' or 'sd', by the names of the weights. Raises ModelError for a file that is damaged or of neither."""
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as .safetensors ({first_line(error)})") from error
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return "sdxl"
    if any(name.startswith("model.diffusion_model.") for name in names):
        return "sd"
    raise ModelError(f"{path}: holds no Stable Diffusion model (no model.diffusion_model.*); is it a LoRA?")
