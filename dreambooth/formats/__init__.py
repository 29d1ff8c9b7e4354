"""How a result is passed on, by name: `python -m dreambooth export RUN --format NAME`.

A new format: one function that writes a model's files into a folder, and one row here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dreambooth.errors import UserError
from dreambooth.export import SubjectCard
from dreambooth.families import Family
from dreambooth.formats import adapter, original, pipeline
from dreambooth.methods import adapters

__all__ = ["FORMATS", "Format", "find_format", "write_as"]


@dataclass(frozen=True)
class Format:
    """write: puts files into a folder. methods: of which results; None: of all, adapters merged into their base."""

    write: Callable[[Family, SubjectCard, Path], None]
    methods: tuple[str, ...] | None = None


FORMATS: dict[str, Format] = {
    "diffusers": Format(pipeline.write),
    "single-file": Format(original.write),
    "lora": Format(adapter.write_lora, ("lora", "pivotal")),
    "kohya": Format(adapter.write_kohya, ("lora", "pivotal")),
    "embedding": Format(adapter.write_embedding, ("textual_inversion", "pivotal")),
}


def write_as(form: Format, family: Family, card: SubjectCard, folder: Path, dtype: str) -> None:
    """Write what a family has learned. Its live weights are merged where need be, and take `dtype`."""
    if form.methods is None:
        adapters.merge(family)
        card = replace(card, method="full")
    family.pipeline().to(dtype=getattr(torch, dtype))
    form.write(family, card, folder)


def find_format(name: str, method: str) -> Format:
    """A format by name. Raises UserError for an unknown one, and for one that a method's result cannot take."""
    if name not in FORMATS:
        raise UserError(f"--format: {name!r} is not known; one of {', '.join(FORMATS)}")
    methods = FORMATS[name].methods
    if methods is not None and method not in methods:
        possible = ", ".join(each for each, row in FORMATS.items() if row.methods is None or method in row.methods)
        raise UserError(
            f"--format: {name} is for {' and '.join(methods)}, this was trained with {method}; use {possible}"
        )
    return FORMATS[name]
