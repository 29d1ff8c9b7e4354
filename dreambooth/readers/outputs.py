"""Write descriptions of images: JSON lines, CSV, images with boxes or attention, and one page that shows all of it."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL.Image import Image

from dreambooth.data.image_files import load_image
from dreambooth.errors import UserError, escaped
from dreambooth.files import atomic_file, write_text
from dreambooth.readers.describe import Description
from dreambooth.readers.drawing import draw_boxes, draw_word

LINES, TABLE, PAGE = "descriptions.jsonl", "descriptions.csv", "index.html"
TEMPLATE = "describe_page.html"
IMAGES, ATTENTION = "images", "attention"  # folders
OWN_IMAGE = re.compile(r"\d{5,}(-\d{2,})?\.png")  # images/00003.png, attention/00003-01.png
PAGE_SIDE = 320  # pixels of an image on the page


def check_folder(folder: Path, option: str) -> None:
    """Raise UserError where something else than an earlier description stands where files are to be written.

    option: which names the folder, for the message.
    """
    taken = [name for name in (TABLE, PAGE, IMAGES, ATTENTION) if (folder / name).exists()]
    if taken and not (folder / LINES).is_file():
        raise UserError(
            f"{option} {escaped(folder)}: has {taken[0]}, but no {LINES}, so `describe` has not made it; name another"
        )


def take_folder(wanted: Path) -> Path:
    """Make a folder, of the first free name of <wanted>, <wanted>-2, <wanted>-3 and so on, and return it."""
    number, folder = 1, wanted
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")


def write_all(folder: Path, found: Sequence[Description], title: str) -> list[Path]:
    """Write JSON lines, a table, the page and its images into a folder, and return the files to tell of.

    An earlier description that is there goes, with its images.
    """
    earlier = _own_images(folder)
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
    written = {folder / name for _, image, names in rows for name in (image, *names)}
    for path in earlier - written:
        path.unlink()
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
    if found.boxes is not None:
        line["boxes"] = [{"phrase": box.phrase, "box": list(box.pixels(found.size))} for box in found.boxes]
    if found.words is not None:
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
        boxes = "; ".join(f"{box.phrase} {' '.join(map(str, box.pixels(each.size)))}" for box in each.boxes or ())
        likeness = "" if each.likeness is None else f"{each.likeness:.4f}"
        answers = [each.answers.get(question, "") for question in questions]
        writer.writerow([each.path, each.caption or "", *answers, boxes, likeness])
    return text.getvalue()


def _own_images(folder: Path) -> set[Path]:
    """Return the images of an earlier description in a folder; none where its lines are not there."""
    if not (folder / LINES).is_file():
        return set()
    paths = [*(folder / IMAGES).glob("*.png"), *(folder / ATTENTION).glob("*.png")]
    return {path for path in paths if OWN_IMAGE.fullmatch(path.name)}


def _write_image(folder: Path, number: int, found: Description) -> str:
    """Write what the page shows of an image, with its boxes, and return the file's path in the folder."""
    return _write_png(folder, f"{IMAGES}/{number:05d}.png", draw_boxes(load_image(found.path), found.boxes or ()))


def _write_overlays(folder: Path, number: int, found: Description) -> list[str]:
    """Write the attention of each word over the image, and return the files' paths in the folder."""
    image = load_image(found.path) if found.words else None
    names = []
    for place, word in enumerate(found.words or ()):
        assert image is not None
        drawn = draw_word(image, word, found.seen)
        names.append(_write_png(folder, f"{ATTENTION}/{number:05d}-{place:02d}.png", drawn))
    return names


def _write_png(folder: Path, name: str, image: Image) -> str:
    """Write an image as large as the page shows it, and return its path in the folder."""
    image.thumbnail((2 * PAGE_SIDE, 2 * PAGE_SIDE))
    with atomic_file(folder / name) as file:
        image.save(file, format="PNG")
    return name
