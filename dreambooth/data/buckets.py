"""Aspect-ratio buckets: a few sizes of nearly one area, so that an image is trained in nearly its own shape.

Podell et al. 2023 (SDXL, arXiv 2307.01952), section 2.3, after NovelAI's "Improvements on Stable Diffusion" (2022).
A size is (width, height) in pixels, as Pillow has it.
"""

from collections.abc import Sequence

MAX_RATIO = 2  # of the longer side to the shorter: base models have hardly seen longer images

Size = tuple[int, int]


def make_buckets(resolution: int, step: int) -> list[Size]:
    """Return the largest sizes of at most resolution^2 pixels whose sides are multiples of `step`.

    Neither side could be a step longer. `step` must divide `resolution`; so the square is one of them.

    512 and 64 give 384x640, 448x576, 512x512 and the first two lying down.
    """
    assert resolution % step == 0, (resolution, step)

    def longest_beside(side: int) -> int:
        return resolution**2 // side // step * step

    sides = [(side, longest_beside(side)) for side in range(step, MAX_RATIO * resolution, step)]
    return [size for size in sides if max(size) <= MAX_RATIO * min(size) and longest_beside(size[1]) == size[0]]


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """Return the bucket whose aspect ratio is nearest to an image's, in log scale.

        argmin_b |log(w / h) - log(w_b / h_b)|  =  argmax_b kept_fraction

    A distance of the ratios themselves would not treat 2:3 as it treats 3:2.
    """
    return max(buckets, key=lambda bucket: kept_fraction(size, bucket))


def kept_fraction(size: Size, shape: Size) -> float:
    """Return which fraction of an image its largest part of another shape keeps: exp(-distance) of `nearest_bucket`."""
    one, other = size[0] * shape[1], size[1] * shape[0]
    return min(one, other) / max(one, other)


def largest_part(size: Size, shape: Size) -> tuple[float, float]:
    """Return width and height, in image pixels, of an image's largest part with the aspect ratio of `shape`."""
    (width, height), (shape_width, shape_height) = size, shape
    if width * shape_height <= height * shape_width:
        return width, width * shape_height / shape_width
    return height * shape_width / shape_height, height


def is_upscaled(own: Size, size: Size) -> bool:
    """Return whether resizing from an image of `own` size to `size` invents detail, a side being too short."""
    return own[0] < size[0] or own[1] < size[1]
