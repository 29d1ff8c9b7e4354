"""Look at a folder of photos: each photo with its mask and its findings, and findings about all of them."""

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

    mask_source: "alpha" or the folder that the masks are from, as data.mask names it; None: no masks, or a finder's.
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
    mask = None
    if mask_source is not None:
        try:
            mask = mask_of(path, mask_source)
        except UserError as error:
            findings.append(Finding("mask", "error", 1, str(error), "add it, or leave data.mask out"))
    elif readers.find_mask is not None:
        mask = readers.find_mask(image, class_noun)
    small = reduced(image, SHOWN_SIDE)
    if mask is not None:
        mask = mask.resize(small.size, Image.Resampling.BOX)
    lettering = None if readers.read_text is None else read_lettering(small, readers.read_text)
    shows_class = readers.sees(image, class_noun) if readers.sees is not None and class_noun else None
    photo = Photo(path, small, info_of(path, image), mask, transparent_fraction(path), lettering, shows_class)
    return InspectedPhoto(path, findings, photo)


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
