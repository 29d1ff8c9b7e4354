"""A transformer alone in a `.safetensors`, as people pass it around, beside a pipeline's VAE and text encoders.

Its names are diffusers' or the authors' own; diffusers knows how these are converted.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import SingleFileComponentError

from dreambooth.errors import ModelError, UserError, first_line
from dreambooth.families.inspection import LOADING_ERRORS
from dreambooth.families.loading import load_part
from dreambooth.families.location import find_folder
from dreambooth.families.protocols import Family
from dreambooth.families.single_file import Header
from dreambooth.families.source import ModelSource

Load = Callable[[Path, ModelSource], Family]


def load_transformer(model_class: Any, folder: Path, source: ModelSource) -> Any:
    """Load the transformer of a pipeline's folder, or the single file that the source names. Raises ModelError."""
    if source.transformer is None:
        return load_part(model_class, folder, "transformer", source)
    path = source.transformer
    try:
        found = model_class.from_single_file(str(path), config=str(folder), subfolder="transformer", dtype=source.dtype)
    except (*LOADING_ERRORS, SingleFileComponentError) as error:
        raise ModelError(
            f"{path}: cannot be read as the transformer of {folder} ({first_line(error)}); name its own pipeline in "
            "model.config (--config)"
        ) from error
    if missing := [name for name, weight in found.named_parameters() if weight.is_meta]:
        raise ModelError(f"{path}: no transformer of this pipeline: it lacks {len(missing)} weights, e.g. {missing[0]}")
    found.register_to_config(_name_or_path="")
    return found


def beside(load: Load) -> Callable[[Header, ModelSource], Family]:
    """Return the loader of a family's single files. load: that of its folders."""
    return partial(_load_beside, load)


def _load_beside(load: Load, header: Header, source: ModelSource) -> Family:
    if source.config is None:
        raise UserError(
            f"model.base={header.path}: holds a transformer alone; name a pipeline's folder or hub id that has the VAE "
            "and the text encoders in model.config (--config)"
        )
    folder = find_folder(source.config, None, None)
    return load(folder, replace(source, config=None, transformer=header.path))
