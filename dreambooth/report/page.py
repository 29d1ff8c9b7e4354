"""The content of a report as one HTML file: images and plots inside, nothing fetched, no script."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from dreambooth.report import plots, words
from dreambooth.report.content import Content
from dreambooth.report.curves import Panel

FOLDER = Path(__file__).parent
SMALL = 128  # pixels; up to here an image is a toy's: kept as it is and shown in hard squares
QUALITY = 88  # of WebP


def render(content: Content) -> str:
    """Return the page as HTML; the same content gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fitted": fitted, "data_uri": data_uri, "duration": words.duration, "memory": words.memory}
    environment.filters |= {"tone": words.tone, "sentence": words.sentence}
    return environment.get_template("template.html").render(run=content, plot=_plotter(content), small=SMALL)


def _plotter(content: Content) -> Callable[[Panel, str], Markup]:
    def plot(panel: Panel, name: str) -> Markup:
        return Markup(plots.svg(panel, name, content.last_step, content.best_step))  # escaped by its own writer

    return plot


def fitted(image: Image.Image, most: int) -> Image.Image:
    """Return the image with no side longer than `most` pixels; 512 take some 60 KB."""
    smaller = image.copy()
    smaller.thumbnail((most, most), Image.Resampling.LANCZOS)
    return smaller


def data_uri(image: Image.Image) -> str:
    """Return the image as text for `src`: lossless if small, else WebP."""
    file = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(file, format="PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    image.save(file, format="WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
