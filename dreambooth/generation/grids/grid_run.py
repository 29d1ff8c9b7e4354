"""Make the images of a grid, and show them: cells that are there already are not made again."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.errors import UserError
from dreambooth.families import fingerprint
from dreambooth.generation.grids.axes import Axis, Cell
from dreambooth.generation.grids.grid import GridRow, draw_grid
from dreambooth.generation.grids.grid_page import render_page
from dreambooth.generation.images import OnProgress, Progress, generate, make_requests
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.models.loading import Model
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.numbered_files import slug
from dreambooth.generation.prompting.wildcards import Wildcards
from dreambooth.generation.request import make_recipe, read_recipe, recipe_changes, write_png

SHEET, PAGE = "grid.png", "grid.html"
MAX_SHEET = 10_000  # pixels along a side of grid.png; larger cells are shown smaller

Load = Callable[[ModelRef, int | None], Model]  # a model, at an optimizer step (None: its result) -> ready to sample
ScoreCells = Callable[[ModelRef, Model, Sequence[Path]], Sequence[float]]  # images of a model -> the higher the better

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grid:
    """Hold a grid: its axes by place, its cells in order, and the folder that they are written to.

    images: what cells take from others beside what their options hold.
    """

    axes: Sequence[Axis]
    cells: Sequence[Cell]
    folder: Path
    images: FromImages = FromImages()

    def path(self, number: int) -> Path:
        """Return the file of a cell."""
        named = zip((axis.name for axis in self.axes), self.cells[number].values, strict=True)
        label = slug(" ".join(f"{name} {value}" for name, value in named))
        return self.folder / f"{number:03d}-{label}.png"

    @property
    def paths(self) -> list[Path]:
        return [self.path(number) for number in range(len(self.cells))]

    @property
    def size_in_words(self) -> str:
        """Return how many images there are, and how many of them are to be made."""
        num_there = sum(path.is_file() for path in self.paths)
        factors = " x ".join(str(len(axis.values)) for axis in self.axes)
        number = f"{len(self.cells)} image{'' if len(self.cells) == 1 else 's'}"
        product = f"{factors} = {number}" if len(self.axes) > 1 else number
        return f"grid: {product}, {num_there} of them are there already"


def make_grid(
    grid: Grid,
    load: Load,
    wildcards: Wildcards,
    batch_size: int,
    on_progress: OnProgress | None = None,
    score: ScoreCells | None = None,
) -> Iterator[Path]:
    """Make the missing cells, model by model, then the sheet and the page. Yields each path once written.

    load: returns a model; each is asked for once. score: of each cell, which sheet and page then show. Raises UserError
    where another image is in the place of a cell.
    """
    num_missing, done = sum(not path.is_file() for path in grid.paths), 0
    scores: dict[int, float] = {}

    def report(progress: Progress) -> None:
        if on_progress is not None:
            on_progress(replace(progress, images=done + progress.images, num_images=num_missing))

    for (ref, step), numbers in _by_model(grid.cells).items():
        model = load(ref, step)
        requests = make_requests(model, [grid.cells[number].options for number in numbers], wildcards, grid.images)
        weights = fingerprint(model.family)
        wanted = {grid.path(number): request for number, request in zip(numbers, requests, strict=True)}
        for path, request in wanted.items():
            if path.is_file():
                _check_same(path, make_recipe(request, weights))
        missing = {path: request for path, request in wanted.items() if not path.is_file()}
        made = generate(model, list(missing.values()), batch_size, report)
        for path, image in zip(missing, made, strict=True):
            yield write_png(path, image, image.recipe)
        done += len(missing)
        if score is not None:
            scores |= dict(zip(numbers, score(ref, model, list(wanted)), strict=True))
    yield write_png(grid.folder / SHEET, draw_sheet(grid, scores))
    yield render_page(grid.folder / PAGE, grid.axes, grid.cells, grid.paths, scores)


def _by_model(cells: Sequence[Cell]) -> dict[tuple[ModelRef, int | None], list[int]]:
    """Return the numbers of each model's cells; models that differ in their LoRAs alone follow one another."""
    found: dict[tuple[ModelRef, int | None], list[int]] = {}
    bare = [(replace(cell.ref, loras=()), cell.step) for cell in cells]
    for number in sorted(range(len(cells)), key=lambda number: bare.index(bare[number])):
        found.setdefault((cells[number].ref, cells[number].step), []).append(number)
    return found


def _check_same(path: Path, recipe: Mapping[str, Any]) -> None:
    """Raise UserError where a file is not the image of this recipe."""
    if changes := recipe_changes(read_recipe(path), recipe):
        raise UserError(
            f"{path}: made otherwise: {'; '.join(changes)}.\nNothing was overwritten: name another --out, or remove it"
        )


def draw_sheet(grid: Grid, scores: Mapping[int, float] | None = None) -> Image.Image:
    """Return the images of a grid with their values: columns x, rows y, blocks z; smaller where they are too many.

    scores: by cell, written below them.
    """
    columns, others = (grid.axes[:1], grid.axes[1:]) if grid.axes[0].place == 0 else ((), grid.axes)
    num_columns = len(columns[0].values) if columns else 1
    images = [Image.open(path).convert("RGB") for path in grid.paths]
    num_rows = len(images) // num_columns
    most = max(32, MAX_SHEET // max(num_columns, num_rows))
    for image in images:
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    rows = []
    for first in range(0, len(images), num_columns):
        numbers = range(first, first + num_columns)
        values = grid.cells[first].values[len(columns) :]
        title = ", ".join(
            f"{axis.name} {value}" for axis, value in zip(reversed(others), reversed(values), strict=True)
        )
        captions = [_caption(grid, number, bool(columns), scores or {}) for number in numbers]
        rows.append(GridRow(title, [images[number] for number in numbers], captions if any(captions) else ()))
    return draw_grid(rows, f"columns: {columns[0].name}" if columns else "")


def _caption(grid: Grid, number: int, has_columns: bool, scores: Mapping[int, float]) -> str:
    """Return what stands below a cell: the value of its column, whose axis the heading names, and its score."""
    value = grid.cells[number].values[0] if has_columns else ""
    return " ".join(filter(None, [value, f"({scores[number]:.3f})" if number in scores else ""]))
