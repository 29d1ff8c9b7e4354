"""Latents by definition: the first principal components of square patches of toy images.

Training an autoencoder from scratch in minutes gives soft images and latents that keep moving. Here the latents are
fixed first, by linear algebra: the denoiser can train on them at once, while the decoder learns to invert them (better
than linearly: it knows what the world looks like) and the encoder learns to produce them.

Shapes: B batch, C latent channels, H/W image height and width (pixels), h/w latent height and width, P patch side,
D = 3 * P * P numbers in a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Return PIL images as one float tensor [B, 3, H, W] in -1..1."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def to_images(pixels_BCHW: Tensor) -> list[Image.Image]:
    """Return pixels [B, 3, H, W] as PIL images; values beyond -1..1 are clipped."""
    bytes_BHWC = (pixels_BCHW.float().clamp(-1, 1) + 1).mul(127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(image.numpy()) for image in bytes_BHWC.cpu()]


@dataclass(frozen=True)
class LinearCodec:
    """Map affinely between patches and latents: latent = (patch - mean) @ encode, patch = latent @ decode + mean."""

    mean_D: Tensor
    encode_DC: Tensor
    decode_CD: Tensor

    @property
    def patch(self) -> int:
        return round((len(self.mean_D) // 3) ** 0.5)

    @property
    def num_channels(self) -> int:
        return self.encode_DC.shape[1]

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Encode pixels in -1..1 to latents [B, C, h, w] of standard deviation 1 over the whole world."""
        patches = torch.nn.functional.pixel_unshuffle(pixels_BCHW, self.patch)
        centred = patches - self.mean_D[:, None, None]
        return torch.einsum("bdhw,dc->bchw", centred, self.encode_DC)

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Return the best linear approximation of the pixels, [B, 3, H, W]."""
        patches = torch.einsum("bchw,cd->bdhw", latents_BChw, self.decode_CD) + self.mean_D[:, None, None]
        return torch.nn.functional.pixel_shuffle(patches, self.patch)

    def to(self, device: str) -> LinearCodec:
        """Return the same on a device."""
        return LinearCodec(self.mean_D.to(device), self.encode_DC.to(device), self.decode_CD.to(device))

    def save(self, path: Path) -> None:
        save_file({"mean": self.mean_D, "encode": self.encode_DC, "decode": self.decode_CD}, path)

    @staticmethod
    def load(path: Path) -> LinearCodec:
        tensors = load_file(path)
        return LinearCodec(tensors["mean"], tensors["encode"], tensors["decode"])


def fit_codec(pixels_BCHW: Tensor, channels: int, patch: int) -> LinearCodec:
    """Return the codec of the principal components of all patches, each scaled by variance^(-1/4).

    Full whitening (-1/2) would make fine texture as loud as the layout and the denoiser would spend itself on it; no
    whitening would leave it nearly silent. Half way is what trained best. The overall standard deviation is then 1.
    """
    patches = torch.nn.functional.pixel_unshuffle(pixels_BCHW, patch).permute(0, 2, 3, 1).flatten(0, 2).double()
    mean = patches.mean(0)
    variance, basis = torch.linalg.eigh(torch.cov((patches - mean).T))
    variance, basis = variance.flip(0)[:channels], basis.flip(1)[:, :channels]
    basis = basis * basis.sum(0).sign()  # eigenvectors have no sign of their own: fix it, so that a refit agrees
    scale = variance**-0.25
    scale = scale / (variance * scale**2).mean().sqrt()
    encode, decode = basis * scale, (basis / scale).T
    return LinearCodec(mean.float(), encode.float().contiguous(), decode.float().contiguous())
