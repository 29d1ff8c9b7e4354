"""Where an image is cut for training: in the middle, at random places, or around its subject. No torch here.

A cut around the subject never takes a part of it away, in any shape: where the photo has no such part, it is padded.
Sizes are (width, height) in pixels, boxes (left, top, right, bottom).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from dreambooth.data.buckets import Size, largest_part, nearest_bucket

PixelBox = tuple[int, int, int, int]
FILL = 0.5  # of the cut that the subject takes up at least, along the side that it fills more, where pixels are enough
MARGIN = 0.03  # of the subject's longer side, left around it where the photo has it
ROUNDING = 1e-9
WHITE = 128  # of 255, from which on a mask shows the subject
MIN_PART = 0.01  # of the largest part of a mask, below which a part is a speck


@dataclass(frozen=True)
class Window:
    """Hold a part of an image, in its pixels. It may reach beyond the image, which is padded there."""

    left: float
    top: float
    width: float
    height: float

    def mirrored(self, size: Size) -> "Window":
        """Return where the same part lies in the image's mirror image."""
        return replace(self, left=size[0] - self.left - self.width)

    def fraction_inside(self, size: Size) -> float:
        """Return which fraction of the part is image and no padding."""
        sides = ((self.left, self.width, size[0]), (self.top, self.height, size[1]))
        inside = [min(start + length, whole) - max(start, 0) for start, length, whole in sides]
        fraction = inside[0] * inside[1] / (self.width * self.height)
        return 1.0 if fraction > 1 - ROUNDING else fraction


@dataclass(frozen=True)
class Cut:
    """Hold how a view of an image is made: the part that is cut, and the size it is resized to."""

    window: Window
    size: Size

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the part, resized; beyond the image its last pixels are repeated, in a mask it is black."""
        window = self.window
        left, top = window.left, window.top
        if window.fraction_inside(image.size) < 1:
            before = max(0, int(np.ceil(-left))), max(0, int(np.ceil(-top)))
            after = (
                max(0, int(np.ceil(left + window.width - image.width))),
                max(0, int(np.ceil(top + window.height - image.height))),
            )
            image = _padded(image, before, after)
            left, top = left + before[0], top + before[1]
        box = (left, top, min(left + window.width, image.width), min(top + window.height, image.height))
        return image.resize(self.size, Image.Resampling.LANCZOS, box=box)

    def inside(self, size: Size) -> Image.Image | None:
        """Return a mask of the view, white where it shows the image of this size; None where it does so everywhere."""
        if self.window.fraction_inside(size) == 1:
            return None
        return self.apply(Image.new("L", size, 255))


def _padded(image: Image.Image, before: tuple[int, int], after: tuple[int, int]) -> Image.Image:
    """Return an image with more pixels on each side. before, after: left and top, right and bottom."""
    margins = [(before[1], after[1]), (before[0], after[0])]
    if image.mode == "L":
        return Image.fromarray(np.pad(np.asarray(image), margins))
    return Image.fromarray(np.pad(np.asarray(image), [*margins, (0, 0)], mode="edge"))


def centered(size: Size, target: Size, position_xy: Sequence[float] = (0.5, 0.5)) -> Cut:
    """Return the largest part of the shape of `target`. position_xy: as in `images.resize_and_crop`."""
    width, height = largest_part(size, target)
    # Whole pixels, so that an image that needs no resizing is cut and not resampled.
    left, top = (
        min(round(position * room), room)
        for position, room in zip(position_xy, (size[0] - width, size[1] - height), strict=True)
    )
    return Cut(Window(left, top, width, height), target)


def subject_box(mask: Image.Image) -> PixelBox | None:
    """Return the box around the white of a mask without its specks; None where nothing is white."""
    return Image.fromarray(white_parts(mask)).getbbox()


def white_parts(mask: Image.Image) -> np.ndarray:
    """Return where a mask, mode L, is white, without specks, [H, W] of bool.

    Parts are white pixels that touch each other, at a corner too. A speck has less than a hundredth of the largest.
    """
    white_HW = np.asarray(mask) >= WHITE
    labels_HW, num_parts = ndimage.label(white_HW, np.ones((3, 3)))
    if num_parts < 2:
        return white_HW
    areas = np.bincount(labels_HW.ravel())
    areas[0] = 0  # of what is not white
    is_kept: np.ndarray = areas >= MIN_PART * areas.max()
    return is_kept[labels_HW]


def around_subject(size: Size, box: PixelBox, buckets: Sequence[Size]) -> Cut:
    """Return a cut that holds the whole subject, in the bucket of the photo's shape or, if need be, of the subject's.

    It is the largest part of that shape, moved to the subject; where the subject would fill less than half of it, a
    closer one, but none that had to be enlarged. Where the photo has no part of that shape that holds the subject, it
    is padded.
    """
    grown = _with_margin(size, box)
    nearest = nearest_bucket(size, buckets)
    cut = Cut(_window(size, grown, nearest), nearest)
    if cut.window.fraction_inside(size) == 1:
        return cut
    cuts = [Cut(_window(size, box, bucket), bucket) for bucket in buckets]
    return max(cuts, key=lambda cut: (cut.window.fraction_inside(size), cut.size == nearest))


def _with_margin(size: Size, box: PixelBox) -> PixelBox:
    margin = round(MARGIN * max(box[2] - box[0], box[3] - box[1]))
    left, top = max(0, box[0] - margin), max(0, box[1] - margin)
    return left, top, min(size[0], box[2] + margin), min(size[1], box[3] + margin)


def _window(size: Size, box: PixelBox, shape: Size) -> Window:
    """Return the part of an image in this shape that holds a box; larger than the image where it has to be."""
    largest, _ = largest_part(size, shape)
    ratio = shape[0] / shape[1]
    needed = max(box[2] - box[0], (box[3] - box[1]) * ratio)
    width = max(needed, min(largest, max(needed / FILL, shape[0])))
    left = _start(width, size[0], box[0], box[2])
    top = _start(width / ratio, size[1], box[1], box[3])
    return Window(left, top, width, width / ratio)


def _start(length: float, whole: int, low: int, high: int) -> float:
    """Return where a part of this length begins, so that low to high is in its middle, or as near as may be."""
    if length >= whole:
        return (whole - length) / 2
    return min(max((low + high - length) / 2, 0), whole - length)
