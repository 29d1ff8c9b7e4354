"""Numbers that say how a photo was taken: blur, light, bars, colours around the subject. No model is needed.

`benchmarks/photo_findings.py` measures how often each is right. Shapes: H/W height and width in pixels, 3 channels. A
box is (left, top, right, bottom) in fractions of the image, 0 to 1.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

from dreambooth.data.cuts import WHITE as WHITE_OF_MASK
from dreambooth.data.cuts import subject_box, white_parts

Box = tuple[float, float, float, float]

MEASURED_SIDE = 512  # pixels: photos are reduced to this longer side first, so that numbers of all sizes compare
SMALL_SIDE = 192  # pixels; below it a narrower window tells blur apart
WINDOW, SMALL_WINDOW = 11, 7  # pixels of the second blur
TILES = 4  # along each side, of which the sharpest counts: a blurred background is no fault
MIN_CHANGE = 0.004  # mean step between neighbours, of 1, below which a tile is a plain wall and shows nothing
WHITE = 250  # of 255
FULL = 254  # of 255: a channel that cannot show more
WHITE_BACKDROP = 0.9  # of the border's pixels: then white was meant, as in pictures of products
BAR_TOLERANCE = 6  # of 255: within this a row has one colour
BAR_EDGE = 16  # of 255: what differs more from the bar is the photo
MIN_BAR, MAX_BAR = 0.02, 0.42  # of the side, each
RING = 0.12  # of the side, left, right and on top: the background where no mask says which part it is
COLOUR_BINS = (8, 16, 16)  # of brightness and the two differences of colour


def reduced(image: Image.Image, side: int = MEASURED_SIDE) -> Image.Image:
    """Return the image with no side longer than `side` pixels."""
    smaller = image.copy()
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    return smaller


def blur(image: Image.Image) -> float:
    """Return how blurred the sharpest part of a photo is, 0 (sharp) to 1.

    Crete et al. 2007, "The blur effect": what a further blur takes from the steps between neighbouring pixels,

        1 - sum(max(0, step - blurred step)) / sum(step),   the worse of both directions,

    here in each of 4 x 4 tiles. A plain wall counts as sharp (0), and so does a tile that has too few pixels for a step
    (NaN): there is nothing to see.
    """
    grey_HW = np.asarray(reduced(image).convert("L"), np.float32) / 255
    window = WINDOW if max(grey_HW.shape) >= SMALL_SIDE else SMALL_WINDOW
    found_DTT = np.stack([_blur_of_tiles(grey_HW, axis, window) for axis in (0, 1)])
    is_plain_TT = ~(found_DTT[:, 1].max(0) >= MIN_CHANGE)
    worse_TT = found_DTT[:, 0].max(0)
    return 0.0 if is_plain_TT.all() else float(worse_TT[~is_plain_TT].min())


def _blur_of_tiles(grey_HW: np.ndarray, axis: int, window: int) -> np.ndarray:
    """Return the blur along an axis, and the mean step, of each tile, [2, TILES, TILES]."""
    blurred_HW = ndimage.uniform_filter1d(grey_HW, window, axis=axis)
    step_HW = abs(np.diff(grey_HW, axis=axis))
    lost_HW = np.maximum(0, step_HW - abs(np.diff(blurred_HW, axis=axis)))
    steps_TT, lost_TT = _tile_means(step_HW), _tile_means(lost_HW)
    return np.stack([1 - lost_TT / np.maximum(steps_TT, 1e-9), steps_TT])


def _tile_means(values_HW: np.ndarray) -> np.ndarray:
    """Return the mean of each tile, [TILES, TILES]; NaN of one without a pixel."""
    means_TT = np.full((TILES, TILES), np.nan)
    for y, row in enumerate(np.array_split(values_HW, TILES, axis=0)):
        for x, tile in enumerate(np.array_split(row, TILES, axis=1)):
            if tile.size:
                means_TT[y, x] = tile.mean()
    return means_TT


def brightest(image: Image.Image) -> float:
    """Return the brightness, 0 to 1, that one pixel in a hundred exceeds: low where the whole photo is dark."""
    return float(np.percentile(np.asarray(reduced(image).convert("L")), 99)) / 255


def clipped_fraction(image: Image.Image) -> float:
    """Return the fraction of pixels with a channel at its top, 0 to 1: light has taken their detail.

    White that surrounds the subject on all sides is a backdrop, and does not count.
    """
    pixels_HW3 = np.asarray(reduced(image))
    is_full_HW = pixels_HW3.max(2) >= FULL
    is_white_HW = pixels_HW3.min(2) >= WHITE
    border = np.concatenate([is_white_HW[0], is_white_HW[-1], is_white_HW[:, 0], is_white_HW[:, -1]])
    if border.mean() < WHITE_BACKDROP:
        return float(is_full_HW.mean())
    labels_HW, _ = ndimage.label(is_white_HW)
    is_subject_HW = labels_HW != np.bincount(labels_HW[is_white_HW]).argmax()
    return float(is_full_HW[is_subject_HW].mean()) if is_subject_HW.any() else 0.0


def content_box(image: Image.Image) -> Box:
    """Return the photo within bars of one colour, as screenshots and films have them; all of it where there are none.

    Bars come in pairs of one colour and size, and each ends at one row along most of its length: a white wall behind a
    subject does not. A single bar is not told from a floor.
    """
    pixels_HW3 = np.asarray(reduced(image), np.float32)
    top, bottom = _bars(pixels_HW3)
    left, right = _bars(pixels_HW3.transpose(1, 0, 2))
    return left, top, 1 - right, 1 - bottom


def _bars(pixels_HW3: np.ndarray) -> tuple[float, float]:
    """Return the bars above and below, in fractions of the height; 0 for none."""
    (above, colour_3), (below, other_3) = (_bar(rows_HW3) for rows_HW3 in (pixels_HW3, pixels_HW3[::-1]))
    one, other = above / len(pixels_HW3), below / len(pixels_HW3)
    is_pair = min(one, other) >= MIN_BAR and abs(one - other) <= MIN_BAR
    has_photo, has_one_colour = one + other < 2 * MAX_BAR, abs(colour_3 - other_3).max() <= BAR_TOLERANCE
    return (one, other) if is_pair and has_photo and has_one_colour else (0.0, 0.0)


def _bar(rows_HW3: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the height in pixels of the bar that begins with the first row, 0 for none, and its colour."""
    colour_3 = np.median(rows_HW3[0], axis=0)
    distance_HW = abs(rows_HW3 - colour_3).max(2)
    is_bar_H = (distance_HW <= BAR_TOLERANCE).mean(1) >= 0.97
    if is_bar_H.all() or not is_bar_H[0]:
        return 0, colour_3
    end = int(np.argmin(is_bar_H))
    beyond_W = distance_HW[min(end + 2, len(rows_HW3) - 1)]  # JPEG smears the edge over a row or two
    return (end if (beyond_W > BAR_EDGE).mean() >= 0.5 else 0), colour_3


