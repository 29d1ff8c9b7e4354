"""The images that the readers learn from, a batch for each step of a training."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from toyworld.encoder_batches import augment, blur
from toyworld.latents import to_pixels
from toyworld.readers.scenes import KnownScene, seen_scene


def batch_of_step(stage: str, step: int, num_images: int) -> tuple[Tensor, list[KnownScene], random.Random]:
    """Return pixels [B, 3, H, W] in -1..1 and scenes of a training step, and what draws on; the same on every call."""
    rng = random.Random(f"{stage} {step}")
    scenes = [seen_scene(rng) for _ in range(num_images)]
    pixels = to_pixels([scene.image for scene in scenes])
    torch.manual_seed(step)
    return augment(pixels, blur(pixels, rng)), scenes, rng
