"""Text files as editors save them, and files that are either whole or not there: written beside, flushed, renamed."""

import codecs
import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dreambooth.errors import UserError, escaped

LEFTOVER = re.compile(r"\..+\.\d+")  # a temporary name: .<name>.<process id>


@contextlib.contextmanager
def atomic_file(path: Path, keep: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a temporary file in the same folder; when the block ends well it takes the place of `path`.

    A kill, a power cut or a full disk at any moment leaves the old file as it was, there or as `keep`, which it is
    renamed to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = beside_of(path)
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None:
            os.replace(path, keep)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    _sync(path.parent)


def beside_of(path: Path) -> Path:
    """Return the temporary path, in the same folder, of what is to replace a file or folder."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def read_text(path: Path) -> str:
    """Return a text file (UTF-8) without byte order mark, with \\n at the end of its lines.

    Raises UserError where it is not UTF-8, and OSError where it cannot be read.
    """
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        reason = "it is UTF-16" if is_utf16 else f"byte 0x{content[error.start]:02x} in line {line}"
        raise UserError(f"{escaped(path)}: not a text in UTF-8 ({reason}); save it as UTF-8") from error


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, as `read_text` has it. Separators of lines within a text (U+2028) end none."""
    return read_text(path).removesuffix("\n").split("\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file (UTF-8) atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a text file (UTF-8) without a last one that a kill has torn; none where there is no file."""
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it replaces `folder` if the block ends well, and else leaves no trace.

    At no moment is there half a folder under that name; between two renames there is none.
    """
    beside = beside_of(folder)
    old = beside_of(folder.with_name(f"{folder.name}.old"))
    try:
        yield beside
        for path in (*beside.rglob("*"), beside):
            _sync(path)
        if folder.exists():
            os.replace(folder, old)
        os.replace(beside, folder)
        _sync(folder.parent)
    finally:
        for path in (beside, old):
            shutil.rmtree(path, ignore_errors=True)


def leftovers(folder: Path) -> list[Path]:
    """Return what a killed process was making in a folder, if nobody else is writing there."""
    return [path for path in (folder.iterdir() if folder.is_dir() else ()) if LEFTOVER.fullmatch(path.name)]


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a killed process from a folder. No other process may be writing there."""
    for path in leftovers(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk; Windows cannot do that for a folder."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_utf8(*names: object) -> None:
    """Raise UserError for a name that is not UTF-8: JSON, pages and configs cannot hold it."""
    for name in names:
        try:
            str(name).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{escaped(name)}: the name is not UTF-8; rename it") from error
