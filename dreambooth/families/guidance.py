"""Classifier-free guidance as model families write it (Ho & Salimans 2022, arXiv 2207.12598, eq. 6).

Both formulas go along the same line, from the unconditional prediction through the conditional one and beyond; they
count differently, and a number from a family's model card means the family's own count.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Hold a family's formula. none: the scale at which the conditional prediction is left as it is.

    combine: (unconditional, conditional prediction, scale) -> guided prediction.
    """

    none: float
    combine: Callable[[Tensor, Tensor, float], Tensor]


FROM_UNCONDITIONAL = Guidance(1.0, lambda uncond, cond, scale: uncond + scale * (cond - uncond))
BEYOND_CONDITIONAL = Guidance(0.0, lambda uncond, cond, scale: cond + scale * (cond - uncond))
