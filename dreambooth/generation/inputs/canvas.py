"""The pixels of an image to start from: expanded, masked, cut to the size that is generated, and put back together.

Shapes: H/W height and width in pixels. A size is (width, height), a box (left, top, right, bottom).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dreambooth.data.images import resize_and_crop
from dreambooth.generation.inputs.image_refs import read_image
from dreambooth.generation.inputs.init_image import InitImage, Margins, fitted_size, is_usual

MARGIN_PART = 4  # around a mask that is redrawn alone, this part of its longer side is shown to the model as well
MIN_MARGIN = 16  # pixels

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Canvas:
    """Hold what of an image is generated, and what the result goes into.

    image: of the size that is generated. mask: as large, grey levels; 0 is kept, 255 redrawn, between them both are
    mixed; None: all is redrawn. whole, whole_mask: the uncut image that `box` was cut out of, where a part of it is
    redrawn alone.
    """

    image: Image.Image
    mask: Image.Image | None = None
    whole: Image.Image | None = None
    whole_mask: Image.Image | None = None
    box: Box | None = None

    def finish(self, made: Image.Image) -> Image.Image:
        """Return a generated image with what was to be kept: exactly the pixels of the original where the mask is 0."""
        if self.whole is not None and self.whole_mask is not None and self.box is not None:
            left, top, right, bottom = self.box
            patch = made.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
            finished = self.whole.copy()
            finished.paste(patch, (left, top), self.whole_mask.crop(self.box))
            return finished
        return made if self.mask is None else Image.composite(made, self.image, self.mask)


def natural_size(init: InitImage, resolution: int, multiple: int) -> tuple[int, int]:
    """Return the (width, height) to generate at where none is asked for: the image's own or, where the model was not
    trained near it, its shape at the model's resolution.

    Of a part that is redrawn alone, that part's shape at that resolution.
    """
    image, mask = _expanded(init)
    box = box_around(mask, init.feather) if init.only_masked and mask is not None else None
    if box is not None:
        return fitted_size((box[2] - box[0], box[3] - box[1]), resolution, multiple)
    return image.size if is_usual(image.size, resolution, multiple) else fitted_size(image.size, resolution, multiple)


def finished_size(init: InitImage | None, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) of what `Canvas.finish` gives of a size that is generated.

    Where a part is redrawn alone it is the size of the whole image.
    """
    if init is None or not init.only_masked:
        return size
    image, mask = _expanded(init)
    return size if mask is None or box_around(mask) is None else image.size


def make_canvas(init: InitImage, size: tuple[int, int]) -> Canvas:
    """Return the canvas of an image for a size that is generated, (width, height).

    Raises UserError for a file that cannot be read, or a mask of another size than its image.
    """
    image, mask = _expanded(init)
    if mask is None:
        return Canvas(resize_and_crop(image, size))
    box = box_around(mask, init.feather) if init.only_masked else None
    if box is None:
        cut = resize_and_crop(mask, size)
        return Canvas(resize_and_crop(image, size), feathered(cut, init.feather))
    return cut_out(image, feathered(mask, init.feather), box, size)


def cut_out(image: Image.Image, mask: Image.Image, box: Box, size: tuple[int, int]) -> Canvas:
    """Return the canvas of a part of an image, resampled to the size that is generated, (width, height)."""
    part, part_mask = (
        each.resize(size, resample, box=box)
        for each, resample in ((image, Image.Resampling.LANCZOS), (mask, Image.Resampling.BOX))
    )
    return Canvas(part, part_mask, image, mask, box)


def _expanded(init: InitImage) -> tuple[Image.Image, Image.Image | None]:
    """Return the image with its sides expanded, filled with the colours at its edges, and the mask of both."""
    image = read_image(init.image, "--init-image")
    mask = None if init.mask is None else read_image(init.mask, "--mask").convert("L")
    if not any(init.expand):
        return image, mask
    mask = Image.new("L", image.size, 0) if mask is None else mask
    return expanded(image, mask, init.expand)


def expanded(image: Image.Image, mask: Image.Image, margins: Margins) -> tuple[Image.Image, Image.Image]:
    """Return an image with margins in the colours at its edges, and its mask with white margins."""
    left, top, right, bottom = margins
    around = ((top, bottom), (left, right))
    pixels_HWC = np.pad(np.asarray(image), (*around, (0, 0)), mode="edge")
    return Image.fromarray(pixels_HWC), Image.fromarray(np.pad(np.asarray(mask), around, constant_values=255))


def feathered(mask: Image.Image, feather: int) -> Image.Image:
    """Return a mask that fades out over `feather` pixels outside of its white part.

    What is white stays white and what is further away stays black, to the level: a square of half that radius is
    first drawn around each white pixel, then averaged over. 0 leaves the mask as it is.
    """
    if feather < 1:
        return mask
    radius = (feather + 1) // 2
    grown_11HW = _max_pool(_levels(mask), radius)
    side = 2 * radius + 1
    padded_11HW = F.pad(grown_11HW, [radius] * 4, mode="replicate")
    faded_11HW = F.avg_pool2d(F.avg_pool2d(padded_11HW, (1, side), 1), (side, 1), 1)
    return Image.fromarray(faded_11HW[0, 0].round().clamp(0, 255).to(torch.uint8).numpy())


def _levels(mask: Image.Image) -> Tensor:
    """Return the grey levels of a mask, float32 [1, 1, H, W], 0 to 255."""
    return torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]


def _max_pool(levels_11HW: Tensor, radius: int) -> Tensor:
    side = 2 * radius + 1
    along_width = F.max_pool2d(levels_11HW, (1, side), 1, (0, radius))
    return F.max_pool2d(along_width, (side, 1), 1, (radius, 0))


def redrawn_latents(mask: Image.Image, scale_factor: int) -> Tensor:
    """Return which latents are redrawn, bool [1, 1, H, W]: those with any pixel that is not wholly kept."""
    return F.max_pool2d(_levels(mask), scale_factor) > 0


def redrawn_pixels(mask: Image.Image) -> Tensor:
    """Return which pixels are not wholly kept, bool [1, 1, H, W]."""
    return _levels(mask) > 0


def box_around(mask: Image.Image, feather: int = 0) -> Box | None:
    """Return the part of an image to redraw for a mask, with a margin; no more than twice as long as wide.

    feather: by which the mask is still to be feathered; the margin takes all of it in. None for a mask without any
    white.
    """
    inner = mask.getbbox()
    if inner is None:
        return None
    longer = max(inner[2] - inner[0], inner[3] - inner[1])
    margin = max(MIN_MARGIN, longer // MARGIN_PART, feather + feather % 2)  # an odd one ends a pixel further out
    left, right = _span(inner[0] - margin, inner[2] + margin, (longer + 2 * margin) // 2, mask.width)
    top, bottom = _span(inner[1] - margin, inner[3] + margin, (longer + 2 * margin) // 2, mask.height)
    return left, top, right, bottom


def _span(start: int, end: int, at_least: int, length: int) -> tuple[int, int]:
    """Return a span of at least so many pixels about the same centre, within 0 .. length."""
    missing = max(0, at_least - (end - start))
    start, end = start - missing // 2, end + missing - missing // 2
    return max(0, start), min(length, end)
