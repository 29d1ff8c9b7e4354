"""What is said of each picture: the run's prompt, or a caption of its own from a file.

A caption is a template (`prompts`) in which {subject} stands for identifier and class noun. It lies in a `.txt` beside
the picture, as most captioning tools write it, or in a `metadata.jsonl` of the folder, as the hub's image data sets
have it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.errors import UserError
from dreambooth.prompts import Named
from dreambooth.randomness import Randomness

METADATA = "metadata.jsonl"  # a line a picture: {"file_name": "a.png", "text": "a photo of {subject} on grass"}


def read_captions(pictures: Sequence[Path]) -> list[str]:
    """The caption of each picture. Raises UserError naming the pictures that have none, or a file that is broken."""
    listed = _read_metadata(pictures[0].parent / METADATA)
    captions = {path: _read_beside(path) or listed.get(path.name, "") for path in pictures}
    if missing := [path.name for path, caption in captions.items() if not caption]:
        raise UserError(
            f"{pictures[0].parent}: no caption for {', '.join(missing)}; write a .txt of the same name beside each, or "
            f'a line {{"file_name": "{missing[0]}", "text": "a photo of {{subject}} ..."}} into {METADATA}'
        )
    return list(captions.values())


def _read_beside(picture: Path) -> str:
    """Empty where there is no file."""
    path = picture.with_suffix(".txt")
    try:
        return " ".join(path.read_text(encoding="utf-8").split()) if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 ({error})") from error


def _read_metadata(path: Path) -> dict[str, str]:
    """Captions by file name; none where there is no file."""
    captions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], start=1):
        try:
            entry = json.loads(line)
            captions[str(entry["file_name"])] = str(entry["text"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f'{path}, line {number}: expected {{"file_name": ..., "text": ...}}, found {line!r}'
            ) from error
    return captions


def is_caption_file(path: Path, stems: set[str]) -> bool:
    """Whether a file in a folder of pictures is no picture but a caption. stems: of all files in the folder."""
    return path.name == METADATA or (path.suffix == ".txt" and path.stem in stems)


def without_subjects(caption: str, subjects: Sequence[Named]) -> str:
    """What the same picture of any other of the class would be called: "a photo of sks dog" is "a photo of dog"."""
    for subject in subjects:
        caption = caption.replace(subject.identifier, " ")
    return " ".join(caption.split())


@dataclass(frozen=True)
class Captions:
    """The prompt of each sample, a function of its picture and its place in the run.

    texts: one for each picture. dropout: share of samples whose prompt is empty, so that guidance has what it goes away
    from (Ho & Salimans 2022, arXiv 2207.12598; 0.1). shuffle: parts between commas come in a new order each time, but
    the first stays where it is.
    """

    texts: Sequence[str]
    randomness: Randomness
    dropout: float = 0.0
    shuffle: bool = False

    def __call__(self, picture: int, place: int) -> str:
        if self.dropout and self.randomness.generator("caption/dropout", place).random() < self.dropout:
            return ""
        if not self.shuffle:
            return self.texts[picture]
        first, *rest = self.texts[picture].split(",")
        order = self.randomness.permutation("caption/shuffle", len(rest), place)
        return ",".join([first, *(rest[i] for i in order)])
