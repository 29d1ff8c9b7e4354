"""Maps of numbers, such as attention, shown as colours over an image. Shapes: H/W rows and columns of a map."""

import numpy as np
from PIL import Image
from torch import Tensor

COLOURS = "inferno"  # from dark, nothing, to bright
OPACITY = 0.65


def overlay(image: Image.Image, map_HW: Tensor, most: float) -> Image.Image:
    """Return an image under the colours of a map. most: the value of the brightest colour."""
    import matplotlib

    small = Image.fromarray(map_HW.numpy().astype(np.float32), mode="F")
    values = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC)) / max(most, 1e-9)
    colours = matplotlib.colormaps[COLOURS](values.clip(0, 1))[..., :3]
    return Image.blend(image.convert("RGB"), Image.fromarray((colours * 255).astype(np.uint8)), OPACITY)
