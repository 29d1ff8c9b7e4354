"""Randomness without state: every draw is a pure function of (seed, name of the choice, address).

An address is usually a sample's index in the run, counted over all optimizer steps, accumulated batches and devices. So
an interrupted run needs no generator state to go on, two devices never draw the same noise, and the draws of one choice
never shift those of another. Philox (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") is keyed with
128 bits of a hash; torch's own CPU generator keeps only 32 bits of a seed. Shapes: B samples, further axes as asked.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def seed_device(device: torch.device, seed: int) -> None:
    """Seed torch's generator of a device.

    `torch.manual_seed` records its call stack for every missing kind of device: 1 ms for each call.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@dataclass(frozen=True)
class Randomness:
    """Draw the random choices of a run with this seed, on the CPU, so that they do not depend on the device."""

    seed: int

    def generator(self, choice: str, *address: int) -> np.random.Generator:
        """Make a fresh generator for one choice at one address."""
        digest = hashlib.blake2b(f"{self.seed}/{choice}/{address}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))

    def normal(self, choice: str, indices: Iterable[int], shape: tuple[int, ...]) -> Tensor:
        """Draw standard normal numbers, float32, [B, *shape]: row `b` depends on the b-th index alone."""
        draws = [self.generator(choice, index).standard_normal(shape, dtype=np.float32) for index in indices]
        return torch.from_numpy(np.stack(draws))

    def integers(self, choice: str, indices: Iterable[int], high: int) -> Tensor:
        """Draw uniform whole numbers in [0, high), int64, [B]."""
        return torch.tensor([int(self.generator(choice, index).integers(high)) for index in indices])

    def permutation(self, choice: str, length: int, *address: int) -> list[int]:
        """Draw a random order of 0 .. length - 1."""
        return [int(i) for i in self.generator(choice, *address).permutation(length)]

    def torch_seed(self, choice: str, *address: int) -> int:
        """Draw a seed for torch's own generators: those inside modules (dropout) and samplers."""
        return int(self.generator(choice, *address).integers(2**32))
