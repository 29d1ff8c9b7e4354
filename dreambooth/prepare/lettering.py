"""Lettering in photos: text that lies over them, and letters that are mirrored.

A photo is read as it is and as its mirror image.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from dreambooth.readers.lettering import TextLine

MIN_LETTERS = 3  # of a line: of fewer many are seen where there are none
MIN_SCORE = 0.85  # of 1, how sure the reader is of a line
SCORE_POWER = 4  # by which sure lines count more: readers see letters of a kind in mirrored ones too
MAX_ON_SUBJECT = 0.5  # of a line's box; what lies on the subject more is the subject's own
MAX_QUOTED = 40  # letters in a message


class TextReader(Protocol):
    """Read lines of text in an image."""

    def __call__(self, image: Image.Image) -> list[TextLine]: ...


@dataclass(frozen=True)
class Lettering:
    """Hold the lines that can be read in a photo, and those that can be read in its mirror image alone.

    The boxes of both are in the photo as it is.
    """

    lines: tuple[TextLine, ...]
    mirrored: tuple[TextLine, ...]


def read_lettering(image: Image.Image, read_text: TextReader) -> Lettering:
    """Return what can be read in a photo. Letters are mirrored where the mirror image is read more surely."""
    lines, other = read_text(image), read_text(ImageOps.mirror(image))
    sure = legible(other)
    if sure and sureness(other) > sureness(lines):
        return Lettering((), tuple(_mirrored(line) for line in sure))
    return Lettering(legible(lines), ())


def sureness(lines: Iterable[TextLine]) -> float:
    """Return the letters of lines, each counting by how sure the reader is of its line."""
    return sum(num_letters([line]) * line.score**SCORE_POWER for line in lines)


def legible(lines: Iterable[TextLine]) -> tuple[TextLine, ...]:
    """Return the lines that are surely text."""
    return tuple(line for line in lines if line.score >= MIN_SCORE and num_letters([line]) >= MIN_LETTERS)


def num_letters(lines: Iterable[TextLine]) -> int:
    """Return how many letters and digits lines have together."""
    return sum(letter.isalnum() for line in lines for letter in line.text)


def beside_subject(lines: Iterable[TextLine], mask: Image.Image | None) -> tuple[TextLine, ...]:
    """Return the lines that do not lie on the subject; all of them where no mask says where it is."""
    if mask is None:
        return tuple(lines)
    white_HW = np.asarray(mask) >= 128
    height, width = white_HW.shape
    found = []
    for line in lines:
        left, top, right, bottom = line.box
        part = white_HW[int(top * height) : int(bottom * height) + 1, int(left * width) : int(right * width) + 1]
        if part.mean() <= MAX_ON_SUBJECT:
            found.append(line)
    return tuple(found)


def quoted(lines: Iterable[TextLine]) -> str:
    """Return the text of lines for a message."""
    text = " ".join(line.text for line in lines)
    return repr(text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED].rstrip()} ...")


def _mirrored(line: TextLine) -> TextLine:
    left, top, right, bottom = line.box
    return TextLine(line.text, line.score, (1 - right, top, 1 - left, bottom))
