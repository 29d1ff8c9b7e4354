"""The denoiser's training set: latents, masks and caption tokens of the first N samples, made once on disk.

Files in a folder: codec.safetensors, latents.npy (float16 [N, C, h, w]), masks.npy (float16 [N, M, h, w], each mask's
fraction of each latent position), tokens.npy (int16 [N, K, 32], K captions of each image). They are memory-mapped, so
several processes share them.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from dreambooth.errors import UserError
from dreambooth.files import atomic_file
from toyworld.editions import EDITIONS, Edition
from toyworld.latents import LinearCodec, fit_codec, to_pixels
from toyworld.tokenizer import build_tokenizer

NUM_CODEC_IMAGES = 4000
CHUNK = 1000
# Seeds from here on belong to samples that the denoiser never trains on, such as those that the codec is fitted to.
FRESH_SEEDS = 1_000_000_000
Chunk = tuple[np.ndarray, np.ndarray, list[tuple[str, ...]]]  # images, masks and captions of some samples


@dataclass(frozen=True)
class Dataset:
    """Hold the memory-mapped training set."""

    latents: np.ndarray
    masks: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: Tensor, which_caption: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents [B, C, h, w] and masks [B, M, h, w] as float32, and tokens [B, 32] of a caption each."""
        rows = indices.numpy()
        latents, masks, tokens = self.latents[rows], self.masks[rows], self.tokens[rows]
        if which_caption is not None:
            tokens = tokens[np.arange(len(rows)), which_caption.numpy()]
        return torch.from_numpy(latents).float(), torch.from_numpy(masks).float(), torch.from_numpy(tokens).long()


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
    """Return the training set, rendering it on first use (about 700 samples a second and process)."""
    done = folder / f"dataset-{num_samples}.done"
    if not done.is_file():
        _make(folder, edition, num_samples, num_processes)
        done.touch()
    arrays = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("latents", "masks", "tokens"))
    return Dataset(*arrays)


def _make(folder: Path, edition: Edition, num_samples: int, num_processes: int) -> None:
    """Write the arrays in the seeds' order. Chunks that an interrupted call has left are not made again."""
    codec, tokenizer = load_or_make_codec(folder, edition), build_tokenizer(edition.vocabulary())
    parts = folder / f"dataset-{num_samples}"
    parts.mkdir(exist_ok=True)
    chunks = [(edition.name, start, min(start + CHUNK, num_samples)) for start in range(0, num_samples, CHUNK)]
    missing = [chunk for chunk in chunks if not _path(parts, chunk).is_file()]
    for chunk, rendered in zip(missing, _rendered(missing, num_processes), strict=True):
        with atomic_file(_path(parts, chunk)) as file:
            encoded = _encode_chunk(rendered, codec, tokenizer)
            np.savez(file, latents=encoded[0], masks=encoded[1], tokens=encoded[2])
    for name in ("latents", "masks", "tokens"):
        np.save(folder / f"{name}.npy", np.concatenate([np.load(_path(parts, chunk))[name] for chunk in chunks]))
    shutil.rmtree(parts)


def _path(parts: Path, chunk: tuple[str, int, int]) -> Path:
    return parts / f"{chunk[1]}.npz"


def _rendered(chunks: list[tuple[str, int, int]], num_processes: int) -> Iterator[Chunk]:
    if num_processes == 1 or not chunks:
        yield from map(_render_chunk, chunks)
        return
    # Forked beside torch's threads a process may hang, hence "spawn".
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        yield from pool.imap(_render_chunk, chunks)


def _render_chunk(chunk: tuple[str, int, int]) -> Chunk:
    """Return images [n, 64, 64, 3], masks [n, M, h, w] and captions of the samples of an edition from start to end."""
    name, start, end = chunk
    edition = EDITIONS[name]
    samples, patch = [edition.sample(seed) for seed in range(start, end)], edition.latent_patch
    masks = np.stack([sample.masks for sample in samples])
    n, m, height, width = masks.shape
    small = masks.reshape(n, m, height // patch, patch, width // patch, patch).mean((3, 5))
    images = np.stack([np.asarray(sample.image) for sample in samples])
    return images, small.astype(np.float16), [sample.captions for sample in samples]


def _encode_chunk(chunk: Chunk, codec: LinearCodec, tokenizer: CLIPTokenizer) -> tuple[np.ndarray, ...]:
    """Return latents [n, C, h, w], masks [n, M, h, w] and tokens [n, K, 32] of some samples."""
    images, masks, captions = chunk
    pixels_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
    flat = [text for texts in captions for text in texts]
    tokens = np.array(tokenizer(flat, padding="max_length").input_ids, dtype=np.int16)
    latents = codec.encode(pixels_BCHW).half().numpy()
    return latents, masks, tokens.reshape(len(captions), -1, tokens.shape[-1])
