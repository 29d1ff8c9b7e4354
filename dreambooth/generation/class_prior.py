"""The class prior, made on the fly: images of the class by the frozen base model, kept as latents.

Image `i` is a pure function of (base model, class prompt, sampler settings, shape, seed, i). It is made when a step
first needs it, in blocks on fixed boundaries, so training starts after the first block, and a half-made prior goes on
where it was. It is never decoded and never goes through JPEG. A block is one small file, written atomically into a
folder that is addressed by a fingerprint of everything the images depend on: a changed prompt or base model cannot
meet stale ones. Several processes make a block each at a time, and read each other's.
Shapes: B batch, C channels, H/W latent height and width.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from dreambooth.data.latents import LatentDataset, Sample
from dreambooth.distributed import WorkShare
from dreambooth.families import Conditioning, Family
from dreambooth.files import atomic_file

# Noisy latents [B, C, H, W], timesteps [B], prompts -> prediction [B, C, H, W].
Predict = Callable[[Tensor, Tensor, Sequence[str]], Tensor]
WAIT_S = 0.2  # between two looks at a block that another process makes
MakeLatents = Callable[[list[int]], Tensor]  # indices of class images, a block -> their latents [B, C, H, W]


class Prior(Protocol):
    """The source of class samples."""

    def samples(self, sample_indices: Sequence[int]) -> list[Sample]:
        """Return class samples for these indices, on the CPU, without crop data or mask."""
        ...


class ImagePrior:
    """Serve existing images: the user's own of the class or, with a teacher, the subject's."""

    def __init__(self, dataset: LatentDataset) -> None:
        self.dataset = dataset

    def samples(self, sample_indices: Sequence[int]) -> list[Sample]:
        return [
            self.dataset[index]._replace(size_crop_6=None, mask_1HW=None, inside_1HW=None) for index in sample_indices
        ]


def make_teacher(frozen: Family) -> Predict:
    """Return a function that predicts the target of class samples: the frozen base with the class prompt.

        target = epsilon_base(alpha * x0 + sigma * noise, t, class prompt)

    Learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282) for a denoiser. The true noise is one
    sample of what the base has learned, its prediction is the mean; so no class image has to be sampled, and a model
    that has forgotten nothing has a loss of 0. The latents x0 may be any that the base can predict.
    """
    dtype = next(frozen.denoiser.parameters()).dtype

    @cache
    def encoded(prompt: str) -> Conditioning:
        return frozen.encode_prompts([prompt])

    @torch.no_grad()
    def predict(noisy_BCHW: Tensor, t_B: Tensor, prompts: Sequence[str]) -> Tensor:
        with torch.autocast(noisy_BCHW.device.type, enabled=False):  # called within a training step
            conditioning = Conditioning.cat([encoded(prompt) for prompt in prompts])
            return frozen.predict(noisy_BCHW.to(dtype), t_B, conditioning).float()

    return predict


class GeneratedPrior:
    """Serve `num_images` class images in turn, made in blocks of `block_size` when first needed, kept in `folder`.

    class_prompts: used in turn as well, image i is of prompt i modulo their number. num_samples: of the whole run,
    which needs no more images; None: not known. is_shared: whether other runs make images in `folder` as well.
    """

    def __init__(
        self,
        make: MakeLatents | None,
        num_images: int,
        block_size: int,
        folder: Path,
        class_prompts: Sequence[str],
        num_samples: int | None = None,
        is_shared: bool = False,
    ) -> None:
        self.is_shared = is_shared
        self.class_prompts = class_prompts
        self._make = make
        self._blocks: dict[int, Tensor] = {}
        self.num_images = num_images
        self.num_used = num_images if num_samples is None else min(num_images, num_samples)
        self.block_size = block_size
        self.folder = folder
        self.divide(WorkShare())

    def divide(self, work: WorkShare) -> None:
        """Divide the missing blocks among processes, which all call this before any of them makes one.

        They all need to see the same `folder`.
        """
        self._work = work
        self._made = {block for block in range(self.num_blocks) if is_whole(self._path(block))}
        work.barrier()

    @property
    def num_blocks(self) -> int:
        """Return how many blocks the run uses."""
        return -(-self.num_used // self.block_size)

    @property
    def is_complete(self) -> bool:
        """Return whether every block that the run uses is made; then the frozen base is not needed, and not held."""
        return len(self._made) == self.num_blocks

    def samples(self, sample_indices: Sequence[int]) -> list[Sample]:
        """Return class samples. All processes must call this in each step: they make missing blocks together."""
        for index in self._work.global_indices(sample_indices):
            self._ensure(index % self.num_images // self.block_size)
        return [self._sample(index) for index in sample_indices]

    def _sample(self, sample_index: int) -> Sample:
        i = sample_index % self.num_images
        latents_CHW = self._block(i // self.block_size)[i % self.block_size]
        prompt = self.class_prompts[i % len(self.class_prompts)]
        return Sample("prior", sample_index, latents_CHW, prompt, name=f"class image {i}")

    def make_all(self, progress: Callable[[int, int], None] = lambda made, of: None) -> None:
        """Make all missing blocks now. progress: called with the number of blocks made, and of all."""
        for block in range(self.num_blocks):
            self._ensure(block)
            progress(len(self._made), self.num_blocks)

    def _ensure(self, block: int) -> None:
        """Make a block if it is missing; meanwhile each other process makes one of the next missing blocks."""
        if block in self._made:
            return
        following = [(block + ahead) % self.num_blocks for ahead in range(self.num_blocks)]
        missing = [each for each in following if each not in self._made][: self._work.world_size]
        if self._work.rank < len(missing):
            own = missing[self._work.rank]
            self._write_together(own) if self.is_shared else self._write(own)
        self._work.barrier()
        self._made.update(missing)
        if self.is_complete:
            self._make = None

    def _block(self, block: int) -> Tensor:
        if block not in self._blocks:
            self._blocks[block] = load_file(self._path(block))["latents"]
        return self._blocks[block]

    def _write_together(self, block: int) -> None:
        """Write a block, unless another run has; while one makes it, make the next block that nobody makes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        following = [(block + ahead) % self.num_blocks for ahead in range(self.num_blocks)]
        while not is_whole(self._path(block)):
            if not any(map(self._write_alone, following)):
                time.sleep(WAIT_S)

    def _write_alone(self, block: int) -> bool:
        """Write a block that is missing and that no other process is making; return whether it was one."""
        if is_whole(self._path(block)):
            return False
        try:
            with FileLock(self.folder / f"{block:05d}.lock", blocking=False):
                if not is_whole(self._path(block)):
                    self._write(block)
                return True
        except Timeout:
            return False

    def _write(self, block: int) -> None:
        assert self._make is not None, "a block is missing, but no function to make it was given"
        first = block * self.block_size
        latents_BCHW = self._make(list(range(first, min(first + self.block_size, self.num_images))))
        with atomic_file(self._path(block)) as file:
            latents_BCHW = latents_BCHW.float().cpu().contiguous()
            file.write(save({"latents": latents_BCHW}, {"sha256": digest_of(latents_BCHW)}))

    def _path(self, block: int) -> Path:
        return self.folder / f"{block:05d}.safetensors"


def digest_of(latents_BCHW: Tensor) -> str:
    """Return the SHA-256 of latents, in hexadecimal."""
    return hashlib.sha256(latents_BCHW.numpy().tobytes()).hexdigest()


def is_whole(path: Path) -> bool:
    """Return whether a block exists and is undamaged; a damaged one is made again."""
    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get("sha256")
            return written is None or written == digest_of(file.get_tensor("latents"))
    except (FileNotFoundError, SafetensorError):
        return False


def prior_fingerprint(**depends_on: Any) -> str:
    """Return a name for everything that the class images depend on: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
