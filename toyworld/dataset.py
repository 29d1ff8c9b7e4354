"""The denoiser's training set: latents, object masks and caption tokens of the first N samples, made once on disk.

Files in a folder: codec.safetensors, latents.npy (float16 [N, C, h, w]), masks.npy (float16 [N, 1, h, w], the object's
fraction of each latent position), tokens.npy (int16 [N, 32]). They are memory-mapped, so several processes share them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from toyworld import world
from toyworld.latents import LinearCodec, fit_codec, to_pixels
from toyworld.tokenizer import build_tokenizer

NUM_CODEC_IMAGES = 4000
CHUNK = 1000
# Seeds from here on belong to samples that the denoiser never trains on, such as those that the codec is fitted to.
FRESH_SEEDS = 1_000_000_000


@dataclass(frozen=True)
class Dataset:
    """Hold the memory-mapped training set."""

    latents: np.ndarray
    masks: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents [B, C, h, w] and masks [B, 1, h, w] as float32, and tokens [B, 32]."""
        rows = indices.numpy()
        latents, masks, tokens = self.latents[rows], self.masks[rows], self.tokens[rows]
        return torch.from_numpy(latents).float(), torch.from_numpy(masks).float(), torch.from_numpy(tokens).long()


def render_batch(seeds: range) -> Tensor:
    """Return the images of the training samples with these seeds, [B, 3, 64, 64] in -1..1."""
    return to_pixels([world.render(*world.sample(seed)[:2]) for seed in seeds])


def random_pixels(rng: random.Random, num: int) -> Tensor:
    """Return images of any objects in any scenes, [B, 3, 64, 64] in -1..1.

    Held-out objects are among them: what an autoencoder has seen gives the denoiser no advantage on them.
    """
    return to_pixels([world.render(world.random_spec(rng), world.random_scene(rng)) for _ in range(num)])


def load_or_make_codec(folder: Path) -> LinearCodec:
    """Return the linear codec that defines the latents, fitting and saving it on first use."""
    path = folder / "codec.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        fit_codec(render_batch(range(FRESH_SEEDS, FRESH_SEEDS + NUM_CODEC_IMAGES))).save(path)
    return LinearCodec.load(path)


def load_or_make_dataset(folder: Path, num_samples: int) -> Dataset:
    """Return the training set, rendering it on first use (about 1,200 samples a second)."""
    done = folder / f"dataset-{num_samples}.done"
    if not done.is_file():
        _make(folder, num_samples)
        done.touch()
    arrays = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("latents", "masks", "tokens"))
    return Dataset(*arrays)


def _make(folder: Path, num_samples: int) -> None:
    parts = list(_chunks(load_or_make_codec(folder), num_samples))
    for name, arrays in zip(("latents", "masks", "tokens"), zip(*parts, strict=True), strict=True):
        np.save(folder / f"{name}.npy", np.concatenate(arrays))


def _chunks(codec: LinearCodec, num_samples: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    tokenizer = build_tokenizer()
    for start in range(0, num_samples, CHUNK):
        samples = [world.sample(seed) for seed in range(start, min(start + CHUNK, num_samples))]
        pixels = to_pixels([world.render(spec, scene) for spec, scene, _ in samples])
        masks = np.stack([np.asarray(world.object_mask(spec, scene)) for spec, scene, _ in samples])
        small = F.avg_pool2d(torch.from_numpy(masks).float().div(255)[:, None], codec.patch)
        tokens = tokenizer([text for *_, text in samples], padding="max_length").input_ids
        yield codec.encode(pixels).half().numpy(), small.half().numpy(), np.array(tokens, dtype=np.int16)
