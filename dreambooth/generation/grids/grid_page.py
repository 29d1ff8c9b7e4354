"""The page of a grid: all its images, and a filter for each axis. One HTML file beside them, nothing fetched."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from dreambooth.files import write_text
from dreambooth.generation.grids.axes import Axis, Cell
from dreambooth.generation.request import read_recipe

TEMPLATE = "grid_page.html"


def render_page(
    path: Path, axes: Sequence[Axis], cells: Sequence[Cell], images: Sequence[Path], scores: Mapping[int, float]
) -> Path:
    """Write the page of these images, which lie in its folder, and return where it is. scores: by number of a cell."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    shown = [
        {"file": image.name, "values": cell.values, "recipe": read_recipe(image), "score": scores.get(number)}
        for number, (cell, image) in enumerate(zip(cells, images, strict=True))
    ]
    write_text(path, environment.get_template(TEMPLATE).render(axes=axes, cells=shown))
    return path
