"""LPIPS (Zhang et al. 2018, arXiv 1801.03924), the distance that the paper's DIV is measured with, where installed.

The package `lpips` needs torchvision and downloads AlexNet once. Shapes: B images, C channels, H/W pixels.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from dreambooth.data.images import resize_and_crop, to_tensor
from dreambooth.errors import ModelError

RESOLUTION = 256  # pixels; 64 and smaller would leave AlexNet no room


class Perceptual:
    """Measure distances among images with a network that takes two batches of pixels in [-1, 1]."""

    def __init__(self, network: Any, device: str) -> None:
        self.network = network
        self.device = device

    @torch.no_grad()
    def distance(self, images: Sequence[Image]) -> Tensor:
        """Return LPIPS of all pairs, [B, B], 0 on the diagonal."""
        pixels_BCHW = torch.stack([to_tensor(resize_and_crop(image, (RESOLUTION, RESOLUTION))) for image in images])
        pixels_BCHW = pixels_BCHW.to(self.device)
        rows = [self.network(one.expand_as(pixels_BCHW), pixels_BCHW).flatten() for one in pixels_BCHW]
        return torch.stack(rows).float().cpu()


def load_lpips(device: str) -> Perceptual | None:
    """Load LPIPS with AlexNet, as the metric is reported most; None where the package is not installed.

    Raises ModelError where its weights cannot be had.
    """
    try:
        import lpips
    except ImportError:
        return None
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # it prints where it loads from
            network = lpips.LPIPS(net="alex").eval().to(device)
    except OSError as error:
        raise ModelError(f"LPIPS: AlexNet's weights are neither in torch's cache nor to be had ({error})") from error
    return Perceptual(network, device)
