"""Images of two subjects side by side, each cut out of one of its photos by the photo's mask (Cut-Mix).

A model that has seen its subjects alone only melts them, or draws one in the other's looks, where a prompt names both.
SVDiff (Han et al. 2023, arXiv 2303.11305, section 3.2) joins the halves of two photos for it. Here one of the photos
is behind both subjects: there is no seam to be learned, and the mask says that little but the subjects counts.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops
from scipy import ndimage

from dreambooth.data import cuts
from dreambooth.data.buckets import Size

HEIGHT = (0.5, 0.62)  # of a subject, least and most, as a fraction of the image's
MAX_WIDTH = 0.5  # of a subject, as a fraction of the image's: its own half
GROUND = (0.77, 0.83)  # where a subject stands, from the top, as a fraction of the height
SOFT = 2  # pixels around what a mask has white that keep their grey levels


@dataclass(frozen=True)
class Cutting:
    """Hold a photo, RGB, the mask of its subject, L, of the same size, and the box around the subject."""

    image: Image.Image
    mask: Image.Image
    box: cuts.PixelBox

    @classmethod
    def of(cls, image: Image.Image, mask: Image.Image, size: Size) -> "Cutting":
        """Return a photo, not much larger than images of `size` pixels need, with its mask, but not the mask's specks.

        The mask must not be black.
        """
        white_HW = cuts.white_parts(mask)
        if white_HW.any():
            near_HW = ndimage.binary_dilation(white_HW, iterations=SOFT)
            mask = Image.fromarray(np.where(near_HW, np.asarray(mask), 0).astype(np.uint8))
        box = Image.fromarray(white_HW).getbbox() or mask.getbbox()
        assert box is not None, "a mask that is black"
        if (factor := int(0.5 / largest_zoom(box, size))) > 1:
            return cls.of(image.reduce(factor), mask.reduce(factor), size)
        return cls(image, mask, box)


@dataclass(frozen=True)
class MixedImage:
    """Hold an image, RGB, of two subjects. mask, L: white where they are. inside, L: black where it is padded."""

    image: Image.Image
    mask: Image.Image
    inside: Image.Image


def largest_zoom(box: cuts.PixelBox, size: Size) -> float:
    """Return by how much a subject is enlarged at most in images of `size` pixels. box: around it in its photo."""
    left, top, right, bottom = box
    return min(HEIGHT[1] * size[1] / (bottom - top), MAX_WIDTH * size[0] / (right - left))


def cut_mix(left: Cutting, right: Cutting, size: Size, rng: np.random.Generator, is_left_behind: bool) -> MixedImage:
    """Return both subjects beside each other, in an image of `size` pixels.

    is_left_behind: whether the left one's photo is what one sees behind them; else the right one's. It is padded where
    it does not reach.
    """
    cut_left, cut_right = (_cut(each.box, size, half, rng) for each, half in ((left, 0), (right, 1)))
    (behind, cut), (other, other_cut) = ((left, cut_left), (right, cut_right))[:: 1 if is_left_behind else -1]
    image, other_mask = cut.apply(behind.image), other_cut.apply(other.mask)
    image.paste(other_cut.apply(other.image), mask=other_mask)
    inside = cut.inside(behind.image.size) or Image.new("L", size, 255)
    lighter = ImageChops.lighter
    return MixedImage(image, lighter(cut.apply(behind.mask), other_mask), lighter(inside, other_mask))


def _cut(box: cuts.PixelBox, size: Size, half: int, rng: np.random.Generator) -> cuts.Cut:
    """Return how a photo is cut such that its subject stands in one half of the image: 0 the left, 1 the right."""
    left, top, right, bottom = box
    width, height = size
    zoom = min(rng.uniform(*HEIGHT) * height / (bottom - top), largest_zoom(box, size))
    free = width / 2 - zoom * (right - left)
    x, ground = half * width / 2 + rng.uniform() * free, rng.uniform(*GROUND) * height
    return cuts.Cut(cuts.Window(left - x / zoom, bottom - ground / zoom, width / zoom, height / zoom), size)
