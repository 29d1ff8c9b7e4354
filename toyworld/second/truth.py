"""Hold what the renderer knows of a picture: box, mask and parts of each thing, and the outlines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from toyworld.second.canvas import DRAWN_SIZE, OVERSAMPLE, PARTS, SIZE, Canvas
from toyworld.second.picture import Picture
from toyworld.second.things import KINDS

STRIDE = 32  # between two things' part numbers
assert len(PARTS) < STRIDE


@dataclass(frozen=True)
class Truth:
    """Hold what is to be seen of each thing, in the order of `Picture.things`. Shadows belong to no thing."""

    masks: np.ndarray  # float32 [N, 64, 64]: the fraction of each pixel that a thing covers
    parts: np.ndarray  # uint8 [64, 64]: 0 where there is no thing, else 1 + index in PARTS
    owners: np.ndarray  # int8 [64, 64]: the number of the thing at the middle of each pixel, -1 where there is none

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Return left, top, right, bottom of each thing's visible part in pixels; right and bottom are outside."""
        return [_box_of(mask > 0.25) for mask in self.masks]

    def part(self, number: int, name: str) -> np.ndarray:
        """Return where part `name` of thing `number` is visible, bool [64, 64]."""
        return (self.owners == number) & (self.parts == 1 + PARTS.index(name))


def _box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return (0, 0, 0, 0)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _draw(picture: Picture, mode: str) -> Image.Image:
    image = Image.new("L", (DRAWN_SIZE, DRAWN_SIZE))
    for i in picture.in_drawing_order():
        thing = picture.things[i]
        canvas = Canvas(image, thing.box(), mode, first_number=1 + STRIDE * i)
        KINDS[thing.spec.class_noun].draw(canvas, thing.spec.look(), thing.pose)
    return image


def truth(picture: Picture) -> Truth:
    """Return masks and parts of the picture's things."""
    drawn = np.asarray(_draw(picture, "parts"))
    owners = (drawn.astype(np.int16) + STRIDE - 1) // STRIDE - 1
    masks = [_reduced(owners == i) for i in range(len(picture.things))]
    middle = slice(OVERSAMPLE // 2, None, OVERSAMPLE)
    parts = np.where(drawn > 0, (drawn.astype(np.int16) - 1) % STRIDE + 1, 0)[middle, middle]
    return Truth(np.stack(masks), parts.astype(np.uint8), owners[middle, middle].astype(np.int8))


def _reduced(mask: np.ndarray) -> np.ndarray:
    return mask.reshape(SIZE, OVERSAMPLE, SIZE, OVERSAMPLE).mean((1, 3), dtype=np.float32)


def edges(picture: Picture) -> Image.Image:
    """Return the things' outlines, white on black: mode L, 64 x 64 pixels."""
    return _draw(picture, "edges").reduce(OVERSAMPLE)
