"""Variations of an image: its own noise, turned a little towards another. Nothing heavy is imported here."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dreambooth.errors import UserError


@dataclass(frozen=True)
class Variation:
    """Hold how far an image's noise is turned towards other noise. strength: 0 is the image itself, 1 another one."""

    seed: int
    strength: float

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UserError(f"variation_strength={self.strength}: must be from 0, the image itself, to 1, another one")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must be at least 0")


@dataclass(frozen=True)
class NoiseSeed:
    """Hold what an image's initial noise is a function of: its seed, and variations of it, one after another."""

    seed: int
    variations: tuple[Variation, ...] = ()


def as_json(variations: Sequence[Variation]) -> list[dict[str, Any]]:
    """Return them as a recipe has them."""
    return [asdict(each) for each in variations]


def variations_of(found: Iterable[dict[str, Any]]) -> tuple[Variation, ...]:
    """Return the variations of a recipe. Raises KeyError or TypeError for what `as_json` has not written."""
    return tuple(Variation(int(each["seed"]), float(each["strength"])) for each in found)
