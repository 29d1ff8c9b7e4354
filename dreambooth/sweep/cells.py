"""The cells of a sweep: one run for each subject, point of the settings and seed."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dreambooth.config import as_overrides
from dreambooth.sweep.axes import Axis

MAX_NAME = 120  # characters of a cell's name, which is a folder's


@dataclass(frozen=True)
class Subject:
    """Hold one subject by name. settings: its keys of the section `subject`, with their values."""

    name: str
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Variant:
    """Hold a named set of settings; those of a sweep without variants have no name and no settings."""

    name: str = ""
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Point:
    """Hold one choice of all settings: a variant, and a value on each axis."""

    variant: Variant = Variant()
    values: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Return the values by key; an axis goes over the variant."""
        return {**dict(self.variant.settings), **dict(self.values)}

    @property
    def name(self) -> str:
        """Return it in words: "lora, lr 0.001"; keys by their last part where that is enough."""
        lasts = [key.split(".")[-1] for key, _ in self.values]
        shown = [last if lasts.count(last) == 1 else key for (key, _), last in zip(self.values, lasts, strict=True)]
        parts = [f"{name}={shown_value(value)}" for name, (_, value) in zip(shown, self.values, strict=True)]
        return ",".join([*([self.variant.name] if self.variant.name else []), *parts]) or "config"


@dataclass(frozen=True)
class Cell:
    """Hold one run of a sweep. subject, seed: None: the config's own. name: of its run folder."""

    name: str
    point: Point
    subject: Subject | None = None
    seed: int | None = None

    @property
    def subject_name(self) -> str:
        return "" if self.subject is None else self.subject.name

    @property
    def overrides(self) -> list[str]:
        """Return what goes over the sweep's config, as `section.key=value` each."""
        subject = {} if self.subject is None else {f"subject.{key}": text for key, text in self.subject.settings}
        seed = {} if self.seed is None else {"run.seed": self.seed}
        return as_overrides({**subject, **self.point.settings, **seed})


def shown_value(value: Any) -> str:
    """Return a value as the names of cells have it: 0.001, true, attention+projections."""
    if isinstance(value, list):
        return "+".join(map(shown_value, value))
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def grid(variants: Sequence[Variant], axes: Sequence[Axis]) -> list[Point]:
    """Return every combination of a variant with a value on each axis."""
    return [
        Point(variant, tuple(zip([axis.key for axis in axes], values, strict=True)))
        for variant in variants
        for values in itertools.product(*[axis.values for axis in axes])
    ]


def cells_of(points: Iterable[Point], subjects: Sequence[Subject], seeds: Sequence[int]) -> list[Cell]:
    """Return the cells of some points: first seeds first, so that a sweep that is cut short has something of all."""
    cells: list[Cell] = []
    taken: set[str] = set()
    every_seed: Sequence[int | None] = seeds or [None]
    every_subject: Sequence[Subject | None] = subjects or [None]
    for seed, point, subject in itertools.product(every_seed, list(points), every_subject):
        cell = Cell(_cell_name(point, subject, seed, taken), point, subject, seed)
        taken.add(cell.name.casefold())
        cells.append(cell)
    return cells


def _cell_name(point: Point, subject: Subject | None, seed: int | None, taken: set[str]) -> str:
    """Return a name that every file system takes, and that no other cell has."""
    words = [
        *([] if subject is None else [subject.name]),
        *([point.name] if point.settings or point.variant.name or subject is None else []),
        *([] if seed is None else [f"seed={seed}"]),
    ]
    text = ",".join(words)
    name = re.sub(r"[^\w.,=+-]+", "-", text).strip("-.")
    if len(name) <= MAX_NAME and name.casefold() not in taken and name:
        return name
    digest = hashlib.sha256(json.dumps([text, point.settings], default=str).encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9]}-{digest}"
