"""The images that the readers learn from, a batch for each step of a training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from toyworld.encoder_batches import augment, blur
from toyworld.latents import to_pixels
from toyworld.readers.scenes import KnownScene, learned_scene

CHUNK = 250  # renderings that a process draws at a time


def renderings(number: int, num_processes: int = 2, first: int = 0) -> list[KnownScene]:
    """Return so many renderings; the same on every call. 30,000 take 40 s on two cores.

    first: how many of the same row are left out before them.
    """
    starts = range(first, first + number, CHUNK)
    sizes = [min(CHUNK, first + number - start) for start in starts]
    if num_processes == 1:
        return [scene for chunk in map(_chunk, starts, sizes) for scene in chunk]
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        return [scene for chunk in pool.map(_chunk, starts, sizes) for scene in chunk]


def _chunk(start: int, size: int) -> list[KnownScene]:
    rng = random.Random(f"rendering {start}")
    return [learned_scene(rng) for _ in range(size)]


def batch_of_step(
    stage: str, step: int, num_images: int, drawn: Sequence[KnownScene] = ()
) -> tuple[Tensor, list[KnownScene], random.Random]:
    """Return pixels [B, 3, H, W] in -1..1 and scenes of a training step, and what draws on; the same on every call.

    drawn: renderings of which the batch is a random part; without them it is rendered anew.
    """
    rng = random.Random(f"{stage} {step}")
    scenes = rng.choices(drawn, k=num_images) if drawn else [learned_scene(rng) for _ in range(num_images)]
    pixels = to_pixels([scene.image for scene in scenes])
    torch.manual_seed(step)
    return augment(pixels, blur(pixels, rng)), scenes, rng
