"""Names of exported files: those of the run, as AUTOMATIC1111 and ComfyUI address files by their names."""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path


def weights_file(name: str) -> str:
    """Return the name of a weights file: my-dog gives my-dog.safetensors."""
    return f"{name}.safetensors"


def word_files(name: str, words: Sequence[str]) -> list[str]:
    """Return the files of learned words: my-dog_emb.safetensors; of several words my-dog_emb_sks.safetensors ..."""
    if len(words) == 1:
        return [weights_file(f"{name}_emb")]
    plain = [re.sub(r"[^A-Za-z0-9_-]+", "", word) for word in words]
    if len(set(filter(None, plain))) < len(words):  # nothing left of a word in another script, or the same of two
        plain = [str(number) for number in range(1, len(words) + 1)]
    return [weights_file(f"{name}_emb_{each}") for each in plain]


def link_old_name(folder: Path, file: str, old: str) -> None:
    """Link a file under the name that earlier versions gave it, and that diffusers looks for.

    Does nothing where the file system has no links.
    """
    with contextlib.suppress(OSError):
        os.symlink(file, folder / old)
