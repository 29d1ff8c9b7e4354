"""Describe many images: captions, answers, boxes, likeness to a text, in batches that halve where memory ends."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from dreambooth.data.image_files import load_image
from dreambooth.devices import release_memory
from dreambooth.readers.protocols import PhraseBox, Reader, Searcher
from dreambooth.readers.request import DescribeRequest

Item = TypeVar("Item")
Result = TypeVar("Result")
Shown = Callable[[int, int], None]  # images done, images of all

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """Hold what was read in one image. answers: by question. likeness: to the text that is searched for, -1 to 1."""

    path: Path
    size: tuple[int, int]  # width, height
    caption: str | None = None
    answers: dict[str, str] = field(default_factory=dict)
    boxes: tuple[PhraseBox, ...] = ()
    likeness: float | None = None


def describe(
    paths: Sequence[Path],
    request: DescribeRequest,
    reader: Reader | None,
    searcher: Searcher | None = None,
    batch_size: int = 8,
    shown: Shown = lambda done, of: None,
) -> list[Description]:
    """Return what is read in images, in their order; where a text is searched for, the most alike first.

    reader: None where nothing but a search is asked for. Raises UserError for an image that cannot be read, and for
    what the reader cannot do.
    """
    found: list[Description] = []
    for batch in in_batches(paths, batch_size, lambda part: _describe_batch(part, request, reader, searcher)):
        found += batch
        shown(len(found), len(paths))
    return sorted(found, key=lambda each: -(each.likeness or 0.0)) if searcher is not None else found


def in_batches(
    items: Sequence[Item], batch_size: int, work: Callable[[Sequence[Item]], list[Result]]
) -> Iterator[list[Result]]:
    """Yield the work's result on each batch; where the device's memory ends, the batches halve from there on."""
    first = 0
    while first < len(items):
        part = items[first : first + batch_size]
        try:
            result = work(part)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            batch_size = len(part) // 2
            logger.warning(f"{len(part)} images at a time do not fit the device's memory; going on with {batch_size}")
            release_memory()
            continue
        yield result
        first += len(part)


def _describe_batch(
    paths: Sequence[Path], request: DescribeRequest, reader: Reader | None, searcher: Searcher | None
) -> list[Description]:
    images = [load_image(path) for path in paths]
    found = [Description(path, image.size) for path, image in zip(paths, images, strict=True)]
    if reader is not None:
        found = _read_batch(images, found, request, reader)
    if searcher is not None:
        likeness = searcher.likeness(images, request.search)
        found = [replace(each, likeness=value) for each, value in zip(found, likeness, strict=True)]
    return found


def _read_batch(
    images: Sequence[Image.Image], found: list[Description], request: DescribeRequest, reader: Reader
) -> list[Description]:
    """Return the descriptions with captions, boxes and answers."""
    if request.ground:
        grounded = reader.ground(images, request.options, request.language)
        found = [replace(each, caption=own.text, boxes=own.boxes) for each, own in zip(found, grounded, strict=True)]
    elif request.captions:
        captions = reader.caption(images, request.options, request.language)
        found = [replace(each, caption=text) for each, text in zip(found, captions, strict=True)]
    for question in request.questions:
        answers = reader.answer(images, question, request.options)
        pairs = zip(found, answers, strict=True)
        found = [replace(each, answers={**each.answers, question: answer}) for each, answer in pairs]
    return found


def draw_boxes(image: Image.Image, boxes: Sequence[PhraseBox]) -> Image.Image:
    """Return the image with the boxes of its phrases and their words, enlarged to 256 pixels where it is smaller."""
    from PIL import ImageDraw, ImageFont

    factor = max(1, -(-256 // max(image.size)))
    drawn = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    draw, line = ImageDraw.Draw(drawn), max(2, min(drawn.size) // 200)
    font = ImageFont.load_default(max(10, min(drawn.size) // 28))
    for number, box in enumerate(boxes):
        colour = COLOURS[number % len(COLOURS)]
        left, top, right, bottom = box.pixels(drawn.size)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line)
        label = draw.textbbox((left + line, top + line), box.phrase, font=font)
        draw.rectangle(label, fill=colour)
        draw.text((left + line, top + line), box.phrase, fill="black", font=font)
    return drawn


# Told apart on any photo, and black letters can be read on each.
COLOURS = ("#ffd400", "#00d0ff", "#ff8cc6", "#9be564", "#ffa64d", "#c9a7ff")
