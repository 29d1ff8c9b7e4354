"""Captions of images: the run's prompt, or each image's own from a file.

A caption is a template (`prompts`) in which {subject} stands for identifier and class noun. It lies in a `.txt` or
`.caption` beside the image, as captioning tools write it, or in a `metadata.jsonl` of the folder, as the hub's image
data sets have it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.errors import UserError, escaped
from dreambooth.files import read_lines, read_text
from dreambooth.prompt_words import has_words, replace_words
from dreambooth.prompts import Named

if TYPE_CHECKING:
    from dreambooth.randomness import Randomness

METADATA = "metadata.jsonl"  # a line an image: {"file_name": "a.png", "text": "a photo of {subject} on grass"}
SUFFIXES = (".txt", ".caption")  # in small letters or capitals; where an image has several, the first is read


class MissingCaptionError(UserError):
    """Tell of images that have no caption."""


def read_captions(images: Sequence[Path], files: Sequence[Path]) -> list[str]:
    """Return the caption of each image of a folder, of which `files` are the caption files.

    Raises MissingCaptionError naming the images that have none, UserError for a file that is broken.
    """
    listed = {}
    for path in files:
        if path.name == METADATA:
            listed = read_metadata(path)
    beside = files_beside(images, files)
    captions = {path: _read_beside(beside.get(path)) or listed.get(path.name, "") for path in images}
    if missing := [escaped(path.name) for path, caption in captions.items() if not caption]:
        raise MissingCaptionError(
            f"{escaped(images[0].parent)}: no caption for {', '.join(missing)}; write a .txt of the same name beside "
            f'each, or a line {{"file_name": "{missing[0]}", "text": "a photo of {{subject}} ..."}} into {METADATA}'
        )
    return list(captions.values())


def files_beside(images: Sequence[Path], files: Sequence[Path]) -> dict[Path, Path]:
    """Return the caption file that is read for each image that has one: a.txt or a.png.txt for a.png."""
    by_stem: dict[str, Path] = {}
    for path in sorted((path for path in files if path.name != METADATA), key=_rank, reverse=True):
        by_stem[path.stem] = path  # the last one, of the lowest rank, stays
    return {image: by_stem[name] for image in images for name in (image.stem, image.name) if name in by_stem}


def _rank(path: Path) -> tuple[int, str]:
    return SUFFIXES.index(path.suffix.lower()), path.name


def _read_beside(path: Path | None) -> str:
    """Return a caption on one line; empty where there is no file."""
    return "" if path is None else " ".join(read_text(path).split())


def read_metadata(path: Path) -> dict[str, str]:
    """Return captions by file name. Raises UserError for a line that is none."""
    captions = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], entry["text"]
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError("both are strings")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f'{escaped(path)}, line {number}: expected {{"file_name": ..., "text": ...}}, found {line!r}'
            ) from error
        captions[name] = text
    return captions


def is_caption_file(path: Path, names: set[str]) -> bool:
    """Return whether a file in an image folder is a caption. names: of all other files, with and without suffix."""
    return path.name == METADATA or (path.suffix.lower() in SUFFIXES and path.stem in names)


def without_subjects(caption: str, subjects: Sequence[Named]) -> str:
    """Return a caption for any other of the class: "a photo of sks dog" becomes "a photo of dog".

    Where the class noun is nowhere in a caption it stands for the identifier.
    """
    text = caption
    for subject in subjects:
        by = " " if has_words(caption, subject.class_noun) else subject.class_noun or " "
        text = replace_words(text, subject.identifier, by)
    return " ".join(text.split())


@dataclass(frozen=True)
class Captions:
    """Give each sample its prompt, a function of its image and its index in the run.

    texts: one for each image. dropout: fraction of samples whose prompt is empty, which classifier-free guidance needs
    (Ho & Salimans 2022, arXiv 2207.12598; 0.1). shuffle: parts between commas come in a new order each time, but the
    first stays where it is.
    """

    texts: Sequence[str]
    randomness: "Randomness"
    dropout: float = 0.0
    shuffle: bool = False

    def __call__(self, image: int, sample_index: int) -> str:
        if self.dropout and self.randomness.generator("caption/dropout", sample_index).random() < self.dropout:
            return ""
        if not self.shuffle:
            return self.texts[image]
        first, *rest = self.texts[image].split(",")
        order = self.randomness.permutation("caption/shuffle", len(rest), sample_index)
        return ",".join([first, *(rest[i] for i in order)])
