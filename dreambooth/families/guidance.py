"""Classifier-free guidance as model families write it (Ho & Salimans 2022, arXiv 2207.12598, eq. 6).

Both formulas go along the same line, from the unconditional prediction through the conditional one and beyond; they
count differently, and a number from a family's model card means the family's own count. A network into which guidance
was distilled (Meng et al. 2023, arXiv 2210.03142) reads the scale as an input instead.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Hold a family's formula. none: the scale at which the conditional prediction is left as it is.

    combine: (unconditional, conditional prediction, scale) -> guided prediction. is_input: the network reads the scale
    itself, in the field "guidance" of its conditioning, and nothing is combined.
    """

    none: float
    combine: Callable[[Tensor, Tensor, float], Tensor]
    is_input: bool = False

    def is_combined(self, scale: float) -> bool:
        """Return whether a prediction without the prompt is needed beside the one with it."""
        return not self.is_input and scale != self.none


FROM_UNCONDITIONAL = Guidance(1.0, lambda uncond, cond, scale: uncond + scale * (cond - uncond))
BEYOND_CONDITIONAL = Guidance(0.0, lambda uncond, cond, scale: cond + scale * (cond - uncond))
DISTILLED = Guidance(1.0, lambda uncond, cond, scale: cond, is_input=True)
