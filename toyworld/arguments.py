"""Check the arguments of `toyworld`'s commands before any work is done."""

from __future__ import annotations

import argparse
from pathlib import Path

from dreambooth.devices import DEVICES
from dreambooth.errors import UserError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def positive(text: str) -> int:
    """Return a whole number of at least 1. Raises ArgumentTypeError, which the parser reports with the option."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def positive_minutes(text: str) -> float:
    """Return minutes above 0. Raises ArgumentTypeError."""
    try:
        minutes = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not minutes > 0:  # which no comparison with nan is
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return minutes


def check_device(name: str) -> None:
    """Raise UserError where PyTorch does not find the device."""
    if not DEVICES[name].is_there():
        raise UserError(f"--device {name}: PyTorch finds no {DEVICES[name].title}; use cpu")


def check_processes(num_processes: int, batch_size: int, device: str) -> None:
    """Raise UserError where a batch, which the processes on a CPU share, is too small for them."""
    if device == "cpu" and batch_size < num_processes:
        raise UserError(f"--batch-size {batch_size}: at least 1 for each of the {num_processes} processes")


def check_has(option: str, folder: Path, *files: str) -> None:
    """Raise UserError where the option's folder lacks one of the files."""
    for name in files:
        if not (folder / name).is_file():
            raise UserError(f"{option} {folder}: {name} is missing there")


def check_image(option: str, file: Path | None) -> None:
    """Raise UserError where the file's ending is none of `IMAGE_ENDINGS`."""
    if file is not None and file.suffix.lower() not in IMAGE_ENDINGS:
        raise UserError(f"{option} {file}: an image's file ends with {', '.join(IMAGE_ENDINGS)}")
