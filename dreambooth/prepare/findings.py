"""Find what is wrong with photos of a subject, each finding with its number and what to do.

A finding about one photo is a row of `PHOTO_CHECKS`, one about all of them a row of `FOLDER_CHECKS`. How often each is
right, and how many faults it sees, is measured by `benchmarks/photo_findings.py`; what was right less than nine times
in ten is not here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from dreambooth.data.buckets import Size, is_upscaled, kept_fraction, nearest_bucket
from dreambooth.data.near_duplicates import ImageInfo, near_duplicates
from dreambooth.prepare import lettering, measures
from dreambooth.prepare.lettering import Lettering
from dreambooth.prepare.measures import Box

Severity = Literal["error", "warning", "note"]  # training refuses it; it costs quality; good to know

MAX_BLUR = 0.29  # the sharpest of 30 photographs have .09, the softest .23; blurred by 2 of 512 pixels .31 and more
MIN_BRIGHTEST = 0.45  # of 1; the darkest photograph has .67, one that got an eighth of its light .39 at most
MAX_CLIPPED = 0.2  # of the pixels; photographs have .03 at most, in four times the light half of them
MIN_KEPT = 0.5  # of a photo that its nearest shape of training should keep
MAX_CUT_OFF = 0.15  # of the subject's side that lies against an edge
MIN_IN_FRAME = 0.3  # the subject's longer side, of the photo's shorter one
MAX_SECOND_PART = 0.4  # of the area of the mask's largest part; of 110 toy images of one such thing none has more
MIN_SHOWS_CLASS = 0.1  # of a model's answer to "is there a dog?"
SAME_COLOURS = 0.65  # overlap of the colours of two backgrounds that are one
MAX_SAME = 0.75  # of the photos with one background
ENOUGH = 3  # photos, from which on it is asked what all of them share
MAX_NAMED = 6  # photos that a text lists


@dataclass(frozen=True)
class Photo:
    """Hold a photo to look at. image: reduced to 1024 pixels a side; info: of the file itself.

    mask: of the size of `image`, white where the subject is; None: not known. cut_out: fraction that is transparent.
    is_mask_proposed: a model has found it, and it lies nowhere yet.
    lettering: what can be read in it; None: nobody has read it.
    shows_class: the probability that it shows a thing of the class that was named; None: nobody was asked.
    """

    path: Path
    image: Image.Image
    info: ImageInfo
    mask: Image.Image | None = None
    cut_out: float = 0.0
    lettering: Lettering | None = None
    shows_class: float | None = None
    is_mask_proposed: bool = False

    @property
    def size(self) -> Size:
        return self.info.size

    @property
    def content(self) -> Image.Image:
        """Return the photo within its bars."""
        return self.image.crop(self.pixels(measures.content_box(self.image)))

    def pixels(self, box: Box) -> tuple[int, int, int, int]:
        """Return a box in pixels of `image`."""
        left, top, right, bottom = box
        width, height = self.image.size
        return round(left * width), round(top * height), round(right * width), round(bottom * height)

    @property
    def box(self) -> Box | None:
        """Return the box around the subject, in fractions of the photo."""
        return None if self.mask is None else measures.box_of(self.mask)


@dataclass(frozen=True)
class Needs:
    """Hold what training asks of photos. buckets: sizes that photos are cut to, pixels. mask: data.mask, or None."""

    resolution: int
    buckets: Sequence[Size]
    mask: str | None = None


@dataclass(frozen=True)
class Finding:
    """Hold what is wrong with a photo, or with all of them.

    number: what was measured; `text` says it with its unit. advice: what to do. box: where it is in the photo. photos:
    names of the photos that it is about.
    """

    kind: str
    severity: Severity
    number: float
    text: str
    advice: str
    photos: tuple[str, ...] = ()
    box: Box | None = None


def too_small(photo: Photo, needs: Needs) -> Finding | None:
    """Return a finding where training would enlarge the photo."""
    target = nearest_bucket(photo.size, needs.buckets)
    if not is_upscaled(photo.size, target):
        return None
    scale = max(target[0] / photo.size[0], target[1] / photo.size[1])
    text = f"{photo.size[0]} x {photo.size[1]} pixels, enlarged {scale:.2g} times to {target[0]} x {target[1]}"
    return Finding("small", "warning", scale, text, "its blur is learned: take the original, or lower data.resolution")


def blurred(photo: Photo, needs: Needs) -> Finding | None:
    number = measures.blur(photo.content)
    if number <= MAX_BLUR:
        return None
    text = f"blurred: {number:.2f} where sharp photos have less than {MAX_BLUR}"
    return Finding("blurred", "warning", number, text, "leave it out, or take a sharper one: blur is learned")


def dark(photo: Photo, needs: Needs) -> Finding | None:
    number = measures.brightest(photo.content)
    if number >= MIN_BRIGHTEST:
        return None
    text = f"dark: 99 of 100 pixels are under {number:.0%} of full brightness"
    return Finding("dark", "warning", number, text, "take it in more light, or brighten it")


def clipped(photo: Photo, needs: Needs) -> Finding | None:
    number = measures.clipped_fraction(photo.content) if not photo.cut_out else 0.0
    if number <= MAX_CLIPPED:
        return None
    text = f"overexposed: {number:.0%} of the pixels are at the end of their range"
    return Finding("clipped", "warning", number, text, "take it in less light: what is burnt out is lost")


def barred(photo: Photo, needs: Needs) -> Finding | None:
    left, top, right, bottom = box = measures.content_box(photo.image)
    number = 1 - (right - left) * (bottom - top)
    if not number:
        return None
    sides = {"left": left, "right": 1 - right, "top": top, "bottom": 1 - bottom}
    named = " and ".join(f"{side} ({share:.0%})" for side, share in sides.items() if share)
    return Finding("bars", "warning", number, f"bars of one colour: {named}", "cut them off: they are learned", box=box)


def extreme_shape(photo: Photo, needs: Needs) -> Finding | None:
    shape = nearest_bucket(photo.size, needs.buckets)
    number = kept_fraction(photo.size, shape)
    if number >= MIN_KEPT:
        return None
    text = f"{photo.size[0]} x {photo.size[1]} pixels: {1 - number:.0%} is cut off for {shape[0]} x {shape[1]}"
    has_shapes = len(needs.buckets) > 1
    advice = "cut it yourself, around the subject" if has_shapes else "set data.buckets=true, or cut it yourself"
    return Finding("shape", "warning", number, text, advice)


def transparent(photo: Photo, needs: Needs) -> Finding | None:
    if not photo.cut_out:
        return None
    text = f"{photo.cut_out:.0%} is transparent, which training sees as white"
    if needs.mask == "alpha":
        return Finding("transparent", "note", photo.cut_out, text, "data.mask=alpha lets it count less")
    advice = "set data.mask=alpha if all photos are cut out; else lay it on a background"
    return Finding("transparent", "warning", photo.cut_out, text, advice)


def several_frames(photo: Photo, needs: Needs) -> Finding | None:
    number = photo.info.num_frames
    if number < 2:
        return None
    return Finding("frames", "note", number, f"{number} images in the file", "the first is used; save the one you mean")


def black_mask(photo: Photo, needs: Needs) -> Finding | None:
    """Return a finding where a mask shows no subject: training refuses a black one, and takes a grey one."""
    if photo.mask is None or photo.box is not None:
        return None
    if photo.mask.getbbox() is None:
        text = "its mask is black: nothing of the photo would count"
        return Finding("mask", "error", 0, text, "make the subject white in it")
    text, advice = "its mask has no white, only grey", "make the subject white in it: data.crop=subject finds none"
    return Finding("mask", "warning", 0, text, advice)


def subject_cut_off(photo: Photo, needs: Needs) -> Finding | None:
    if photo.mask is None:
        return None
    number, edge = measures.cut_off(photo.mask)
    if number <= MAX_CUT_OFF:
        return None
    text = f"the subject is cut off: {number:.0%} of its side lies against the {edge} edge"
    return Finding("cut off", "warning", number, text, "fine in one photo; add some with all of it", box=photo.box)


def subject_small(photo: Photo, needs: Needs) -> Finding | None:
    if photo.box is None:
        return None
    number = subject_side(photo.box, photo.size)
    if number >= MIN_IN_FRAME:
        return None
    text = f"the subject is small: its longer side is {number:.0%} of the photo's shorter one"
    return Finding("far away", "warning", number, text, "set data.crop=subject, or cut closer", box=photo.box)


def several_candidates(photo: Photo, needs: Needs) -> Finding | None:
    """Return a finding where the mask has a second part nearly as large as the first: which one is meant?"""
    number, box = (0.0, None) if photo.mask is None else measures.second_part(photo.mask)
    if number <= MAX_SECOND_PART:
        return None
    text = f"more than one candidate: a second one is {number:.0%} as large as the first"
    advice = "cut the others off, or give a mask of the one that is meant: all are learned"
    return Finding("candidates", "warning", number, text, advice, box=box)


def other_class(photo: Photo, needs: Needs) -> Finding | None:
    """Return a finding where a model that was asked sees nothing of the class that was named."""
    number = photo.shows_class
    if number is None or number >= MIN_SHOWS_CLASS:
        return None
    text = f"not the class that was named: the model sees one with a probability of {number:.0%}"
    return Finding("class", "warning", number, text, "look whether it shows the subject; if so, name another --class")


def text_over(photo: Photo, needs: Needs) -> Finding | None:
    """Return a finding where text is read beside the subject, or anywhere in a photo without a mask."""
    lines = () if photo.lettering is None else lettering.beside_subject(photo.lettering.lines, photo.mask)
    if not lines:
        return None
    advice = "cut it off, or take the photo without it: it is learned; lettering of the subject itself is fine"
    number = lettering.num_letters(lines)
    return Finding("text", "warning", number, f"text: {lettering.quoted(lines)}", advice, box=lines[0].box)


def mirrored_lettering(photo: Photo, needs: Needs) -> Finding | None:
    lines = () if photo.lettering is None else photo.lettering.mirrored
    if not lines:
        return None
    text = f"mirrored lettering: {lettering.quoted(lines)}, read in a mirror"
    advice = "flip the photo, as some cameras mirror: letters are learned as they are"
    return Finding("mirrored", "warning", lettering.num_letters(lines), text, advice, box=lines[0].box)


def subject_side(box: Box, size: Size) -> float:
    """Return the longer side of a box over the shorter side of the photo."""
    width, height = size
    return max((box[2] - box[0]) * width, (box[3] - box[1]) * height) / min(size)


PHOTO_CHECKS: tuple[Callable[[Photo, Needs], Finding | None], ...] = (
    too_small,
    blurred,
    dark,
    clipped,
    barred,
    extreme_shape,
    transparent,
    several_frames,
    black_mask,
    subject_cut_off,
    subject_small,
    several_candidates,
    other_class,
    text_over,
    mirrored_lettering,
)


def duplicates(photos: Sequence[Photo]) -> Iterator[Finding]:
    """Yield each group of photos that are (nearly) the same."""
    groups: list[set[Path]] = []
    for pair in near_duplicates([photo.info for photo in photos]):
        joined = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in joined]
        groups.append(set(pair).union(*joined))
    for group in sorted(groups, key=min):
        names = tuple(path.name for path in sorted(group))
        number = len(names)
        advice = "leave one out: it counts twice" if number == 2 else f"keep one of them: it counts {number} times"
        text = f"{listed(names)} are (nearly) the same photo"
        yield Finding("duplicate", "warning", number, text, advice, photos=names)


def listed(names: Sequence[str]) -> str:
    """Return names as a text has them: "a, b and c"; of many the first ones, and how many more there are."""
    shown = [*names[:MAX_NAMED], f"{len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED + 1 else [*names]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def same_names(photos: Sequence[Photo]) -> Iterator[Finding]:
    """Yield each group of photos whose names differ in their endings alone: a.jpg and a.png."""
    for names in twins([photo.path for photo in photos]).values():
        text = f"{listed(names)} differ in their endings alone, so they share a mask and a caption"
        yield Finding("same name", "warning", len(names), text, "rename all but one", photos=names)


def twins(paths: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Return the names of the photos that have one stem, by that stem, where these are several."""
    by_stem: dict[str, list[str]] = {}
    for path in paths:
        by_stem.setdefault(path.stem, []).append(path.name)
    return {stem: tuple(names) for stem, names in by_stem.items() if len(names) > 1}


