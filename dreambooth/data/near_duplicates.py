"""Facts about images, and near-duplicates among them, which would count twice in training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth.data.buckets import Size
from dreambooth.data.image_files import load_image, num_frames

MAX_DISTANCE = 5.0  # of 255; re-encoded or resized copies differ by 1 or 2, the two nearest photos of a series by 10
THUMBNAIL_SIDE = 16  # pixels a side
MARGIN = 0.01  # of 255, more than float32 rounds a mean of 768 numbers by


@dataclass(frozen=True)
class ImageInfo:
    """Hold facts about an image. size: as it is shown. num_frames: images in its file, of which the first is read.

    colours_HWC: of its 16 x 16 parts, 0 to 255.
    """

    path: Path
    size: Size
    num_frames: int
    colours_HWC: np.ndarray


def inspect_image(path: Path) -> ImageInfo:
    """Return an image's facts. Raises UserError as `load_image` does."""
    return info_of(path, load_image(path))


def info_of(path: Path, image: Image.Image) -> ImageInfo:
    """Return the facts of an image that has been loaded from `path`."""
    colours_HWC = np.asarray(image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)).astype(np.float32)
    return ImageInfo(path, image.size, num_frames(path), colours_HWC)


def near_duplicates(images: Sequence[ImageInfo]) -> list[tuple[Path, Path]]:
    """Return near-duplicates: copies, re-encoded, resized or slightly cropped; not two photos of one thing.

    The mean distance of two images is at least that of their averages over larger parts. So most pairs are excluded by
    their mean colour, most others by 2 x 2 and 4 x 4 parts, and no pair is lost.
    """
    if len(images) < 2:
        return []
    colours_NHWC = np.stack([image.colours_HWC for image in images])
    levels = [_pooled(colours_NHWC, parts) for parts in (1, 2, 4, THUMBNAIL_SIDE)]
    order = np.argsort(levels[0].mean(1), kind="stable")
    levels = [level[order] for level in levels]
    pairs = sorted((min(pair), max(pair)) for pair in _close_pairs(levels, order))
    return [(images[one].path, images[other].path) for one, other in pairs]


def _pooled(colours_NHWC: np.ndarray, parts: int) -> np.ndarray:
    """Return the mean colours of parts x parts areas, [N, parts * parts * 3]."""
    size = THUMBNAIL_SIDE // parts
    split = colours_NHWC.reshape(len(colours_NHWC), parts, size, parts, size, 3)
    return split.mean((2, 4)).reshape(len(colours_NHWC), -1)


def _close_pairs(levels: list[np.ndarray], order: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs nearer than MAX_DISTANCE. levels: from coarse to fine, sorted by mean brightness."""
    brightness_N = levels[0].mean(1)
    ends_N = np.searchsorted(brightness_N, brightness_N + MAX_DISTANCE + MARGIN, side="right")
    for one, end in enumerate(ends_N):
        others = np.arange(one + 1, end)
        for level in levels[:-1]:
            others = others[abs(level[others] - level[one]).mean(1) < MAX_DISTANCE + MARGIN]
        distances = abs(levels[-1][others] - levels[-1][one]).mean(1)
        yield from ((int(order[one]), int(order[other])) for other in others[distances < MAX_DISTANCE])
