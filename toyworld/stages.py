"""The stages of training the embedded base; each is resumable, and skipped once its minutes are spent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from toyworld.base import BaseSettings, train_base
from toyworld.dataset import load_or_make_codec
from toyworld.export import trained_vae
from toyworld.judge import train_judge
from toyworld.latents import LinearCodec
from toyworld.vae import SCALING_FACTOR, build_vae, train_decoder, train_encoder


def train_stages(
    minutes: dict[str, float],
    work: Path,
    device: str,
    batch_size: int,
    num_samples: int,
    init_from: Path | None,
) -> None:
    """Run the stages named in `minutes`, each for that long, in the order in which they build on each other."""
    codec = load_or_make_codec(work)
    if "decoder" in minutes:
        train_decoder(build_vae(), codec, minutes["decoder"], work, device)
    if "encoder" in minutes:
        train_encoder(build_vae(), codec, minutes["encoder"], work, device)
    if "judge" in minutes:
        train_judge(minutes["judge"], softeners(codec, work), work)
    if "base" in minutes:
        settings = BaseSettings(
            work,
            minutes["base"],
            num_samples=num_samples,
            batch_size=batch_size,
            device=device,
            init_from=init_from,
        )
        train_base(settings)


def softeners(codec: LinearCodec, work: Path) -> list[Callable[[Tensor], Tensor]]:
    """Return functions that make renders look drawn by a model.

    They add noise to the latents, and decode them linearly or by the autoencoder.
    """
    vae = trained_vae(work)

    def linear(pixels_BCHW: Tensor) -> Tensor:
        return codec.decode(_disturbed(codec, pixels_BCHW)).clamp(-1, 1)

    def learned(pixels_BCHW: Tensor) -> Tensor:
        return vae.decode(_disturbed(codec, pixels_BCHW) / SCALING_FACTOR).sample.clamp(-1, 1)

    return [linear, learned]


def _disturbed(codec: LinearCodec, pixels_BCHW: Tensor, max_noise: float = 0.25) -> Tensor:
    latents = codec.encode(pixels_BCHW)
    return latents + max_noise * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
