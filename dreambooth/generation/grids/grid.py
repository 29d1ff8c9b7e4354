"""Labelled grids of images: prompts above their rows, seeds below their images.

The PNG of a grid that `write_grid` has written says where its images lie: `cut` takes them out again, as they were.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from dreambooth.data.fonts import Font, load_font
from dreambooth.errors import UserError
from dreambooth.files import atomic_file
from dreambooth.generation.request import GeneratedImage

PADDING = 2  # white pixels around an image, as in `data.images.grid`
MAX_LINES = 3  # of a prompt; a longer one ends with ...
CUT = " ..."  # at the end of a text that has more lines
CELLS = "dreambooth-cells"  # the PNG's text chunk: [left, top, right, bottom] of each image, row by row, as JSON


@dataclass(frozen=True)
class GridRow:
    """Hold images with a title above them and captions below them; where there are none no room is left for them.

    A caption takes as many lines, three at most, as it needs.
    """

    title: str
    images: Sequence[Image.Image]
    captions: Sequence[str] = ()


def labelled_grid(images: Sequence[GeneratedImage], columns: int) -> Image.Image:
    """Lay out images in rows of `columns`, a new row for each prompt, with prompts and seeds written beside them."""
    rows = rows_by_prompt(images, columns)
    titles = _row_titles(rows)
    return draw_grid(
        [
            GridRow(title, row, [f"seed {image.recipe.get('seed', '')}" for image in row])
            for title, row in zip(titles, rows, strict=True)
        ]
    )


def draw_grid(rows: Sequence[GridRow], heading: str = "") -> Image.Image:
    """Return a grid of these rows, below each other, with a heading above them."""
    width = max(image.width for row in rows for image in row.images) + PADDING
    font = load_font(max(10, min(width // 16, 20)))
    grid_width = max(len(row.images) for row in rows) * width + PADDING
    strips = [_strip(row, width, grid_width, font) for row in rows]
    if heading:
        strips.insert(0, _text(_wrapped(heading, font, grid_width - 2 * PADDING), grid_width, font))
    grid, top = Image.new("RGB", (grid_width, sum(strip.height for strip in strips)), "white"), 0
    boxes: list[tuple[int, int, int, int]] = []
    for strip in strips:
        grid.paste(strip, (0, top))
        boxes += [(left, top + above, right, top + below) for left, above, right, below in strip.info.get(CELLS, [])]
        top += strip.height
    grid.info[CELLS] = json.dumps(boxes)
    return grid


def _strip(row: GridRow, width: int, grid_width: int, font: Font) -> Image.Image:
    """Return one row, its images `width` pixels apart, with their boxes in it."""
    title = _text(_wrapped(row.title, font, grid_width - 2 * PADDING), grid_width, font)
    top, height = title.height + PADDING, max(image.height for image in row.images)
    captions = [_wrapped(each, font, width - PADDING) for each in row.captions]
    below = _line_height(font) * max(map(len, captions)) if captions else 2 * PADDING
    strip = Image.new("RGB", (grid_width, top + height + below), "white")
    strip.paste(title, (0, 0))
    draw, boxes = ImageDraw.Draw(strip), []
    for column, image in enumerate(row.images):
        left = column * width + PADDING
        strip.paste(image, (left, top))
        boxes.append((left, top, left + image.width, top + image.height))
        for number, text in enumerate(captions[column] if captions else ()):
            draw.text((left, top + height + number * _line_height(font)), text, "dimgray", font)
    strip.info[CELLS] = boxes
    return strip


def _text(lines: Sequence[str], width: int, font: Font) -> Image.Image:
    """Return lines of text on white."""
    line = _line_height(font)
    image = Image.new("RGB", (width, len(lines) * line), "white")
    draw = ImageDraw.Draw(image)
    for number, text in enumerate(lines):
        draw.text((PADDING, number * line), text, "black", font)
    return image


def _line_height(font: Font) -> int:
    return int(font.getbbox("Ag")[3]) + 4


def write_grid(path: Path, grid: Image.Image) -> None:
    """Write a grid as PNG, whole or not at all, with the boxes of its images."""
    info = PngInfo()
    info.add_text(CELLS, grid.info[CELLS])
    with atomic_file(path) as file:
        grid.save(file, format="PNG", pnginfo=info)


def cut(grid: Image.Image, side: int) -> list[Image.Image]:
    """Return the images of `side` x `side` pixels on a grid, row by row.

    A PNG that does not say where they lie is a plain grid, as earlier versions wrote. Raises UserError where it is
    none of such images.
    """
    boxes = cell_boxes(grid, side)
    if boxes is None:
        from dreambooth.data.images import cells  # which brings torch: who reads newer grids needs none

        return cells(grid, side, PADDING)
    return [grid.crop(box) for box in boxes]


def cell_boxes(grid: Image.Image, side: int) -> list[tuple[int, int, int, int]] | None:
    """Return [left, top, right, bottom] of each image, by the file's head alone; None: it does not say.

    Raises UserError where they are not `side` x `side` pixels.
    """
    if CELLS not in grid.info:
        return None
    try:
        found = json.loads(grid.info[CELLS])
        boxes = [(int(left), int(top), int(right), int(bottom)) for left, top, right, bottom in found]
    except (ValueError, TypeError) as error:
        raise UserError(f"its {CELLS} cannot be read: {error}") from error
    if any((right - left, bottom - top) != (side, side) for left, top, right, bottom in boxes):
        raise UserError(f"its images have not {side} x {side} pixels")
    return boxes


def rows_by_prompt(images: Sequence[GeneratedImage], columns: int) -> list[list[GeneratedImage]]:
    """Return the images in rows of at most `columns`, of one prompt each."""
    rows: list[list[GeneratedImage]] = []
    for image in images:
        is_new = not rows or len(rows[-1]) == columns or _prompt(rows[-1][0]) != _prompt(image)
        if is_new:
            rows.append([])
        rows[-1].append(image)
    return rows


def _prompt(image: GeneratedImage) -> str:
    return str(image.recipe.get("prompt", ""))


def _row_titles(rows: Sequence[Sequence[GeneratedImage]]) -> list[str]:
    """Return each row's prompt; "" for a row of the same prompt as the one before."""
    prompts = [_prompt(row[0]) for row in rows]
    before = [None, *prompts[:-1]]
    return ["" if prompt == last else prompt for prompt, last in zip(prompts, before, strict=True)]


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Return the lines of a text that fit a width in pixels."""
    if not text:
        return []
    letters = max(len(CUT), int(width / (font.getlength(text) / len(text))))
    return textwrap.wrap(text, letters, max_lines=MAX_LINES, placeholder=CUT)
