"""Images of two subjects side by side, each cut out of one of its photos by the photo's mask (Cut-Mix).

A model that has seen its subjects alone only melts them, or draws one in the other's looks, where a prompt names both.
SVDiff (Han et al. 2023, arXiv 2303.11305, section 3.2) joins the halves of two photos for it. Here one of the photos
is behind both subjects: there is no seam to be learned, and the mask says that little but the subjects counts.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

from dreambooth.data import cuts
from dreambooth.data.buckets import Size

HEIGHT = (0.5, 0.62)  # of a subject, least and most, as a fraction of the image's
MAX_WIDTH = 0.5  # of a subject, as a fraction of the image's: they may touch, but do not hide each other
GROUND = 0.8  # where both stand, from the top, as a fraction of the height
MOVED = 0.03  # at most, of the image's sides, from there and from the middle of its half


class MaskedPhoto(NamedTuple):
    """Hold a photo, RGB, and its mask, L, of the same size: white where the subject is."""

    image: Image.Image
    mask: Image.Image


def cut_mix(
    left: MaskedPhoto, right: MaskedPhoto, size: Size, rng: np.random.Generator, is_left_behind: bool
) -> MaskedPhoto:
    """Return both subjects beside each other, in an image of `size` pixels, with the mask of both.

    is_left_behind: whether the left one's photo is what one sees behind them, continued to the edges; else the right
    one's. The masks must not be black.
    """
    placed = [_placed(photo, size, center, rng) for photo, center in ((left, 0.25), (right, 0.75))]
    behind, cut_out = placed if is_left_behind else placed[::-1]
    image = behind.image.copy()
    image.paste(cut_out.image, mask=cut_out.mask)
    return MaskedPhoto(image, ImageChops.lighter(behind.mask, cut_out.mask))


def _placed(photo: MaskedPhoto, size: Size, center: float, rng: np.random.Generator) -> MaskedPhoto:
    """Return a photo, resized and moved such that its subject stands around `center`, a fraction of the width."""
    box = cuts.subject_box(photo.mask) or photo.mask.getbbox()
    assert box is not None, "a mask that is black"
    left, top, right, bottom = box
    width, height = size
    zoom = min(rng.uniform(*HEIGHT) * height / (bottom - top), MAX_WIDTH * width / (right - left))
    x, ground = (place + rng.uniform(-MOVED, MOVED) for place in (center, GROUND))
    window = cuts.Window(
        (left + right) / 2 - x * width / zoom, bottom - ground * height / zoom, width / zoom, height / zoom
    )
    cut = cuts.Cut(window, size)
    return MaskedPhoto(cut.apply(photo.image), cut.apply(photo.mask))
