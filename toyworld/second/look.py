"""The looks of a thing: what its drawing function takes beside the pose."""

from __future__ import annotations

from dataclasses import dataclass

from toyworld.palette import RGB

HEADS = ("round", "square", "pointed")
NUM_EYES = (1, 2, 3)
WORN = ("nothing", "hat", "crown", "scarf", "bow")
NUM_PROPORTIONS = 3  # numbers in 0..1
NUM_ACCESSORIES = 3  # whole numbers in 0..2
Pose = tuple[float, float]  # numbers in 0..1: limbs, tails, fins


@dataclass(frozen=True)
class Look:
    """Hold a thing's looks, the same wherever it is. Head, eyes and worn are those of creatures only."""

    main: RGB
    second: RGB
    accent: RGB
    pattern: str
    head: str
    num_eyes: int
    worn: str
    worn_colour: RGB
    proportions: tuple[float, ...]
    accessories: tuple[int, ...]

    @property
    def colours(self) -> tuple[RGB, RGB]:
        """Return the colours of the main part: body and pattern."""
        return self.main, self.accent


def between(low: float, high: float, fraction: float) -> float:
    return low + (high - low) * fraction
