"""Pictures as latents, and which of them a step sees.

A picture is resized, cropped and encoded once, each crop and its mirror image (a "view"); what is kept is the VAE's
mean and standard deviation, so that every step samples fresh latents (Kingma & Welling 2014, eq. 4) without running the
VAE again. A sample's place in the run, counted over steps, accumulated batches and devices, decides everything about
it. Shapes: P pictures, V views, B batch, C channels, H/W height and width (pixels or latents).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dreambooth.images import load_image, resize_and_crop, to_tensor
from dreambooth.randomness import Randomness

Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]  # pixels [B, 3, H, W] in [-1, 1] -> mean and std of scaled latents
Sample = dict[str, Tensor]


@dataclass(frozen=True)
class EncodedPictures:
    """Mean and standard deviation of the latents of every view, float32 [P, V, C, H, W], on the CPU."""

    mean_PVCHW: Tensor
    std_PVCHW: Tensor


def encode_pictures(
    paths: Sequence[Path], encode: Encoder, *, resolution: int, num_crops: int, flip: bool, randomness: Randomness
) -> EncodedPictures:
    """Encode `num_crops` random square crops of each picture (1: the centre), and their mirror images if `flip`."""
    means, stds = [], []
    for number, path in enumerate(paths):
        crops = _crops(
            path, resolution, num_crops, randomness.generator("crop", number).random((num_crops, 2)).tolist()
        )
        pixels_VCHW = torch.stack(crops + [crop.flip(-1) for crop in crops] if flip else crops)
        mean_VCHW, std_VCHW = encode(pixels_VCHW)
        means.append(mean_VCHW.float().cpu())
        stds.append(std_VCHW.float().cpu())
    return EncodedPictures(torch.stack(means), torch.stack(stds))


def _crops(path: Path, resolution: int, num_crops: int, positions: list[list[float]]) -> list[Tensor]:
    image = load_image(path)
    if num_crops == 1:
        positions = [[0.5, 0.5]]
    return [to_tensor(resize_and_crop(image, resolution, position_xy=(x, y))) for x, y in positions]


class LatentDataset(Dataset[Sample]):
    """Latents by a sample's place in the run: {"place": [], "latents": [C, H, W]}.

    Each pass over the pictures goes through all of them in a new order; view and latent noise are drawn for the place.
    `name` keeps two data sets (subject and prior) from drawing the same numbers.
    """

    def __init__(self, pictures: EncodedPictures, randomness: Randomness, name: str) -> None:
        self.pictures = pictures
        self.randomness = randomness
        self.name = name

    def __getitem__(self, place: int) -> Sample:
        num_pictures, num_views, *shape = self.pictures.mean_PVCHW.shape
        order = self.randomness.permutation(f"{self.name}/order", num_pictures, place // num_pictures)
        picture = order[place % num_pictures]
        view = int(self.randomness.integers(f"{self.name}/view", [place], num_views))
        noise_CHW = self.randomness.normal(f"{self.name}/latent", [place], tuple(shape))[0]
        mean_CHW, std_CHW = self.pictures.mean_PVCHW[picture, view], self.pictures.std_PVCHW[picture, view]
        return {"place": torch.tensor(place), "latents": mean_CHW + std_CHW * noise_CHW}


class PlaceSampler(Sampler[list[int]]):
    """Endless batches of places for one device of `world_size`, from the batch that `first_batch()` names on.

    `first_batch` is asked when iteration starts, which is after a resumed run has restored its position.
    """

    def __init__(
        self, batch_size: int, first_batch: Callable[[], int] = lambda: 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.batch_size = batch_size
        self.first_batch = first_batch
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.first_batch()
        while True:
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))
            batch += 1
