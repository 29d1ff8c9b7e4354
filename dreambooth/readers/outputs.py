"""Write descriptions of images: JSON lines, CSV, images with boxes or attention, and one page that shows all of it."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL.Image import Image

from dreambooth.data.image_files import load_image
from dreambooth.files import atomic_file, write_text
from dreambooth.readers.describe import Description
from dreambooth.readers.drawing import draw_boxes, draw_word

LINES, TABLE, PAGE = "descriptions.jsonl", "descriptions.csv", "index.html"
TEMPLATE = "describe_page.html"
PAGE_SIDE = 320  # pixels of an image on the page


def write_all(folder: Path, found: Sequence[Description], title: str) -> list[Path]:
    """Write JSON lines, a table, the page and its images into a folder, and return the files to tell of."""
    overlays = [_write_overlays(folder, number, each) for number, each in enumerate(found)]
    lines = [as_json(each, names) for each, names in zip(found, overlays, strict=True)]
    write_text(folder / LINES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_text(folder / TABLE, as_csv(found))
    shown = [_write_image(folder, number, each) for number, each in enumerate(found)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    rows = list(zip(found, shown, overlays, strict=True))
    write_text(folder / PAGE, environment.get_template(TEMPLATE).render(rows=rows, title=title))
    return [folder / LINES, folder / TABLE, folder / PAGE]


def as_json(found: Description, overlays: Sequence[str] = ()) -> dict[str, Any]:
    """Return a line's fields; those alone that were asked for. Boxes are left, top, right, bottom in pixels.

    overlays: the file of each word's attention, in the order of `found.words`.
    """
    line: dict[str, Any] = {"file": str(found.path)}
    if found.caption is not None:
        line["caption"] = found.caption
    if found.answers:
        line["answers"] = found.answers
    if found.boxes:
        line["boxes"] = [{"phrase": box.phrase, "box": list(box.pixels(found.size))} for box in found.boxes]
    if found.words:
        pairs = zip(found.words, overlays, strict=True)
        line["attention"] = [{"word": own.word, "share": round(own.share, 4), "overlay": name} for own, name in pairs]
    if found.likeness is not None:
        line["likeness"] = round(found.likeness, 4)
    return line


def as_csv(found: Sequence[Description]) -> str:
    """Return a table with one row an image, and a column for each question."""
    questions = list(dict.fromkeys(question for each in found for question in each.answers))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "caption", *questions, "boxes", "likeness"])
    for each in found:
        boxes = "; ".join(f"{box.phrase} {' '.join(map(str, box.pixels(each.size)))}" for box in each.boxes)
        likeness = "" if each.likeness is None else f"{each.likeness:.4f}"
        answers = [each.answers.get(question, "") for question in questions]
        writer.writerow([each.path, each.caption or "", *answers, boxes, likeness])
    return text.getvalue()


def _write_image(folder: Path, number: int, found: Description) -> str:
    """Write what the page shows of an image, with its boxes, and return the file's path in the folder."""
    return _write_png(folder, f"images/{number:05d}.png", draw_boxes(load_image(found.path), found.boxes))


def _write_overlays(folder: Path, number: int, found: Description) -> list[str]:
    """Write the attention of each word over the image, and return the files' paths in the folder."""
    image = load_image(found.path) if found.words else None
    names = []
    for place, word in enumerate(found.words):
        assert image is not None
        names.append(_write_png(folder, f"attention/{number:05d}-{place:02d}.png", draw_word(image, word, found.seen)))
    return names


def _write_png(folder: Path, name: str, image: Image) -> str:
    """Write an image as large as the page shows it, and return its path in the folder."""
    image.thumbnail((2 * PAGE_SIDE, 2 * PAGE_SIDE))
    with atomic_file(folder / name) as file:
        image.save(file, format="PNG")
    return name
