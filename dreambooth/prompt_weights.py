"""Prompts in pieces with their weights, and blends of them; `prompting/weight_syntax.py` reads them from text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fragment:
    """Hold a piece of a prompt with its weight."""

    text: str
    weight: float


@dataclass(frozen=True)
class WeightedPrompt:
    """Hold a prompt in pieces. is_explicit: a number was written, so that it cannot have been meant as plain text."""

    fragments: tuple[Fragment, ...]
    is_explicit: bool = False

    @property
    def text(self) -> str:
        """Return the prompt without its weights."""
        return "".join(fragment.text for fragment in self.fragments)


@dataclass(frozen=True)
class Blend:
    """Hold prompts and their parts of the blend, which add up to 1; mostly a single prompt."""

    prompts: tuple[WeightedPrompt, ...]
    parts: tuple[float, ...] = (1.0,)

    @property
    def is_plain(self) -> bool:
        """Return whether this is one prompt without weights."""
        return len(self.prompts) == 1 and all(each.weight == 1 for each in self.prompts[0].fragments)

    @property
    def is_explicit(self) -> bool:
        """Return whether a number was written."""
        return len(self.prompts) > 1 or self.prompts[0].is_explicit
