"""The name that a reader was taught, in a file beside its weights. Nothing heavy is imported here."""

import json
from pathlib import Path

from dreambooth.errors import ModelError
from dreambooth.files import read_text, write_text

FILE = "subject.json"


def write_taught(folder: Path, name: str, class_noun: str) -> None:
    """Write what a reader calls its subject."""
    write_text(folder / FILE, json.dumps({"name": name, "class_noun": class_noun}) + "\n")


def read_taught(model: str) -> str:
    """Return what a reader calls its subject; "" for one that was taught none. Raises ModelError for a damaged file."""
    path = Path(model) / FILE
    if not path.is_file():
        return ""
    try:
        return str(json.loads(read_text(path))["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read ({error!r}); teach the reader again") from error
