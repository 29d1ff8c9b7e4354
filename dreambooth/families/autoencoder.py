"""The latent codecs of families: diffusers' image VAE (Rombach et al. 2022, arXiv 2112.10752), Qwen-Image's of films.

Shapes: B batch, C channels, H/W height and width (pixels or latents).
"""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from torch import Tensor

from dreambooth.errors import UserError
from dreambooth.families.patches import PATCH


@dataclass
class KLCodec:
    """An `AutoencoderKL` behind the `LatentCodec` protocol: latents are (z - shift) * scale, as its config says."""

    vae: AutoencoderKL

    @property
    def vae_scale_factor(self) -> int:
        """Return the number of pixels for each latent along a side: 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size_step(self) -> int:
        return self.vae_scale_factor

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the VAE's moments as the denoiser expects them."""
        moments = self.vae.encode(pixels_BCHW.to(self.vae.device, self.vae.dtype)).latent_dist
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor
        mean_BCHW = moments.mean - shift if shift else moments.mean
        return mean_BCHW * scale, moments.std * scale

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Invert `encode_images`, as far as the VAE goes."""
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor
        z_BCHW = latents_BCHW.to(self.vae.device, self.vae.dtype) / scale
        return self.vae.decode(z_BCHW + shift if shift else z_BCHW).sample

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.vae_scale_factor
        for side in (height, width):
            if side % self.size_step or side <= 0:
                raise UserError(
                    f"an image side of {side} pixels does not fit this model; use a multiple of {self.size_step}"
                )
        return self.vae.config.latent_channels, height // factor, width // factor


@dataclass
class QwenImageCodec:
    """An `AutoencoderKLQwenImage` behind the `LatentCodec` protocol: an image is a film of one frame."""

    vae: AutoencoderKLQwenImage

    @property
    def vae_scale_factor(self) -> int:
        """Return the number of pixels for each latent along a side: 8."""
        return 2 ** len(self.vae.temperal_downsample)

    @property
    def size_step(self) -> int:
        return PATCH * self.vae_scale_factor

    @property
    def resolution(self) -> int:
        """Return 1024 pixels; the VAE's config says nothing of it."""
        return 1024

    @property
    def size_multiple(self) -> int:
        return self.size_step

    @property
    def _mean_std(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the channels, [1, C, 1, 1]."""
        config = self.vae.config
        mean, std = (torch.tensor(each, device=self.vae.device) for each in (config.latents_mean, config.latents_std))
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents as the denoiser expects them."""
        film = pixels_BCHW.to(self.vae.device, self.vae.dtype).unsqueeze(2)
        moments = self.vae.encode(film).latent_dist
        mean_1C11, std_1C11 = self._mean_std
        return (moments.mean.squeeze(2) - mean_1C11) / std_1C11, moments.std.squeeze(2) / std_1C11

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Invert `encode_images`, as far as the VAE goes."""
        mean_1C11, std_1C11 = self._mean_std
        z_BCHW = latents_BCHW.to(self.vae.device, self.vae.dtype) * std_1C11 + mean_1C11
        return self.vae.decode(z_BCHW.unsqueeze(2)).sample.squeeze(2)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        for side in (height, width):
            if side % self.size_step or side <= 0:
                raise UserError(
                    f"an image side of {side} pixels does not fit this model; use a multiple of {self.size_step}"
                )
        return self.vae.config.z_dim, height // self.vae_scale_factor, width // self.vae_scale_factor
