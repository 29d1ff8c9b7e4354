"""Measurements on renderings that no training has shown, as rows of a model card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """Hold one measurement: a mean over unseen renderings, 0 to 1."""

    name: str
    value: float
    gate: float | None = None

    def row(self) -> str:
        least = "–" if self.gate is None else f"{self.gate:.2f}"
        return f"| {self.name} | {self.value:.3f} | {least} |"


def mean(values: Iterable[float]) -> float:
    """Return the mean of some numbers, at least one; of truths the part that is true."""
    found = [float(value) for value in values]
    return sum(found) / len(found)


def table(figures: Sequence[Figure]) -> str:
    """Return the measurements as a Markdown table."""
    head = ["| measured on unseen renderings | mean | at least |", "|---|---|---|"]
    return "\n".join(head + [figure.row() for figure in figures])
