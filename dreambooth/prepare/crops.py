"""Photos as training sees them: cut in the middle, cut around the subject, and how much each part counts."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreambooth.data.buckets import nearest_bucket
from dreambooth.data.cuts import Cut, Window, around_subject, centered
from dreambooth.data.latents import loss_weight
from dreambooth.prepare.findings import Needs, Photo

PIXELS_A_LATENT = 8  # of nearly all VAEs
DIMMED = 0.25  # brightness of what does not count at all
MAX_SIDE = 512  # pixels of a crop that is shown


@dataclass(frozen=True)
class Crops:
    """Hold a photo's crops. around, weights: around the subject; None where it has no mask.

    weights: the crop, the darker the less a part of it counts. weight: mean of the weights, 0 to 1.
    """

    photo: Photo
    middle: Image.Image
    around: Image.Image | None = None
    weights: Image.Image | None = None
    weight: float = 1.0


def crops_of(photo: Photo, needs: Needs, unmasked_weight: float) -> Crops:
    """Return the crops of a photo. unmasked_weight: data.unmasked_weight, how much counts what a mask leaves out."""
    factor = photo.image.width / photo.size[0]
    middle = shown(reduced(centered(photo.size, nearest_bucket(photo.size, needs.buckets)), factor), photo.image)
    if photo.mask is None or (box := photo.box) is None:
        return Crops(photo, middle)
    width, height = photo.size
    pixels = round(box[0] * width), round(box[1] * height), round(box[2] * width), round(box[3] * height)
    cut = reduced(around_subject(photo.size, pixels, needs.buckets), factor)
    weight_1HW = weights_of(cut, photo.mask, unmasked_weight)
    around = shown(cut, photo.image)
    return Crops(photo, middle, around, dimmed(around, weight_1HW), float(weight_1HW.mean()))


def reduced(cut: Cut, factor: float) -> Cut:
    """Return the same cut of an image that is `factor` times as large."""
    own = cut.window
    return Cut(Window(own.left * factor, own.top * factor, own.width * factor, own.height * factor), cut.size)


def shown(cut: Cut, image: Image.Image) -> Image.Image:
    """Return a crop, reduced to what a page shows."""
    crop = cut.apply(image)
    crop.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return crop


def weights_of(cut: Cut, mask: Image.Image, unmasked_weight: float) -> Tensor:
    """Return how much each latent position of a crop counts in the loss, [1, H, W]."""
    inside = cut.inside(mask.size)
    inside_1HW = None if inside is None else _latent_levels(inside)
    return loss_weight(_latent_levels(cut.apply(mask)), inside_1HW, unmasked_weight)


def _latent_levels(mask: Image.Image) -> Tensor:
    """Return the mean of a mask at each latent position, 0 to 1, [1, H, W]."""
    levels_1HW = torch.from_numpy(np.array(mask, np.float32))[None] / 255
    return torch.nn.functional.avg_pool2d(levels_1HW, PIXELS_A_LATENT)


def dimmed(crop: Image.Image, weight_1HW: Tensor) -> Image.Image:
    """Return a crop with each latent position as bright as it counts."""
    brightness = ((DIMMED + (1 - DIMMED) * weight_1HW[0]) * 255).round().to(torch.uint8).numpy()
    overlay = Image.fromarray(brightness).resize(crop.size, Image.Resampling.NEAREST)
    return Image.composite(crop, Image.new("RGB", crop.size), overlay)
