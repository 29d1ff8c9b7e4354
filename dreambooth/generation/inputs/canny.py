"""Edges after Canny (1986), to the pixel those of OpenCV's `cv2.Canny(image, low, high)`, which ControlNets learned.

Shapes: H/W height and width in pixels.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

LOW, HIGH = 100, 200  # thresholds of the published ControlNets' maps
TAN_22 = 13573  # tan(22.5 degrees) in units of 2^-15, as OpenCV rounds it

Levels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Edges = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def canny(image: Image.Image, low: int = LOW, high: int = HIGH) -> Image.Image:
    """Return the edges of an RGB image, white on black, as an RGB image of its size.

    An edge is a ridge of the gradient above `low` that is connected to one above `high`. The gradient is the sum of
    Sobel's absolute derivatives in that channel in which it is greatest.
    """
    edges_HW = _connected(*_ridges(*_gradient(np.asarray(image.convert("RGB"))), low, high))
    return Image.fromarray(np.where(edges_HW, 255, 0).astype(np.uint8)).convert("RGB")


def _gradient(levels_HWC: np.ndarray) -> tuple[Levels, Levels, Levels]:
    """Return Sobel's derivatives along width and height, and the sum of their absolute values."""
    levels_HWC = levels_HWC.astype(np.int64)
    along_x_HWC = ndimage.correlate1d(levels_HWC, [-1, 0, 1], axis=1, mode="nearest")
    along_x_HWC = ndimage.correlate1d(along_x_HWC, [1, 2, 1], axis=0, mode="nearest")
    along_y_HWC = ndimage.correlate1d(levels_HWC, [-1, 0, 1], axis=0, mode="nearest")
    along_y_HWC = ndimage.correlate1d(along_y_HWC, [1, 2, 1], axis=1, mode="nearest")
    size_HWC = abs(along_x_HWC) + abs(along_y_HWC)
    channel_HW1 = size_HWC.argmax(axis=2)[..., None]  # the first of equal ones
    x_HW, y_HW, size_HW = (
        np.take_along_axis(each, channel_HW1, axis=2)[..., 0] for each in (along_x_HWC, along_y_HWC, size_HWC)
    )
    return x_HW, y_HW, size_HW


def _ridges(x_HW: Levels, y_HW: Levels, size_HW: Levels, low: int, high: int) -> tuple[Edges, Edges]:
    """Return where the gradient is greatest across the edge: those above `low`, and of them those above `high`.

    Its direction is one of four; of two equal neighbours the first one counts.
    """
    padded = np.pad(size_HW, 1)
    height, width = size_HW.shape

    def neighbour(down: int, right: int) -> Levels:
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    steep = abs(y_HW) << 15
    flat = abs(x_HW) * TAN_22
    is_across = steep < flat
    is_down = steep > flat + (abs(x_HW) << 16)
    is_falling = (x_HW ^ y_HW) < 0  # its slope runs from the lower left to the upper right
    across = (size_HW > neighbour(0, -1)) & (size_HW >= neighbour(0, 1))
    down = (size_HW > neighbour(-1, 0)) & (size_HW >= neighbour(1, 0))
    falling = (size_HW > neighbour(-1, 1)) & (size_HW > neighbour(1, -1))
    rising = (size_HW > neighbour(-1, -1)) & (size_HW > neighbour(1, 1))
    is_ridge = np.where(is_across, across, np.where(is_down, down, np.where(is_falling, falling, rising)))
    weak = is_ridge & (size_HW > low)
    return weak, weak & (size_HW > high)


def _connected(weak_HW: Edges, strong_HW: Edges) -> Edges:
    """Return the weak ridges that touch a strong one, by others or themselves, corners included."""
    labels, _ = ndimage.label(weak_HW, structure=np.ones((3, 3)))
    kept = np.unique(labels[strong_HW])
    return np.isin(labels, kept[kept > 0])
