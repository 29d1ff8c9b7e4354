"""Inspect a base's files before they are trusted: is this a model, and would loading it run code of its own?

Only classes of diffusers and transformers are made from a base, and only numbers are read from its weights
(.safetensors, or `weights_only` of torch). An index that names other code is refused.
"""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
from diffusers import SchedulerMixin
from safetensors import SafetensorError, safe_open

from dreambooth.errors import ModelError, escaped, first_line

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LIBRARIES = ("diffusers", "transformers", None)
# What diffusers, transformers and the libraries below raise on damaged or mismatched files.
LOADING_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


def read_index(folder: Path) -> dict[str, Any]:
    """Read model_index.json. Raises ModelError for one that cannot be read, or names code that is of no library."""
    index = read_json(folder / "model_index.json")
    for part, named in index.items():
        library = named[0] if isinstance(named, list) and len(named) == 2 else None
        if library not in LIBRARIES and not hasattr(diffusers.pipelines, str(library)):
            raise ModelError(
                f"{folder / 'model_index.json'}: {escaped(part)}: {named} is code of its own, which is not run here; "
                "use a base of plain diffusers and transformers classes"
            )
    return index


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file with an object. Raises ModelError."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: {_flaw(path) or f'cannot be read ({first_line(error)})'}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected keys with values, found {type(found).__name__}")
    return found


def check_sampler(path: Path, name: object) -> None:
    """Raise ModelError for a _class_name that is no sampler of diffusers."""
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ModelError(f"{path}: _class_name: {name!r} is no sampler of diffusers; DDIMScheduler, say")


def reason(folder: Path, error: Exception) -> str:
    """Return why files in a folder could not be loaded: which of them are damaged, else the error's first line."""
    return "; ".join(_flaws(folder)) or first_line(error).partition(". If you want to instead")[0]


def check_weights(folder: Path) -> None:
    """Raise ModelError for a folder that is not there, or has a damaged file or no weights, without loading them."""
    if flaws := "; ".join(_flaws(folder)):
        raise ModelError(f"{folder}: cannot be loaded: {flaws}")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: cannot be loaded: it has no weights (.safetensors)")


def _flaws(folder: Path) -> Iterator[str]:
    paths = sorted(folder.glob("*")) if folder.is_dir() else []
    if not paths:
        yield "a file, not a folder" if folder.is_file() else "an empty folder" if folder.is_dir() else "not there"
    for path in paths:
        if flaw := _flaw(path):
            yield f"{path.name}: {flaw}"


def _flaw(path: Path) -> str:
    """Return what is wrong with a file at first sight; empty for nothing."""
    if not os.path.isfile(path):
        return ""
    with open(path, "rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        return "a git-LFS pointer in the place of the file; run `git lfs pull` in its folder"
    if not start:
        return "empty, 0 bytes"
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return "not JSON"
    if path.suffix == ".safetensors":
        try:
            safe_open(path, "pt").__enter__()
        except SafetensorError as error:
            return f"no .safetensors ({first_line(error)})"
    if path.suffix == ".bin" and start.startswith((b"PK", b"\x80")):
        return "not readable as plain weights (weights_only); get the .safetensors of this model"
    return ""
