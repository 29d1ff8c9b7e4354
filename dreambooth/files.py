"""Files that are either whole or not there: written beside, flushed to the disk, then renamed over the old one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file in the same folder; when the block ends well it takes the place of `path`.

    A kill, a power cut or a full disk at any moment leaves the old file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Atomically replace a text file (UTF-8)."""
    with atomic_file(path) as file:
        file.write(text.encode())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
