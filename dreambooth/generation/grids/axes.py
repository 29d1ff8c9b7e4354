"""The axes of a grid, and its cells: one image for each combination of values. Nothing heavy is imported here.

guidance_scale=3,5,7        the columns; a second axis is the rows, a third one blocks of rows
y=seed:0,1,2                the same with a place: x columns, y rows, z blocks
prompt="a dog, asleep",a cat          commas within quotes
"""

import csv
import difflib
import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from dreambooth.errors import UserError, first_line
from dreambooth.generation.grids.image_axes import IMAGE_AXES
from dreambooth.generation.inputs.from_images import FromImages, as_json
from dreambooth.generation.inputs.image_refs import image_ref
from dreambooth.generation.inputs.init_image import warn_without_white
from dreambooth.generation.inputs.line_options import merged
from dreambooth.generation.models.additions import parse_lora
from dreambooth.generation.models.location import source_of_step
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.options import PARSERS, ImageOptions, with_options
from dreambooth.plugins import Table, active

PLACES = "xyz"
MAX_AXES = 3
WRITTEN = re.compile(r"(?:([xyz])=)?([A-Za-z][\w-]*)[=:](.*)", re.DOTALL)
NONE = "none"  # the value of `lora` for no LoRA, of `quantize`, `vae` and the like for what holds without the option
OF_IMAGES = tuple(name for name in PARSERS if name != "num_images")
OF_MODELS = ("model", *(each.name for each in fields(ModelRef) if each.name not in ("name", "loras", "embeddings")))


@dataclass(frozen=True)
class Axis:
    """Hold an axis. place: 0 for columns, 1 for rows, 2 for blocks. values: as they were typed."""

    place: int
    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """Hold one image of a grid. values: by axis, in the order of places. step: of the run; None: its result."""

    values: tuple[str, ...]
    ref: ModelRef
    options: ImageOptions
    step: int | None = None


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """Return the axes in the order of their places. Raises UserError for one that is none, and for too many."""
    parsed = [_parse(text) for text in texts]
    named = {place for place, _, _ in parsed if place is not None}
    free = (place for place in itertools.count() if place not in named)
    found: list[Axis] = []
    for text, (place, name, values) in zip(texts, parsed, strict=True):
        axis = Axis(next(free) if place is None else place, name, values)
        if any(axis.place == other.place or axis.name == other.name for other in found):
            raise UserError(f"--grid {text}: there is an axis of this name or place already")
        found.append(axis)
    if len(found) > MAX_AXES:
        raise UserError(f"--grid: {len(found)} axes; {MAX_AXES} at most")
    return sorted(found, key=lambda axis: axis.place)


def _parse(text: str) -> tuple[int | None, str, tuple[str, ...]]:
    """Return the place of an axis, None where none is named, its name and its values. Raises UserError."""
    match = WRITTEN.fullmatch(text)
    if match is None:
        raise UserError(f"--grid {text}: write AXIS=V1,V2,..., for example guidance_scale=3,5,7")
    name = match[2].replace("-", "_")
    if name not in AXES:
        near = difflib.get_close_matches(name, AXES, n=1)
        hint = f"; did you mean {near[0]}? " if near else ". "
        raise UserError(f"--grid {text}: unknown axis {name}{hint}Known are {', '.join(AXES)}")
    values = [value.strip() for value in next(csv.reader([match[3]], skipinitialspace=True), [])]
    if not values or not all(values):
        raise UserError(f"--grid {text}: a value is missing; write AXIS=V1,V2,...")
    if len(set(values)) < len(values):
        raise UserError(f"--grid {text}: a value is named twice")
    return PLACES.index(match[1]) if match[1] else None, name, tuple(values)


def with_prompts(axes: Sequence[Axis], prompts: Sequence[str]) -> list[Axis]:
    """Return the axes, with one for the prompts where there are several. Raises UserError for one axis too many."""
    distinct = tuple(dict.fromkeys(prompts))
    if len(distinct) == 1:
        return list(axes)
    if any(axis.name == "prompt" for axis in axes) or len(axes) == MAX_AXES:
        raise UserError(f"--grid: {len(distinct)} prompts need an axis of their own; name one PROMPT, or one axis less")
    return [*axes, Axis(len(axes), "prompt", distinct)]


def axes_of(values: Mapping[str, Sequence[Any]]) -> list[Axis]:
    """Return axes of values by name: columns, rows, blocks. A size is (width, height), pixels. Raises UserError."""
    texts = {name: [_as_text(value) for value in each] for name, each in values.items()}
    return parse_axes([f"{name}={_joined(each)}" for name, each in texts.items()])