def few_photos(photos: Sequence[Photo]) -> Iterator[Finding]:
    """Yield a finding where there are fewer than three photos."""
    if len(photos) < ENOUGH:
        text = f"{len(photos)} photo{'s' * (len(photos) != 1)}"
        advice = "take 3 to 10 in several places and from several sides: what all share is learned with the subject"
        yield Finding("few", "warning", len(photos), text, advice)


def one_background(photos: Sequence[Photo]) -> Iterator[Finding]:
    """Yield a finding where most photos have backgrounds of the same colours."""
    if len(photos) < ENOUGH:
        return
    colours = [_colours(photo) for photo in photos]
    groups = [
        [other for other, its in enumerate(colours) if measures.likeness_of_colours(own, its) > SAME_COLOURS]
        for own in colours
    ]
    largest = max(groups, key=len)
    number = len(largest) / len(photos)
    if number < MAX_SAME:
        return
    text = f"{len(largest)} of {len(photos)} photos have the same background"
    advice = "take some elsewhere, or set data.mask: a background that all share is learned with the subject"
    yield Finding("background", "warning", number, text, advice, photos=tuple(photos[i].path.name for i in largest))


def _colours(photo: Photo) -> np.ndarray:
    """Return the colours around the subject, without bars."""
    inside = photo.pixels(measures.content_box(photo.image))
    mask = None if photo.mask is None else photo.mask.crop(inside)
    return measures.background_colours(photo.image.crop(inside), mask)


FOLDER_CHECKS: tuple[Callable[[Sequence[Photo]], Iterator[Finding]], ...] = (
    few_photos,
    same_names,
    duplicates,
    one_background,
)


def photo_findings(photo: Photo, needs: Needs) -> list[Finding]:
    """Return what is wrong with one photo."""
    return [finding for check in PHOTO_CHECKS if (finding := check(photo, needs)) is not None]


def folder_findings(photos: Sequence[Photo]) -> list[Finding]:
    """Return what is wrong with photos as a whole."""
    return [finding for check in FOLDER_CHECKS for finding in check(photos)]
