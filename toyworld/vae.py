"""The autoencoder, trained backwards: the latents are given (see `latents`), a decoder learns to draw from them, and an
encoder learns to produce them.

Shapes: B batch, C latent channels, H/W pixels, h/w latent height and width.
"""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from toyworld.ahead import Ahead
from toyworld.canvas import SIZE
from toyworld.dataset import random_pixels
from toyworld.editions import FIRST, Edition
from toyworld.latents import LinearCodec, to_pixels
from toyworld.training import Budget, Plan, fit

# The autoencoder's own latents are twice as large as the denoiser's. Every Stable Diffusion has a factor other than 1,
# so code that forgets it fails here too.
SCALING_FACTOR = 0.5
POSTERIOR_LOG_VARIANCE = -9.0  # constant: a standard deviation of 0.011, next to latents of about 2
LATENT_NOISE = 0.15  # at most, of latents of standard deviation 1: errors that a denoiser leaves
BATCH_SIZE = 8
GPU_BATCH_SIZE = 64


def build_vae(edition: Edition) -> AutoencoderKL:
    """Return an untrained autoencoder whose residual branches start at zero."""
    channels = edition.vae_widths
    assert 2 ** (len(channels) - 1) == edition.latent_patch
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=edition.latent_channels,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        scaling_factor=SCALING_FACTOR,
    )
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "conv2.weight" in name:
                parameter.zero_()
        _fix_posterior(vae)
    return vae.to(memory_format=torch.channels_last)  # a fifth faster on a CPU


def _fix_posterior(vae: AutoencoderKL) -> None:
    """Let the encoder's first C outputs be the mean as they are, and the log variance a constant."""
    assert vae.quant_conv is not None
    assert vae.quant_conv.bias is not None
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    channels = len(bias) // 2
    weight.zero_()
    weight[:channels, :channels, 0, 0] = torch.eye(channels)
    bias.zero_()
    bias[channels:] = POSTERIOR_LOG_VARIANCE
    vae.quant_conv.requires_grad_(False)


def _edges(pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    return pixels_BCHW.diff(dim=-1), pixels_BCHW.diff(dim=-2)


def decoder_loss(decoded_BCHW: Tensor, pixels_BCHW: Tensor) -> Tensor:
    """Return absolute and squared error plus the absolute error of differences between neighbouring pixels.

    The last keeps outlines and stripes crisp.
    """
    absolute = (decoded_BCHW - pixels_BCHW).abs().mean()
    squared = F.mse_loss(decoded_BCHW, pixels_BCHW)
    edges = zip(_edges(decoded_BCHW), _edges(pixels_BCHW), strict=True)
    return absolute + 4 * squared + 0.5 * sum(((a - b).abs().mean() for a, b in edges), torch.zeros(()))


def train_decoder(edition: Edition, codec: LinearCodec, budget: Budget, folder: Path, device: str = "cpu") -> None:
    """Train the decoder of an autoencoder on the codec's latents; its state is in `folder`/decoder.pt."""
    vae = build_vae(edition)
    assert vae.post_quant_conv is not None
    vae.to(device)
    trained = nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(step)
        pixels = batch_at(step)
        latents = codec.encode(pixels)
        noise = LATENT_NOISE * torch.rand(len(pixels), 1, 1, 1) * torch.randn_like(latents)
        decoded = vae.decode(((latents + noise) / SCALING_FACTOR).to(device)).sample
        return decoder_loss(decoded, pixels.to(device))

    with _batches("decoder", edition, device) as batch_at:
        fit(trained, loss_at, _plan("decoder", edition, budget, decay_fraction=0.6), folder / "decoder.pt")


def train_encoder(edition: Edition, codec: LinearCodec, budget: Budget, folder: Path, device: str = "cpu") -> None:
    """Train the encoder of an autoencoder to produce the codec's latents; its state is in `folder`/encoder.pt."""
    vae = build_vae(edition).to(device)

    def loss_at(step: int) -> Tensor:
        pixels = batch_at(step)
        mean = vae.encode(pixels.to(device)).latent_dist.mean
        return F.mse_loss(mean * SCALING_FACTOR, codec.encode(pixels).to(device))

    trained = nn.ModuleDict({"encoder": vae.encoder})
    with _batches("encoder", edition, device) as batch_at:
        fit(trained, loss_at, _plan("encoder", edition, budget, decay_fraction=0.8), folder / "encoder.pt")


def _batches(half: str, edition: Edition, device: str) -> Ahead[Tensor]:
    """Return what renders the batch of a step."""
    size = BATCH_SIZE if device == "cpu" else GPU_BATCH_SIZE
    return Ahead(partial(_batch, half, edition, size), device)


def _batch(half: str, edition: Edition, size: int, step: int) -> Tensor:
    return random_pixels(edition, random.Random(f"{half} {step}"), size)


def _plan(half: str, edition: Edition, budget: Budget, decay_fraction: float) -> Plan:
    return Plan(
        half,
        budget,
        peak_lr=2e-3,
        muon_lr=edition.vae_muon_lr,
        muon_prefix=f"{half}.",
        decay_fraction=decay_fraction,
        ema_decay=0.998,
        betas=(0.9, 0.98),
    )


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pixels_BCHW: Tensor) -> Tensor:
    """Encode and decode; pixels in -1..1, clipped."""
    return vae.decode(vae.encode(pixels_BCHW).latent_dist.mean).sample.clamp(-1, 1)


def psnr(first_BCHW: Tensor, second_BCHW: Tensor) -> float:
    """Return the peak signal-to-noise ratio of pixels in -1..1, decibels, mean over the images: 10 log10(4 / mse)."""
    errors = (first_BCHW - second_BCHW).pow(2).mean((1, 2, 3))
    return sum(10 * math.log10(4 / error) for error in errors.tolist()) / len(errors)


def fresh_pixels(num: int, seed: int = 0, edition: Edition = FIRST) -> Tensor:
    """Return images that no training saw, of things in held-out colours, [B, 3, 64, 64] in -1..1."""
    rng = random.Random(f"fresh {seed}")
    return to_pixels([edition.unseen_image(rng) for _ in range(num)])
