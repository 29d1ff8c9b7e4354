"""The stages of training an embedded base; each is resumable, and skipped once its budget is spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from toyworld.base import BaseSettings, train_base
from toyworld.dataset import load_or_make_codec
from toyworld.editions import FIRST, Edition
from toyworld.export import trained_vae
from toyworld.judge import train_judge
from toyworld.latents import LinearCodec
from toyworld.second import contrast, details, sides
from toyworld.second.judge_training import train_judge as train_second_judge
from toyworld.second.later import train_later
from toyworld.training import Budget
from toyworld.vae import SCALING_FACTOR, train_decoder, train_encoder

LATER = (sides.STAGE, contrast.STAGE, details.STAGE)  # each begins with what the one before has made


def train_stages(budgets: dict[str, Budget], settings: BaseSettings) -> None:
    """Run the stages named in `budgets`, each for that long, in the order in which they build on each other."""
    work, edition, device = settings.folder, settings.edition, settings.device
    codec = load_or_make_codec(work, edition)
    if "decoder" in budgets:
        train_decoder(edition, codec, budgets["decoder"], work, device)
    if "encoder" in budgets:
        train_encoder(edition, codec, budgets["encoder"], work, device)
    if "judge" in budgets:
        if edition is FIRST:
            train_judge(budgets["judge"], softeners(edition, codec, work), work)
        else:
            train_second_judge(budgets["judge"], softeners(edition, codec, work, device), work, device)
    if "base" in budgets:
        train_base(replace(settings, budget=budgets["base"]))
    for stage in LATER:
        if stage.name in budgets:
            train_later(stage, replace(settings, budget=budgets[stage.name]))


def softeners(
    edition: Edition, codec: LinearCodec, work: Path, device: str = "cpu"
) -> list[Callable[[Tensor], Tensor]]:
    """Return functions that make renders on `device` look drawn by a model.

    They add noise to the latents, and decode them linearly or by the autoencoder.
    """
    vae, codec = trained_vae(work, edition).to(device), codec.to(device)

    def linear(pixels_BCHW: Tensor) -> Tensor:
        return codec.decode(_disturbed(codec, pixels_BCHW)).clamp(-1, 1)

    def learned(pixels_BCHW: Tensor) -> Tensor:
        return vae.decode(_disturbed(codec, pixels_BCHW) / SCALING_FACTOR).sample.clamp(-1, 1)

    return [linear, learned]


def _disturbed(codec: LinearCodec, pixels_BCHW: Tensor, max_noise: float = 0.25) -> Tensor:
    latents = codec.encode(pixels_BCHW)
    share = torch.rand(len(latents), 1, 1, 1, device=latents.device)
    return latents + max_noise * share * torch.randn_like(latents)