def background_colours(image: Image.Image, mask: Image.Image | None) -> np.ndarray:
    """Return how often each colour is met around the subject, summing to 1.

    mask: white is the subject; None: the background is the rim on the left, on top and on the right.
    """
    side = 64
    small = image.resize((side, side), Image.Resampling.BOX).convert("YCbCr")
    is_background_HW = np.ones((side, side), bool)
    if mask is None:
        rim = round(RING * side)
        is_background_HW[rim:, rim:-rim] = False
    else:
        is_background_HW = np.asarray(mask.resize((side, side), Image.Resampling.BOX)) < 64
    colours_N3 = np.asarray(small, np.float32)[is_background_HW]
    counts, _ = np.histogramdd(colours_N3, bins=COLOUR_BINS, range=((0, 256), (64, 192), (64, 192)))
    counts = ndimage.gaussian_filter(counts, 0.8)  # a shade more or less of light is the same wall
    return counts / max(counts.sum(), 1e-9)


def likeness_of_colours(one: np.ndarray, other: np.ndarray) -> float:
    """Return the overlap of two histograms, 0 to 1 (Swain and Ballard 1991, "Color indexing")."""
    return float(np.minimum(one, other).sum())


def box_of(mask: Image.Image) -> Box | None:
    """Return the box around the white of a mask without its specks, or None where nothing is white."""
    found = subject_box(mask)
    if found is None:
        return None
    width, height = mask.size
    return found[0] / width, found[1] / height, found[2] / width, found[3] / height


def second_part(mask: Image.Image) -> tuple[float, Box | None]:
    """Return the area of a mask's second largest part over that of its largest, 0 to 1, and the box around it.

    Parts are white pixels that touch each other, at a corner too; 0 and None where there is one part or none.
    """
    labels_HW, num_parts = ndimage.label(np.asarray(mask) >= WHITE_OF_MASK, np.ones((3, 3)))
    if num_parts < 2:
        return 0.0, None
    areas = np.bincount(labels_HW.ravel())[1:]
    first, second = np.argsort(-areas, kind="stable")[:2]
    rows, columns = ndimage.find_objects(labels_HW)[second]
    height, width = labels_HW.shape
    box = columns.start / width, rows.start / height, columns.stop / width, rows.stop / height
    return float(areas[second] / areas[first]), box


def cut_off(mask: Image.Image) -> tuple[float, str]:
    """Return how much of the subject's box lies against an edge of the photo, 0 to 1, and that edge.

    The white at an edge, in its length along it, over the length of the subject's box along it.
    """
    box, white_HW = box_of(mask), white_parts(mask)
    if box is None:
        return 0.0, ""
    height, width = white_HW.shape
    across, down = (box[2] - box[0]) * width, (box[3] - box[1]) * height
    edges = {
        "left": white_HW[:, 0].sum() / down,
        "right": white_HW[:, -1].sum() / down,
        "top": white_HW[0].sum() / across,
        "bottom": white_HW[-1].sum() / across,
    }
    name = max(edges, key=lambda edge: edges[edge])
    return float(edges[name]), name
