"""Pictures as latents, and which of them a step sees.

A picture is resized, cropped and encoded once, each crop and its mirror image (a "view"); what is kept is the VAE's
mean and standard deviation, so that every step samples fresh latents (Kingma & Welling 2014, eq. 4) without running the
VAE again. A sample's place in the run, counted over steps, accumulated batches and devices, decides everything about
it. Shapes: P pictures, V views, B batch, C channels, H/W height and width (pixels or latents).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dreambooth.captions import Captions
from dreambooth.images import load_image, resize_and_crop, to_tensor
from dreambooth.randomness import Randomness

Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]  # pixels [B, 3, H, W] in [-1, 1] -> mean and std of scaled latents
Sample = dict[str, Any]


@dataclass(frozen=True)
class EncodedPictures:
    """Mean and standard deviation of the latents of every view, float32 [P, V, C, H, W], on the CPU.

    frame_PV6: how each view was cut out of its picture (`frame_of`). mask_PV1HW: how much each place of the latents
    counts, 0 to 1; None: all the same.
    """

    mean_PVCHW: Tensor
    std_PVCHW: Tensor
    frame_PV6: Tensor
    mask_PV1HW: Tensor | None = None


def encode_pictures(
    paths: Sequence[Path],
    encode: Encoder,
    *,
    resolution: int,
    num_crops: int,
    flip: bool,
    randomness: Randomness,
    masks: Sequence[Image.Image] | None = None,
) -> EncodedPictures:
    """Encode `num_crops` random square crops of each picture (1: the centre), and their mirror images if `flip`.

    masks: for each picture one in grey levels, of its size; 255 counts, 0 does not.
    """
    means, stds, frames, weights = [], [], [], []
    for number, path in enumerate(paths):
        positions = (
            randomness.generator("crop", number).random((num_crops, 2)).tolist() if num_crops > 1 else [[0.5, 0.5]]
        )
        image = load_image(path)
        mean_VCHW, std_VCHW = encode(_views(image, resolution, positions, flip))
        means.append(mean_VCHW.float().cpu())
        stds.append(std_VCHW.float().cpu())
        frame_V6 = torch.tensor([frame_of(image.size, resolution, position) for position in positions])
        frames.append(torch.cat([frame_V6, frame_V6]) if flip else frame_V6)
        if masks is not None:
            mask_VCHW = _views(masks[number].convert("RGB"), resolution, positions, flip)
            weights.append(
                F.adaptive_avg_pool2d((mask_VCHW[:, :1] + 1) / 2, (mean_VCHW.shape[-2], mean_VCHW.shape[-1]))
            )
    masks_PV1HW = torch.stack(weights) if weights else None
    return EncodedPictures(torch.stack(means), torch.stack(stds), torch.stack(frames), masks_PV1HW)


def frame_of(size: tuple[int, int], resolution: int, position_xy: Sequence[float]) -> list[float]:
    """What SDXL is told of a square crop (arXiv 2307.01952, section 2.2), pixels: height and width of the original, top
    and left of the crop after resizing, height and width of the result. size: (width, height) of the original."""
    side = min(size)
    left, top = (
        position * (length - side) * resolution / side for position, length in zip(position_xy, size, strict=True)
    )
    return [size[1], size[0], round(top), round(left), resolution, resolution]


def _views(image: Image.Image, resolution: int, positions_xy: list[list[float]], flip: bool) -> Tensor:
    """Crops of a picture in [-1, 1], and their mirror images, [V, 3, H, W]."""
    crops = [to_tensor(resize_and_crop(image, resolution, position_xy=(x, y))) for x, y in positions_xy]
    return torch.stack(crops + [crop.flip(-1) for crop in crops] if flip else crops)


class LatentDataset(Dataset[Sample]):
    """Latents by a sample's place in the run: {"place": [], "latents": [C, H, W], "frame": [6], "prompt": text}.

    With masks there is "mask": [1, H, W] as well.

    Each pass over the pictures goes through all of them in a new order; view and latent noise are drawn for the place.
    `name` keeps two data sets (subject and prior) from drawing the same numbers.
    """

    def __init__(self, pictures: EncodedPictures, captions: Captions, randomness: Randomness, name: str) -> None:
        self.pictures = pictures
        self.captions = captions
        self.randomness = randomness
        self.name = name

    def picture_at(self, place: int) -> int:
        num_pictures = len(self.pictures.mean_PVCHW)
        order = self.randomness.permutation(f"{self.name}/order", num_pictures, place // num_pictures)
        return order[place % num_pictures]

    def prompt_at(self, place: int) -> str:
        return self.captions(self.picture_at(place), place)

    def __getitem__(self, place: int) -> Sample:
        _, num_views, *shape = self.pictures.mean_PVCHW.shape
        picture = self.picture_at(place)
        view = int(self.randomness.integers(f"{self.name}/view", [place], num_views))
        noise_CHW = self.randomness.normal(f"{self.name}/latent", [place], tuple(shape))[0]
        mean_CHW, std_CHW = self.pictures.mean_PVCHW[picture, view], self.pictures.std_PVCHW[picture, view]
        latents_CHW, frame_6 = mean_CHW + std_CHW * noise_CHW, self.pictures.frame_PV6[picture, view]
        sample: Sample = {"place": torch.tensor(place), "latents": latents_CHW, "frame": frame_6}
        sample["prompt"] = self.prompt_at(place)
        if self.pictures.mask_PV1HW is not None:
            sample["mask"] = self.pictures.mask_PV1HW[picture, view]
        return sample


class PlaceSampler(Sampler[list[int]]):
    """Endless batches of places for one process of several, from the batch on that `position()` names.

    position: (first batch, rank, world size); asked when iteration starts, which is after a resumed run has restored
    its step, and processes have found each other.
    """

    def __init__(self, batch_size: int, position: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 1)) -> None:
        self.batch_size = batch_size
        self.position = position

    def __iter__(self) -> Iterator[list[int]]:
        batch, rank, world_size = self.position()
        while True:
            start = (batch * world_size + rank) * self.batch_size
            yield list(range(start, start + self.batch_size))
            batch += 1
