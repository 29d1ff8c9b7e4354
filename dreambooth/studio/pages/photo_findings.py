"""Look at the photos of a subject as `prepare` does: at each as it arrives, and at all of them."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dreambooth.data.image_folder import ImageFolder
from dreambooth.prepare import findings as of_prepare
from dreambooth.prepare.findings import Needs, folder_findings
from dreambooth.prepare.inspection import InspectedPhoto, inspect_photos, read_photos

NUM_KEPT = 64  # photos that are kept as they were read, some 3 MB each
MANY = 30  # photos

Level = Literal["ok", "hint", "warning", "error"]
LEVELS: dict[of_prepare.Severity, Level] = {"note": "hint", "warning": "warning", "error": "error"}


@dataclass(frozen=True)
class Finding:
    """Hold what was found, with the remedy in the text."""

    level: Level
    text: str


@dataclass(frozen=True)
class Findings:
    """Hold what was found about each photo, by its name, and about all of them."""

    of_photo: dict[str, list[Finding]]
    of_all: list[Finding]


def look_at(paths: Sequence[Path], resolution: int) -> Findings:
    """Return what photos are worth for a base of this resolution, pixels; a photo is read once, until it changes."""
    inspected = [_inspected(path, path.stat().st_mtime_ns, resolution) for path in paths]
    found = {each.path.name: list(_shown(each)) for each in inspected}
    together = folder_findings([each.photo for each in inspected if each.photo is not None])
    return Findings(found, [*_of_all(len(paths)), *(_finding(each) for each in together)])


@functools.lru_cache(maxsize=NUM_KEPT)
def _inspected(path: Path, changed_ns: int, resolution: int) -> InspectedPhoto:
    folder = ImageFolder(path.parent, [path])
    needs = Needs(resolution, [(resolution, resolution)])
    photo = inspect_photos(folder, read_photos(folder), needs).photos[0]
    hidden = str(path.parent)
    return replace(photo, findings=[replace(each, text=each.text.replace(f"{hidden}/", "")) for each in photo.findings])


def _shown(photo: InspectedPhoto) -> Iterator[Finding]:
    yield from map(_finding, photo.findings)
    if not photo.findings and photo.photo is not None:
        width, height = photo.photo.size
        yield Finding("ok", f"{width} × {height} pixels, good")


def _finding(found: of_prepare.Finding) -> Finding:
    is_named = all(name in found.text for name in found.photos)
    names = "" if is_named else f" ({', '.join(found.photos)})"
    return Finding(LEVELS[found.severity], f"{found.text}{names}; {found.advice}")


def _of_all(number: int) -> list[Finding]:
    if number > MANY:
        return [Finding("hint", f"{number} photos: ten good ones often teach as much, in less time.")]
    return [Finding("ok", f"{number} photos.")] if number > of_prepare.ENOUGH else []
