"""The images that the readers learn from, a batch for each step of a training.

Shapes: N renderings, B images of a batch, P patches or queries, D channels, H/W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from torch import Tensor

from toyworld.encoder_batches import augment, blur
from toyworld.latents import to_pixels
from toyworld.readers.scenes import KnownScene, learned_scene

CHUNK = 250  # renderings that a process draws at a time
# Of the images. Stripes and spots of small things are gone in a soft image, and with them what tells its colours.
P_SOFTENED = 0.1


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
    return augmented(scenes, rng, step), scenes, rng


def augmented(scenes: Sequence[KnownScene], rng: random.Random, seed: int) -> Tensor:
    """Return the pixels of scenes, [B, 3, H, W] in -1..1, a part of them soft, all with some noise."""
    pixels = to_pixels([scene.image for scene in scenes])
    torch.manual_seed(seed)
    return augment(pixels, blur(pixels, rng), P_SOFTENED)


@dataclass(frozen=True)
class SeenScenes:
    """Hold renderings, and of each the states that a part of a model made of it which does not learn any more."""

    scenes: Sequence[KnownScene]
    states_NPD: Tensor  # half precision

    def batch(self, stage: str, step: int, num_images: int) -> tuple[Tensor, list[KnownScene], random.Random]:
        """Return states [B, P, D] and scenes of a training step, and what draws on; the same on every call."""
        rng = random.Random(f"{stage} {step}")
        numbers = rng.choices(range(len(self.scenes)), k=num_images)
        return self.states_NPD[numbers].float(), [self.scenes[number] for number in numbers], rng

    def read_by(self, find: Callable[[Tensor], Tensor]) -> SeenScenes:
        """Return the same renderings with what `find` makes of their states."""
        parts = (find(part_BPD.float()) for part_BPD in self.states_NPD.split(CHUNK))
        return SeenScenes(self.scenes, _joined(parts, len(self.scenes)))


def see_once(look: Callable[[Tensor], Tensor], drawn: Sequence[KnownScene]) -> SeenScenes:
    """Return renderings with what `look` makes of their pixels; 30,000 of 256 patches and 128 channels take 2 GB."""
    rng = random.Random("see once")
    chunks = range(0, len(drawn), CHUNK)
    parts = (look(augmented(drawn[start : start + CHUNK], rng, start)) for start in chunks)
    return SeenScenes(drawn, _joined(parts, len(drawn)))


@torch.no_grad()
def _joined(parts: Iterable[Tensor], number: int) -> Tensor:
    """Return the parts as one tensor of so many rows in half precision, without a second copy of all."""
    joined, start = torch.empty(0), 0
    for part in parts:
        if start == 0:
            joined = torch.empty(number, *part.shape[1:], dtype=torch.float16)
        joined[start : start + len(part)] = part
        start += len(part)
    return joined
