"""Images to pixels and back, cut to size, and laid out in grids.

Shapes: B batch, C channels (3, red green blue), H/W height and width in pixels. A size is (width, height).
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreambooth.data.buckets import Size
from dreambooth.data.cuts import centered
from dreambooth.errors import NonFiniteError, UserError


def resize_and_crop(image: Image.Image, size: Size, position_xy: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """Cut the largest part of `image` in the shape of `size`, resized to that many pixels; nothing is squashed.

    position_xy: where the part lies, 0 left or top, 0.5 the centre, 1 right or bottom; only one side has room to move.
    Ask `is_upscaled` first where too small an image matters.
    """
    assert all(0 <= position <= 1 for position in position_xy), position_xy
    return centered(image.size, size, position_xy).apply(image)


def center_square(image: Image.Image) -> Image.Image:
    """Return the largest centred square, not resized."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as pixels_CHW, float32 in [-1, 1]: -1 is 0, 1 is 255."""
    assert image.mode == "RGB", image.mode
    pixels_HWC = torch.from_numpy(np.array(image))
    return pixels_HWC.permute(2, 0, 1).float().div(127.5).sub(1).contiguous()


def to_images(pixels_BCHW: Tensor) -> list[Image.Image]:
    """Return pixels in [-1, 1], any dtype and device, as RGB images: rounded, and clamped to that range.

    Undoes `to_tensor` exactly. Raises NonFiniteError rather than write the black image that NaN would become.
    """
    pixels_BHWC = pixels_BCHW.detach().float().cpu().permute(0, 2, 3, 1)
    if not pixels_BHWC.isfinite().all():
        raise NonFiniteError(
            "The decoded image holds numbers that are not finite. "
            "A VAE in float16 overflows easily: use float32 or bfloat16."
        )
    levels_BHWC = pixels_BHWC.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return [Image.fromarray(levels_HWC) for levels_HWC in levels_BHWC]


def grid(images: Sequence[Image.Image], columns: int, padding: int = 2) -> Image.Image:
    """Lay images of one size out in rows of `columns`, `padding` white pixels around each; a short row ends white."""
    assert images, "a grid of no images"
    assert len({image.size for image in images}) == 1, "a grid needs images of one size"
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = (length + padding for length in images[0].size)
    canvas = Image.new("RGB", (columns * width + padding, rows * height + padding), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        canvas.paste(image, (column * width + padding, row * height + padding))
    return canvas


def cells(grid_image: Image.Image, side: int, padding: int = 2) -> list[Image.Image]:
    """Return the images of `side` x `side` pixels that `grid` laid out, row by row; gaps in a last row come white.

    Raises UserError where `grid_image` cannot be such a grid.
    """
    columns, rows = ((length - padding) // (side + padding) for length in grid_image.size)
    if grid_image.size != (columns * (side + padding) + padding, rows * (side + padding) + padding):
        raise UserError(f"{grid_image.width} x {grid_image.height} pixels are no grid of images of {side} x {side}")
    lefts, tops = ([number * (side + padding) + padding for number in range(count)] for count in (columns, rows))
    return [grid_image.crop((left, top, left + side, top + side)) for top in tops for left in lefts]


def digest_files(paths: Iterable[str | Path]) -> str:
    """Return SHA-256, in hexadecimal, over names and contents in the order given; their folder does not count."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        # Digests of fixed length: no byte can move from a name to a content and leave the sum as it was.
        digest.update(hashlib.sha256(os.fsencode(path.name)).digest() + content)
    return digest.hexdigest()