def _as_text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _joined(values: Sequence[str]) -> str:
    """Return values as `_parse` reads them: those with commas or quotes in quotes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


def with_images(axes: Sequence[Axis], options: ImageOptions, images: FromImages) -> tuple[ImageOptions, FromImages]:
    """Return the options of all cells, and what these take from images beside what the options hold.

    Where an axis says something of images the options hold all, which a cell then changes or leaves out.
    """
    if not any(axis.name in IMAGE_AXES for axis in axes):
        return options, images
    return replace(options, images=merged(images, options.images)), FromImages()


def cells_of(axes: Sequence[Axis], ref: ModelRef, options: ImageOptions) -> list[Cell]:
    """Return the cells, block by block, row by row. Raises UserError for a value that its axis cannot take.

    Warns of a mask without white.
    """
    found = []
    for backwards in itertools.product(*(axis.values for axis in reversed(axes))):
        values = backwards[::-1]
        cell = Cell(values, ref, replace(options, num_images=1))
        order = list(AXES)  # lora_weight and step say something of the LoRA or the run that another axis may name
        for axis, value in sorted(zip(axes, values, strict=True), key=lambda each: order.index(each[0].name)):
            cell = _with_value(cell, axis.name, value)
        found.append(cell)
    for mask in [value for axis in axes if axis.name == "mask" for value in axis.values]:
        warn_without_white(image_ref(mask))
    return found


def _with_value(cell: Cell, name: str, value: str) -> Cell:
    """Return a cell with the value of one axis. Raises UserError."""
    try:
        return AXES[name](cell, value)
    except UserError as error:
        field, _, problem = str(error).partition(": ")
        if not field.startswith((f"--{name.replace('_', '-')} ", f"{name}=")):
            raise
        raise UserError(f"--grid {name}={value}: {problem}") from error
    except Exception as error:
        if name in AXES.own:
            raise
        raise UserError(f"--grid {name}={value}: {active().named('axes', name)}: {first_line(error)}") from error


def _option_axis(name: str, cell: Cell, value: str) -> Cell:
    return replace(cell, options=with_options(cell.options, {name: value}))


def _image_axis(name: str, cell: Cell, value: str) -> Cell:
    return replace(cell, options=IMAGE_AXES[name](cell.options, value))


def _model_axis(name: str, cell: Cell, value: str) -> Cell:
    changes: dict[str, Any] = {"name": value} if name == "model" else {name: None if value == NONE else value}
    return replace(cell, ref=replace(cell.ref, **changes))


def _lora(cell: Cell, value: str) -> Cell:
    added = () if value == NONE else (parse_lora(value),)
    return replace(cell, ref=replace(cell.ref, loras=(*cell.ref.loras, *added)))


def _lora_weight(cell: Cell, value: str) -> Cell:
    return replace(cell, ref=_with_weight(cell.ref, value))


def _step(cell: Cell, value: str) -> Cell:
    if not value.isdecimal():
        raise UserError(f"--grid step={value}: must be a whole number, an optimizer step of the run")
    source_of_step(Path(cell.ref.name), int(value))
    return replace(cell, step=int(value))


def _with_weight(ref: ModelRef, value: str) -> ModelRef:
    """Return a model whose LoRAs all have this weight."""
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UserError(f"--grid lora_weight={value}: must be a number")
    if not ref.loras:
        raise UserError("--grid lora_weight: there is no LoRA; name one with --lora FILE")
    return replace(ref, loras=tuple(replace(each, weight=weight) for each in ref.loras))


# Put the value of an axis, as it was typed, into a cell; in this order where there are several.
AXES: Table[Callable[[Cell, str], Cell]] = Table(
    "axes",
    {
        **{name: partial(_option_axis, name) for name in OF_IMAGES},
        **{name: partial(_model_axis, name) for name in OF_MODELS},
        "lora": _lora,
        "lora_weight": _lora_weight,
        "step": _step,
        **{name: partial(_image_axis, name) for name in IMAGE_AXES},
    },
)


def folder_name(cells: Sequence[Cell], images: FromImages) -> str:
    """Return a name for these very cells, under which the same command finds them again."""
    text = json.dumps([[_cell_as_json(cell) for cell in cells], as_json(images)], sort_keys=True)
    return f"grid-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _cell_as_json(cell: Cell) -> dict[str, Any]:
    """Return a cell as plain data; what it takes from images only where there is some, as earlier versions had none."""
    found = asdict(replace(cell, options=replace(cell.options, images=None)))
    del found["options"]["images"], found["options"]["style_negative"]
    return found if cell.options.images is None else {**found, "images": as_json(cell.options.images)}
