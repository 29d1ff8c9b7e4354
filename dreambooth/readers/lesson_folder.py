"""The folder that a taught reader is written into: it holds one lesson, and nothing else. Nothing heavy is imported."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from dreambooth.errors import UserError, escaped
from dreambooth.files import read_text, write_text

FILE = "lesson.json"


def digests(paths: Iterable[Path]) -> list[str]:
    """Return a digest of each file's content."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def check_lesson(folder: Path, told: Mapping[str, object]) -> None:
    """Raise UserError for a folder in which another lesson was begun, or which holds something else.

    told: what a lesson is made from, by the option that says it; values are what JSON holds.
    """
    path = folder / FILE
    if path.is_file():
        try:
            begun = dict(json.loads(read_text(path)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{escaped(path)}: cannot be read ({error}); name another --out") from error
        if different := [option for option in told if begun.get(option) != told[option]]:
            what = ", ".join(different)
            raise UserError(
                f"--out {escaped(folder)}: another lesson was begun there (other {what}); name another folder"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--out {escaped(folder)}: holds something else than a lesson; name a new folder")


def write_lesson(folder: Path, told: Mapping[str, object]) -> None:
    """Write what a lesson is made from."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FILE, json.dumps(told) + "\n")
