"""Weights of other tools as tensors by name: .safetensors, or numbers alone of a .pt or .bin."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dreambooth.errors import ModelError, first_line
from dreambooth.families.inspection import LOADING_ERRORS

PICKLED = (".pt", ".bin")


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a file holds, by name, and a .safetensors' metadata.

    Of a .pt or .bin only numbers are read, and containers of them: no code in it is run. Raises ModelError.
    """
    if path.suffix in PICKLED:
        return _read_pickled(path), {}
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as .safetensors: {first_line(error)}") from error


def _read_pickled(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):  # of the first textual inversions, 2022
            found = torch.load(path, map_location="cpu", weights_only=True)
    except LOADING_ERRORS as error:
        raise ModelError(f"{path}: cannot be read as plain weights (weights_only): {first_line(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: holds no weights by name")
    return found
