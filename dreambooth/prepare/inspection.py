"""Look at a folder of photos: each photo with its mask and its findings, and findings about all of them."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from PIL import Image

from dreambooth.data.image_files import check_image, load_image
from dreambooth.data.image_folder import ImageFolder, sort_files
from dreambooth.data.masks import find_masks, mask_of, transparent_fraction
from dreambooth.data.near_duplicates import info_of
from dreambooth.errors import UserError, escaped
from dreambooth.prepare.findings import Finding, Needs, Photo, Severity, folder_findings, photo_findings
from dreambooth.prepare.lettering import TextReader, read_lettering
from dreambooth.prepare.measures import reduced

SHOWN_SIDE = 1024  # pixels of the longer side of a photo that is kept in memory


class MaskFinder(Protocol):
    """Find the subject in a photo: a segmenter, or a program's own masks."""

    def __call__(self, image: Image.Image, class_noun: str) -> Image.Image | None:
        """Return a mask in grey levels, of the photo's size, white where the subject is; None where it is not seen."""
        ...


class ClassJudge(Protocol):
    """Judge whether a photo shows a thing of a class: a model that answers questions."""

    def __call__(self, image: Image.Image, class_noun: str) -> float:
        """Return the probability that it does, 0 to 1."""
        ...


@dataclass(frozen=True)
class InspectedPhoto:
    """Hold what was found out about a file. photo: None where it cannot be read, which is then its one finding."""

    path: Path
    findings: list[Finding]
    photo: Photo | None = None


@dataclass(frozen=True)
class Inspection:
    """Hold what was found out about a folder. findings: about all photos together. folder: its files by their kind.

    mask_source: "alpha" or the folder that the masks are from, as data.mask names it; None: there are none, or only a
    finder's. A folder may lack some, which a finder's then stand in for.
    """

    folder: ImageFolder
    needs: Needs
    photos: list[InspectedPhoto]
    findings: list[Finding] = field(default_factory=list)
    mask_source: str | None = None

    @property
    def readable(self) -> list[Photo]:
        return [each.photo for each in self.photos if each.photo is not None]

    @property
    def proposed_masks(self) -> list[Photo]:
        """Return the photos with a mask that a finder has found."""
        return [photo for photo in self.readable if photo.is_mask_proposed]

    @property
    def has_read_text(self) -> bool:
        """Return whether text was looked for in the photos."""
        return all(photo.lettering is not None for photo in self.readable)

    @property
    def num(self) -> dict[Severity, int]:
        """Return how many findings there are of each severity."""
        found = [*self.findings, *(finding for each in self.photos for finding in each.findings)]
        severities: tuple[Severity, ...] = ("error", "warning", "note")
        return {severity: sum(each.severity == severity for each in found) for severity in severities}


@dataclass(frozen=True)
class PhotoReaders:
    """Hold the models that look at photos; None: that is not looked for."""

    find_mask: MaskFinder | None = None  # for photos without a mask
    read_text: TextReader | None = None
    sees: ClassJudge | None = None


NO_READERS = PhotoReaders()


def inspect_folder(
    path: Path, needs: Needs, class_noun: str = "", mask_source: str | None = None, readers: PhotoReaders = NO_READERS
) -> Inspection:
    """Return the findings on a folder of photos. Raises UserError if there is no such folder, or it has no files.

    mask_source: as data.mask; None: what `find_masks` finds. class_noun: what a finder of masks looks for.
    """
    folder = sort_files(path)
    source = mask_source or find_masks(folder.path, folder.images)
    return inspect_photos(folder, read_photos(folder, source, class_noun, readers), needs, source)


def read_photos(
    folder: ImageFolder, mask_source: str | None = None, class_noun: str = "", readers: PhotoReaders = NO_READERS
) -> list[InspectedPhoto]:
    """Read each photo of a folder with its mask; the findings are of reading alone."""
    return [_read(path, mask_source, class_noun, readers) for path in folder.images]


def _read(path: Path, mask_source: str | None, class_noun: str, readers: PhotoReaders) -> InspectedPhoto:
    try:
        warnings = check_image(path)
    except UserError as error:
        advice = "mend, move or remove it: training refuses the folder"
        return InspectedPhoto(path, [Finding("unreadable", "error", 1, escaped(error), advice)])
    image = load_image(path)
    findings = [Finding("file", "note", 1, escaped(each), "save it again if it looks wrong") for each in warnings]
    mask, problem = _own_mask(path, mask_source)
    is_proposed = False
    if readers.find_mask is not None and lacks_mask(path, mask_source):
        mask = readers.find_mask(image, class_noun)
        is_proposed = mask is not None
    if is_proposed and mask_source is not None:
        text = f"has no mask in {escaped(mask_source)}; the model has found one"
        findings.append(Finding("mask", "note", 1, text, "write it there with --accept masks"))
    elif problem is not None:
        findings.append(problem)
    small = reduced(image, SHOWN_SIDE)
    if mask is not None:
        mask = mask.resize(small.size, Image.Resampling.BOX)
    lettering = None if readers.read_text is None else read_lettering(small, readers.read_text)
    shows_class = readers.sees(image, class_noun) if readers.sees is not None and class_noun else None
    cut_out = transparent_fraction(path)
    photo = Photo(path, small, info_of(path, image), mask, cut_out, lettering, shows_class, is_proposed)
    return InspectedPhoto(path, findings, photo)


def _own_mask(path: Path, source: str | None) -> tuple[Image.Image | None, Finding | None]:
    """Return the mask that a photo has, and else what is wrong with it. source: as data.mask."""
    if source is None:
        return None, None
    try:
        return mask_of(path, source), None
    except UserError as error:
        problem = escaped(error)
    if source == "alpha":
        return None, Finding("mask", "error", 0, "has no transparency", "cut it out, or name a folder with --masks")
    names = [escaped(each.name) for each in masks_named(path, source)]
    if not names:
        advice = "add it, or move that folder to train without masks"
        return None, Finding("mask", "error", 0, f"has no mask in {escaped(source)}", advice)
    if len(names) > 1:
        text = f"has {len(names)} masks in {escaped(source)}: {', '.join(names)}"
        return None, Finding("mask", "error", len(names), text, "leave one of them there")
    return None, Finding("mask", "error", 1, problem, "mend that mask, or take another one")


def masks_named(path: Path, folder: str) -> list[Path]:
    """Return the files in a folder of masks that have a photo's name, whatever their endings."""
    return sorted(Path(folder).glob(f"{glob.escape(path.stem)}.*"))


def lacks_mask(path: Path, source: str | None) -> bool:
    """Return whether a finder is asked for a photo's mask; not where it is its transparency. source: as data.mask."""
    return source is None or (source != "alpha" and not masks_named(path, source))


def inspect_photos(
    folder: ImageFolder, photos: Sequence[InspectedPhoto], needs: Needs, mask_source: str | None = None
) -> Inspection:
    """Return the findings on photos that `read_photos` has read."""
    found = [
        each if each.photo is None else replace(each, findings=[*each.findings, *photo_findings(each.photo, needs)])
        for each in photos
    ]
    readable = [each.photo for each in photos if each.photo is not None]
    return Inspection(folder, needs, found, folder_findings(readable), mask_source)
