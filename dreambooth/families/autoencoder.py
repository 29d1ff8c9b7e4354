"""The latent codec of families with diffusers' image VAE (Rombach et al. 2022, arXiv 2112.10752).

Shapes: B batch, C channels, H/W height and width (pixels or latents).
"""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dreambooth.errors import UserError


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
