"""Labelled grids of images: prompts above their rows, seeds below their images."""

import importlib.util
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dreambooth.generation.request import GeneratedImage

PADDING = 2  # white pixels around an image, as in `data.images.grid`
MAX_LINES = 3  # of a prompt; what is longer ends with ...
FONT = Path("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")  # knows most alphabets; matplotlib brings it

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def labelled_grid(images: Sequence[GeneratedImage], columns: int) -> Image.Image:
    """Lay out images in rows of `columns`, a new row for each prompt, with prompts and seeds written beside them."""
    rows = rows_by_prompt(images, columns)
    width = max(image.width for image in images) + PADDING
    font = load_font(max(10, min(width // 16, 20)))
    sheet_width = max(len(row) for row in rows) * width + PADDING
    strips = []
    for row, prompt in zip(rows, _row_titles(rows), strict=True):
        lines = _wrapped(prompt, font, sheet_width - 2 * PADDING)
        strips.append(_strip(row, lines, width, sheet_width, font))
    sheet, top = Image.new("RGB", (sheet_width, sum(strip.height for strip in strips)), "white"), 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _strip(
    row: Sequence[GeneratedImage], lines: Sequence[str], width: int, sheet_width: int, font: Font
) -> Image.Image:
    """Return one row, its images `width` pixels apart: lines of text above, each image's seed below."""
    line = int(font.getbbox("Ag")[3]) + 4
    top, height = len(lines) * line + PADDING, max(image.height for image in row)
    strip = Image.new("RGB", (sheet_width, top + height + line), "white")
    draw = ImageDraw.Draw(strip)
    for number, text in enumerate(lines):
        draw.text((PADDING, number * line), text, "black", font)
    for column, image in enumerate(row):
        left = column * width + PADDING
        strip.paste(image, (left, top))
        draw.text((left, top + height), f"seed {image.recipe.get('seed', '')}", "dimgray", font)
    return strip


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
    """Return each row's prompt; none for a row that goes on with the prompt of the one before."""
    prompts = [_prompt(row[0]) for row in rows]
    before = [None, *prompts[:-1]]
    return ["" if prompt == last else prompt for prompt, last in zip(prompts, before, strict=True)]


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Return the lines of a text that fit a width in pixels."""
    if not text:
        return []
    letters = max(1, int(width / (font.getlength(text) / len(text))))
    return textwrap.wrap(text, letters, max_lines=MAX_LINES, placeholder=" ...")


@cache
def load_font(size: int) -> Font:
    """Return a font of `size` pixels that knows more than Latin letters, else Pillow's own."""
    matplotlib = importlib.util.find_spec("matplotlib")
    folders = list(matplotlib.submodule_search_locations or []) if matplotlib is not None else []
    for folder in folders:
        if (Path(folder) / FONT).is_file():
            return ImageFont.truetype(Path(folder) / FONT, size)
    return ImageFont.load_default(size)
