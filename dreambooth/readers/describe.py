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
from dreambooth.readers.protocols import Box, PhraseBox, Reader, Searcher, WordMap
from dreambooth.readers.request import DescribeRequest

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """Hold what was read in one image. answers: by question. likeness: to the text that is searched for, -1 to 1.

    boxes: of what the caption names; None: not asked for. words: of the caption, with the patches each was written
    from; None: not asked for. seen: the part of the image that those cover.
    """

    path: Path
    size: tuple[int, int]  # width, height
    caption: str | None = None
    answers: dict[str, str] = field(default_factory=dict)
    boxes: tuple[PhraseBox, ...] | None = None
    likeness: float | None = None
    words: tuple[WordMap, ...] | None = None
    seen: Box = (0.0, 0.0, 1.0, 1.0)


def describe(
    paths: Sequence[Path],
    request: DescribeRequest,
    reader: Reader | None,
    searcher: Searcher | None = None,
    batch_size: int = 8,
) -> Iterator[list[Description]]:
    """Yield what is read in images, batch by batch, in their order.

    reader: None where nothing but a search is asked for. Raises UserError for an image that cannot be read, and for
    what the reader cannot do.
    """
    return in_batches(paths, batch_size, lambda part: _describe_batch(part, request, reader, searcher))


def ranked(found: Sequence[Description]) -> list[Description]:
    """Return descriptions with the most alike first, where a text was searched for; else in their order."""
    return sorted(found, key=lambda each: -(each.likeness or 0.0))


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
    elif request.attention:
        attended = reader.attend(images, request.options, request.language)
        pairs = zip(found, attended, strict=True)
        found = [replace(each, caption=own.text, words=own.words, seen=own.seen) for each, own in pairs]
    elif request.captions:
        captions = reader.caption(images, request.options, request.language)
        found = [replace(each, caption=text) for each, text in zip(found, captions, strict=True)]
    for question in request.questions:
        answers = reader.answer(images, question, request.options)
        found = [
            replace(each, answers={**each.answers, question: answer})
            for each, answer in zip(found, answers, strict=True)
        ]
    return found
