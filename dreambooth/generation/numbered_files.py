"""Write images as PNGs with the next free numbers of a folder, with their recipes, and a grid of several."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from dreambooth.generation.grids.grid import labelled_grid
from dreambooth.generation.request import GeneratedImage, write_png

NUMBERED = re.compile(r"(\d+)(?:-.*)?\.png")  # 00003.png, 00003-a-photo-of-sks-dog.png
MAX_SLUG = 40  # letters of a prompt in a file's name


def write(made: Iterable[GeneratedImage], folder: str | Path, columns: int) -> Iterator[Path]:
    """Write PNGs with the next free numbers of the folder, and a grid of several. Yields each path once written."""
    folder, images, numbers = Path(folder), [], []
    for image in made:
        with taken_number(folder) as number:
            name = "-".join(filter(None, [f"{number:05d}", slug(str(image.recipe.get("prompt", "")))]))
            path = write_png(folder / f"{name}.png", image, image.recipe)
            if image.attention is not None:
                write_png(folder / f"attention-{number:05d}.png", image.attention)
        images.append(image)
        numbers.append(number)
        yield path
    if len(images) > 1:
        yield write_png(folder / f"grid-{numbers[0]:05d}.png", labelled_grid(images, columns))


@contextlib.contextmanager
def taken_number(folder: Path) -> Iterator[int]:
    """Reserve the next free image number, by a hidden empty file, so that two processes get different ones."""
    folder.mkdir(parents=True, exist_ok=True)
    number = max(numbers_in(folder), default=-1) + 1
    while not _reserve(folder, number):
        number += 1
    try:
        yield number
    finally:
        _reservation(folder, number).unlink()


def _reserve(folder: Path, number: int) -> bool:
    """Reserve a number. Returns False if another process has it, or has used it meanwhile."""
    try:
        _reservation(folder, number).open("xb").close()
    except FileExistsError:
        return False
    if number in numbers_in(folder):
        _reservation(folder, number).unlink()
        return False
    return True


def _reservation(folder: Path, number: int) -> Path:
    return folder / f".{number:05d}.taken"


def numbers_in(folder: Path) -> set[int]:
    """Return the numbers of the images in a folder."""
    return {int(match[1]) for path in folder.glob("*.png") if (match := NUMBERED.fullmatch(path.name))}


def slug(prompt: str) -> str:
    """Return the beginning of a prompt for a file's name: 'a photo of sks dog' -> 'a-photo-of-sks-dog'."""
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")
    if len(words) <= MAX_SLUG:
        return words
    return words[: MAX_SLUG + 1].rpartition("-")[0] or words[:MAX_SLUG]
