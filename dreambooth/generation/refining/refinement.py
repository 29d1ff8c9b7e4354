"""Describe how an image is refined: made larger, and its subject redrawn. Nothing heavy is imported here."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dreambooth.errors import UserError

MAX_FACTOR = 8.0
USUAL_STRENGTH = 0.3  # of an upscale
USUAL_DETAIL = 0.4


@dataclass(frozen=True)
class Refinement:
    """Hold what is done to an image once it is made.

    factor: by which both sides are made larger; 1: not. strength: how much is redrawn on the larger image, in tiles,
    from 0 (nothing: resampling alone) to 1; .2 to .4 adds detail and keeps the image. detail: how much of the subject
    is then redrawn, at the model's own resolution; 0: nothing.
    """

    factor: float = 1.0
    strength: float = USUAL_STRENGTH
    detail: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and 1 <= self.factor <= MAX_FACTOR):
            raise UserError(f"upscale={self.factor}: must be from 1 to {MAX_FACTOR:g}; 2 is usual")
        if not 0 <= self.strength <= 1:
            raise UserError(f"upscale_strength={self.strength}: must be from 0 to 1; 0.2 to 0.4 is usual")
        if not 0 <= self.detail <= 1:
            raise UserError(f"detail={self.detail}: must be from 0 to 1; 0.3 to 0.5 is usual")

    def size(self, size: tuple[int, int], multiple: int) -> tuple[int, int]:
        """Return the (width, height) that an image of this size is made as large as, in multiples of so many pixels."""
        width, height = (max(1, round(side * self.factor / multiple)) * multiple for side in size)
        return width, height


def refinement_of(upscale: float | None, strength: float | None, detail: float | None) -> Refinement | None:
    """Return what options ask for, None for nothing. Raises UserError for a value out of its range."""
    if upscale is None and detail is None:
        return None
    return Refinement(
        1.0 if upscale is None else upscale,
        USUAL_STRENGTH if strength is None else strength,
        0.0 if detail is None else detail,
    )


def as_json(refinement: Refinement) -> dict[str, Any]:
    """Return it as a recipe has it."""
    return asdict(refinement)


def from_json(found: Mapping[str, Any] | None) -> Refinement | None:
    """Return that of a recipe. Raises KeyError or TypeError for what `as_json` has not written."""
    if found is None:
        return None
    return Refinement(float(found["factor"]), float(found["strength"]), float(found["detail"]))
