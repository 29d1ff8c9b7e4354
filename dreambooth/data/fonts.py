"""The font that is written with on images."""

import importlib.util
from functools import cache
from pathlib import Path

from PIL import ImageFont

FONT = Path("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")  # knows most alphabets; matplotlib brings it

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def load_font(size: int) -> Font:
    """Return a font of `size` pixels that knows more than Latin letters, else Pillow's own."""
    matplotlib = importlib.util.find_spec("matplotlib")
    folders = list(matplotlib.submodule_search_locations or []) if matplotlib is not None else []
    for folder in folders:
        if (Path(folder) / FONT).is_file():
            return ImageFont.truetype(Path(folder) / FONT, size)
    return ImageFont.load_default(size)
