"""Write descriptions of images: JSON lines, CSV, images with boxes drawn, and one page that shows all of it."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from dreambooth.data.image_files import load_image
from dreambooth.files import atomic_file, write_text
from dreambooth.readers.describe import Description, draw_boxes

LINES, TABLE, PAGE = "descriptions.jsonl", "descriptions.csv", "index.html"
TEMPLATE = "describe_page.html"
PAGE_SIDE = 320  # pixels of an image on the page


def write_all(folder: Path, found: Sequence[Description], title: str) -> list[Path]:
    """Write JSON lines, a table, the page and its images into a folder, and return the files to tell of."""
    write_text(folder / LINES, "".join(json.dumps(as_json(each), ensure_ascii=False) + "\n" for each in found))
    write_text(folder / TABLE, as_csv(found))
    shown = [_write_image(folder, number, each) for number, each in enumerate(found)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    rows = list(zip(found, shown, strict=True))
    write_text(folder / PAGE, environment.get_template(TEMPLATE).render(rows=rows, title=title))
    return [folder / LINES, folder / TABLE, folder / PAGE]


def as_json(found: Description) -> dict[str, Any]:
    """Return a line's fields; those alone that were asked for. Boxes are left, top, right, bottom in pixels."""
    line: dict[str, Any] = {"file": str(found.path)}
    if found.caption is not None:
        line["caption"] = found.caption
    if found.answers:
        line["answers"] = found.answers
    if found.boxes:
        line["boxes"] = [{"phrase": box.phrase, "box": list(box.pixels(found.size))} for box in found.boxes]
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
    image = draw_boxes(load_image(found.path), found.boxes)
    image.thumbnail((2 * PAGE_SIDE, 2 * PAGE_SIDE))
    name = f"images/{number:05d}.png"
    with atomic_file(folder / name) as file:
        image.save(file, format="PNG")
    return name
