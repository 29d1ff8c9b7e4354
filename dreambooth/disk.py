"""Whether there is a place to write to, before anything is computed; and what to say where there is none after all."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from dreambooth.errors import UserError, escaped, first_line

IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
IS_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
PROBE_BYTES = 4096
MIB = 2**20
GIB = 2**30


def size_in_words(num_bytes: int) -> str:
    """Return a size for people: "38.7 GiB", "412 MiB", "9 KiB"."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.1f} GiB"
    return f"{num_bytes / MIB:.0f} MiB" if num_bytes >= MIB else f"{num_bytes / 1024:.0f} KiB"


def check_writable(folder: Path, option: str, num_bytes: int = 0) -> None:
    """Raise UserError where files cannot be written to a folder, which need not be there yet, or find no room on it.

    option: which names the folder, for the message. num_bytes: that are to be written.
    """
    named = f"{option} {escaped(folder)}"
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise UserError(f"{named}: {escaped(nearest)} is a file; name a folder")
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        problem = problem_of(OSError(error.errno, error.strerror), nearest)  # and not of the probe's file
        subject = option if nearest == folder else f"{named}:"
        raise UserError(f"{subject} {problem}; name another folder") from error
    free = shutil.disk_usage(nearest).free
    if num_bytes > free:
        need = f"{num_bytes / MIB:,.0f} MiB are to be written, {free / MIB:,.0f} MiB are free on this disk"
        raise UserError(f"{named}: {need}; free some, or name a folder on another disk")


@contextlib.contextmanager
def translate_write_errors(folder: Path, option: str) -> Iterator[None]:
    """Raise UserError in place of errors of the disk or of permissions within; others pass.

    folder, option: as in `check_writable`.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if error_number(error) not in (*IS_FULL, *IS_REFUSED):
            raise
        raise UserError(f"{option} {problem_of(error, folder)}; mend that, or name another folder") from error


def error_number(error: Exception) -> int | None:
    """Return the system's number of an error; safetensors has it in its text alone."""
    if isinstance(error, OSError):
        return error.errno
    code = re.search(r"os error (\d+)", str(error))
    return int(code[1]) if code else None


def problem_of(error: Exception, folder: Path) -> str:
    """Return which file, or else folder, cannot be written, and why."""
    name = escaped(getattr(error, "filename", None) or folder)
    if error_number(error) in IS_FULL:
        return f"{name}: the disk is full ({first_line(error)})"
    return f"{name}: cannot be written to ({getattr(error, 'strerror', None) or first_line(error)})"
