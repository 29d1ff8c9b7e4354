"""Files of prompts: a text with one a line, or JSON lines with any option for each. Nothing heavy is imported here."""

import json
from pathlib import Path
from typing import Any

from dreambooth.errors import UserError, escaped
from dreambooth.files import read_lines
from dreambooth.generation.inputs.line_options import with_all_options
from dreambooth.generation.options import ImageOptions

JSON_LINES = (".jsonl", ".ndjson")


def read_prompt_file(path: Path, usual: ImageOptions) -> list[ImageOptions]:
    """Return the prompts of a file with their options. usual: the options of a line that does not name them.

    Empty lines and lines that begin with # do not count. Raises UserError for a file that is missing, empty, or has a
    line that cannot be read, with its number.
    """
    if not path.is_file():
        raise UserError(f"--prompts {escaped(path)}: there is no such file")
    read = _read_json if path.suffix in JSON_LINES else _read_text
    found = []
    for number, line in enumerate(map(str.strip, read_lines(path)), start=1):
        if not line or line.startswith("#"):
            continue
        try:
            found.append(with_all_options(usual, read(line)))
        except UserError as error:
            raise UserError(f"{escaped(path)}, line {number}: {error}") from error
    if not found:
        raise UserError(f"--prompts {escaped(path)}: no prompts in it; write one a line")
    return found


def _read_text(line: str) -> dict[str, Any]:
    return {"prompt": line}


def _read_json(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"no JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(found, dict) or "prompt" not in found:
        raise UserError('expected an object with a prompt: {"prompt": "a photo of {subject}", "seed": 3}')
    return found
