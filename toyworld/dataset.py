"""The denoiser's training set: latents, masks and caption tokens of the first N samples, made once on disk.

Files in a folder: codec.safetensors, N-latents.npy (float16 [N, C, h, w]), N-masks.npy (float16 [N, M, h, w], each
mask's fraction of each latent position), N-tokens.npy (int16 [N, K, 32], K captions of each image). They are
memory-mapped, so several processes share them; a GPU takes all of them into its memory.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from dreambooth.errors import UserError
from dreambooth.files import atomic_file
from toyworld.editions import Edition
from toyworld.latents import LinearCodec, fit_codec, to_pixels
from toyworld.tokenizer import build_tokenizer

NUM_CODEC_IMAGES = 4000
CHUNK = 1000
# Seeds from here on belong to samples that the denoiser never trains on, such as those that the codec is fitted to.
FRESH_SEEDS = 1_000_000_000


@dataclass(frozen=True)
class Dataset:
    """Hold the training set, memory-mapped or on a GPU."""

    latents: Tensor
    masks: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: Tensor, which_caption: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents [B, C, h, w] and masks [B, M, h, w] as float32, and tokens [B, 32] of a caption each."""
        latents, masks, tokens = self.latents[indices], self.masks[indices], self.tokens[indices]
        if which_caption is not None:
            tokens = tokens[torch.arange(len(indices), device=indices.device), which_caption]
        return latents.float(), masks.float(), tokens.long()

    def to(self, device: str) -> Dataset:
        """Return the same set in the memory of a device."""
        return Dataset(self.latents.to(device), self.masks.to(device), self.tokens.to(device))


def random_pixels(edition: Edition, rng: random.Random, num: int) -> Tensor:
    """Return images of any things in any scenes, [B, 3, 64, 64] in -1..1.

    Held-out ones are among them: what an autoencoder has seen gives the denoiser no advantage on them.
    """
    return to_pixels([edition.any_image(rng) for _ in range(num)])


def load_or_make_codec(folder: Path, edition: Edition) -> LinearCodec:
    """Return the linear codec that defines the latents, fitting and saving it on first use."""
    path = folder / "codec.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        seeds = range(FRESH_SEEDS, FRESH_SEEDS + NUM_CODEC_IMAGES)
        pixels_BCHW = to_pixels([edition.image(seed) for seed in seeds])
        fit_codec(pixels_BCHW, edition.latent_channels, edition.latent_patch).save(path)
    codec = LinearCodec.load(path)
    found, wanted = (codec.num_channels, codec.patch), (edition.latent_channels, edition.latent_patch)
    if found != wanted:
        has, takes = (f"{channels} channels of {patch} px" for channels, patch in (found, wanted))
        raise UserError(f"{path} has {has}, the {edition.name} edition {takes}")
    return codec


def load_or_make_dataset(folder: Path, edition: Edition, num_samples: int, num_processes: int = 1) -> Dataset:
    """Return the training set, rendering it on first use (about 500 samples a second and process)."""
    done = folder / f"dataset-{num_samples}.done"
    if not done.is_file():
        _make(folder, edition, num_samples, num_processes)
        done.touch()
    # Copy on write: nothing writes to them, but PyTorch warns of arrays that are read-only.
    arrays = (np.load(folder / f"{num_samples}-{name}.npy", mmap_mode="c") for name in ("latents", "masks", "tokens"))
    return Dataset(*(torch.from_numpy(array) for array in arrays))


def _make(folder: Path, edition: Edition, num_samples: int, num_processes: int) -> None:
    """Write the arrays in the seeds' order. Chunks that an interrupted call has left are not made again."""
    codec = load_or_make_codec(folder, edition)
    parts = folder / f"dataset-{num_samples}"
    parts.mkdir(exist_ok=True)
    chunks = [range(start, min(start + CHUNK, num_samples)) for start in range(0, num_samples, CHUNK)]
    missing = [chunk for chunk in chunks if not _path(parts, chunk).is_file()]
    make = partial(_make_chunk, edition, codec, parts)
    if num_processes == 1:
        for chunk in missing:
            make(chunk)
    else:
        # Forked beside torch's threads a process may hang, hence "spawn".
        with multiprocessing.get_context("spawn").Pool(num_processes, torch.set_num_threads, (1,)) as pool:
            pool.map(make, missing, chunksize=1)
    for name in ("latents", "masks", "tokens"):
        np.save(
            folder / f"{num_samples}-{name}.npy",
            np.concatenate([np.load(_path(parts, chunk))[name] for chunk in chunks]),
        )
    shutil.rmtree(parts)


def _path(parts: Path, chunk: range) -> Path:
    return parts / f"{chunk.start}.npz"


def _make_chunk(edition: Edition, codec: LinearCodec, parts: Path, chunk: range) -> None:
    """Write the arrays of the samples with these seeds."""
    samples, patch = [edition.sample(seed) for seed in chunk], edition.latent_patch
    masks = np.stack([sample.masks for sample in samples])
    n, m, height, width = masks.shape
    small = masks.reshape(n, m, height // patch, patch, width // patch, patch).mean((3, 5))
    latents = codec.encode(to_pixels([sample.image for sample in samples]))
    captions = [text for sample in samples for text in sample.captions]
    tokenizer = _tokenizer(frozenset(edition.vocabulary()))
    tokens = np.array(tokenizer(captions, padding="max_length").input_ids, dtype=np.int16)
    with atomic_file(_path(parts, chunk)) as file:
        np.savez(
            file,
            latents=latents.half().numpy(),
            masks=small.astype(np.float16),
            tokens=tokens.reshape(n, -1, tokens.shape[-1]),
        )


@cache  # once a process
def _tokenizer(vocabulary: frozenset[str]) -> CLIPTokenizer:
    return build_tokenizer(set(vocabulary))
