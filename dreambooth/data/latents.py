"""Images as latents, and the order in which training samples them.

An image is resized, cropped and encoded once, each crop and its mirror image (a "view"). Kept are the VAE's mean and
standard deviation, so that every step samples fresh latents (Kingma & Welling 2014, eq. 4) without running the VAE
again. A sample's index, counted over steps, accumulated batches and devices, decides everything about it.
Shapes: V views, C channels, H/W height and width (pixels or latents), which may differ between images.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dreambooth.data import cuts
from dreambooth.data.buckets import Size, largest_part, nearest_bucket
from dreambooth.data.captions import Captions
from dreambooth.data.cut_mix import MixedImage
from dreambooth.data.image_files import load_image
from dreambooth.data.images import to_tensor
from dreambooth.randomness import Randomness

Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]  # pixels [B, 3, H, W] in [-1, 1] -> mean and std of scaled latents
Source = Literal["subject", "prior", "validation"]
CENTER = [0.5, 0.5]


@dataclass(frozen=True)
class EncodedImage:
    """Hold mean and standard deviation of the latents of every view of an image, float32 [V, C, H, W], on the CPU.

    size_crop_V6: how each view was cut out of the image (`size_crop_of`). mask_V1HW: how much each latent position
    counts, 0 to 1; None: all the same. inside_V1HW: how much of each latent position shows the image and no padding, 0
    to 1; None: all of it. subject: number of the run's subject that it shows; images of two have the next number. name:
    of its file.
    """

    mean_VCHW: Tensor
    std_VCHW: Tensor
    size_crop_V6: Tensor
    mask_V1HW: Tensor | None = None
    subject: int = 0
    name: str = ""
    inside_V1HW: Tensor | None = None


class Sample(NamedTuple):
    """Hold one latent image [C, H, W] with its prompt, at one index of the run.

    source: data sets of different names draw different random numbers for one index.
    sample_index: counted over all optimizer steps, accumulated batches and devices of the run.
    size_crop_6: how the image was cut (`size_crop_of`); None: it is whole.
    mask_1HW: how much each latent position counts, 0 to 1; None: all the same.
    name: of the image, for messages.
    inside_1HW: how much of each latent position shows the image and no padding, 0 to 1; None: all of it.
    """

    source: Source
    sample_index: int
    latents_CHW: Tensor
    prompt: str
    size_crop_6: Tensor | None = None
    mask_1HW: Tensor | None = None
    name: str = ""
    inside_1HW: Tensor | None = None

    @property
    def is_prior(self) -> bool:
        return self.source == "prior"


@dataclass(frozen=True)
class Batch:
    """Hold samples whose latents have one shape, stacked. Shapes: B samples.

    size_crop_B6: how each image was cut (`size_crop_of`); those without that count as whole ones.
    weight_B1HW: how much each latent position counts; None: all the same.
    is_prior_B: bool, always on the CPU: what is picked by it is then known without waiting for another device.
    """

    sources: tuple[Source, ...]
    sample_indices: tuple[int, ...]
    prompts: tuple[str, ...]
    latents_BCHW: Tensor
    size_crop_B6: Tensor
    weight_B1HW: Tensor | None
    is_prior_B: Tensor

    @classmethod
    def stack(cls, samples: Sequence[Sample], vae_scale_factor: int, unmasked_weight: float = 0.0) -> "Batch":
        """Stack samples. vae_scale_factor: pixels a latent. unmasked_weight: of masked-out positions, 0 to 1."""
        height, width = (side * vae_scale_factor for side in samples[0].latents_CHW.shape[1:])
        whole_6 = torch.tensor([height, width, 0, 0, height, width])
        return cls(
            tuple(sample.source for sample in samples),
            tuple(sample.sample_index for sample in samples),
            tuple(sample.prompt for sample in samples),
            torch.stack([sample.latents_CHW for sample in samples]),
            torch.stack([whole_6 if sample.size_crop_6 is None else sample.size_crop_6 for sample in samples]),
            _stack_masks(samples, unmasked_weight),
            torch.tensor([sample.is_prior for sample in samples]),
        )

    def to(self, device: torch.device) -> "Batch":
        """Copy the tensors that the networks read to a device, without waiting for it."""
        return replace(
            self,
            latents_BCHW=self.latents_BCHW.to(device, non_blocking=True),
            size_crop_B6=self.size_crop_B6.to(device, non_blocking=True),
            weight_B1HW=None if self.weight_B1HW is None else self.weight_B1HW.to(device, non_blocking=True),
        )


def _stack_masks(samples: Sequence[Sample], unmasked_weight: float) -> Tensor | None:
    """Return how much each latent position counts, [B, 1, H, W]; None where no sample has a mask. Padding counts 0."""
    if all(sample.mask_1HW is None for sample in samples):
        return None
    everything_1HW = torch.ones_like(samples[0].latents_CHW[:1])
    weights = []
    for sample in samples:
        mask_1HW = everything_1HW if sample.mask_1HW is None else sample.mask_1HW
        weights.append(loss_weight(mask_1HW, sample.inside_1HW, unmasked_weight))
    return torch.stack(weights)


def loss_weight(mask_1HW: Tensor, inside_1HW: Tensor | None, unmasked_weight: float) -> Tensor:
    """Return how much each latent position counts: 1 on the subject, `unmasked_weight` beside it, 0 in padding."""
    weight_1HW = unmasked_weight + (1 - unmasked_weight) * mask_1HW
    return weight_1HW if inside_1HW is None else weight_1HW * inside_1HW


def encode_image_files(
    paths: Sequence[Path],
    encode: Encoder,
    *,
    buckets: Sequence[Size],
    num_crops: int,
    flip: bool,
    randomness: Randomness,
    masks: Sequence[Image.Image] | None = None,
    subjects: Sequence[int] | None = None,
    around_subject: bool = False,
) -> list[EncodedImage]:
    """Encode `num_crops` random crops of each image (1: the centre), and their mirror images if `flip`.

    buckets: sizes, of which each image gets the one nearest to its shape. masks: for each image one in grey levels, of
    its size; 255 counts, 0 does not. subjects: the number of the one that each image shows; None: the first.
    around_subject: one crop, which holds all that the mask has white.
    """
    encoded = []
    for number, path in enumerate(paths):
        image, mask = load_image(path), None if masks is None else masks[number]
        positions = randomness.generator("crop", number).random((num_crops, 2)).tolist() if num_crops > 1 else [CENTER]
        box = cuts.subject_box(mask) if around_subject and mask is not None else None
        crops, size_crops = _crops(image.size, buckets, positions, box, flip)
        subject = 0 if subjects is None else subjects[number]
        encoded.append(_encoded(image, mask, crops, size_crops, encode, flip, subject, path.name))
    return encoded


def encode_mixed(mixed: MixedImage, encode: Encoder, subject: int, name: str) -> EncodedImage:
    """Encode an image of two subjects as it is, in one view. Its padding does not count."""
    size = mixed.image.size
    whole = [cuts.centered(size, size)], [size_crop_of(size, size, CENTER)]
    encoded = _encoded(mixed.image, mixed.mask, *whole, encode, False, subject, name)
    shape = encoded.mean_VCHW.shape[-2], encoded.mean_VCHW.shape[-1]
    return replace(encoded, inside_V1HW=_pooled(_views(mixed.inside, whole[0], False), shape))


def _encoded(
    image: Image.Image, mask: Image.Image | None, crops: list[cuts.Cut], size_crops: list[list[float]],
    encode: Encoder, flip: bool, subject: int, name: str,
) -> EncodedImage:  # fmt: skip
    """Encode crops of an image, and their mirror images if `flip`. size_crops: how each view is described."""
    mean_VCHW, std_VCHW = encode(_views(image, crops, flip))
    shape = mean_VCHW.shape[-2], mean_VCHW.shape[-1]
    mask_V1HW = None if mask is None else _pooled(_views(mask.convert("L"), crops, flip), shape)
    inside_V1HW = None
    if (inside := crops[0].inside(image.size)) is not None:  # one crop, around the subject
        inside_V1HW = _pooled(_views(inside, [cuts.centered(inside.size, inside.size)], flip), shape)
    size_crop_V6 = torch.tensor(size_crops)
    mean_VCHW, std_VCHW = mean_VCHW.float().cpu(), std_VCHW.float().cpu()
    return EncodedImage(mean_VCHW, std_VCHW, size_crop_V6, mask_V1HW, subject, name, inside_V1HW)


def _crops(
    size: Size, buckets: Sequence[Size], positions_xy: list[list[float]], box: cuts.PixelBox | None, flip: bool
) -> tuple[list[cuts.Cut], list[list[float]]]:
    """Return the crops of an image, and how each is described, then each one's mirror image if `flip`.

    box: around the subject; None: at the positions. What a crop has lost on the right its mirror image has on the left.
    """
    if box is not None:
        crop = cuts.around_subject(size, box, buckets)
        mirrored = [cuts.Cut(crop.window.mirrored(size), crop.size)] if flip else []
        return [crop], [size_crop_of_window(size, each) for each in (crop, *mirrored)]
    bucket = nearest_bucket(size, buckets)
    crops = [cuts.centered(size, bucket, position) for position in positions_xy]
    of_mirrors = [[1 - x, y] for x, y in positions_xy] if flip else []
    return crops, [size_crop_of(size, bucket, position) for position in positions_xy + of_mirrors]


def _pooled(levels_V3HW: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return grey images in [-1, 1] as the mean of each latent position, 0 to 1, [V, 1, H, W]."""
    return F.adaptive_avg_pool2d((levels_V3HW[:, :1] + 1) / 2, shape)


def size_crop_of(size: Size, target: Size, position_xy: Sequence[float]) -> list[float]:
    """Describe a crop as SDXL reads it (arXiv 2307.01952, section 2.2), in pixels.

    Returns height and width of the original, top and left of the crop after resizing, height and width of the result.
    size, target: of the original and of the result. position_xy: as in `resize_and_crop`.
    """
    left, top = (
        position * (length - part) * pixels / part
        for position, length, part, pixels in zip(position_xy, size, largest_part(size, target), target, strict=True)
    )
    return [size[1], size[0], round(top), round(left), target[1], target[0]]


def size_crop_of_window(size: Size, cut: cuts.Cut) -> list[float]:
    """Describe a cut around the subject as `size_crop_of` does; padding on the left or on top counts as no crop."""
    window, (width, height) = cut.window, cut.size
    top, left = window.top * height / window.height, window.left * width / window.width
    return [size[1], size[0], max(0, round(top)), max(0, round(left)), height, width]


def _views(image: Image.Image, crops: Sequence[cuts.Cut], flip: bool) -> Tensor:
    """Return crops of an image in [-1, 1], and their mirror images, [V, 3, H, W]."""
    views = [to_tensor(crop.apply(image).convert("RGB")) for crop in crops]
    return torch.stack(views + [view.flip(-1) for view in views] if flip else views)


def by_subject(images: Sequence[EncodedImage]) -> list[list[int]]:
    """Return the numbers of each subject's images."""
    numbers: dict[int, list[int]] = {}
    for number, image in enumerate(images):
        numbers.setdefault(image.subject, []).append(number)
    return list(numbers.values())


class LatentDataset(Dataset[Sample]):
    """Give each index of the run its sample.

    Each pass goes through all images in a new order; view and latent noise are drawn for the index. Several subjects
    take turns, index by index, each in an order of its own: one with few images is seen as often as one with many, and
    so are the images of two.
    """

    def __init__(
        self, images: Sequence[EncodedImage], captions: Captions, randomness: Randomness, source: Source
    ) -> None:
        self.images = images
        self.by_subject = by_subject(images)
        self.captions = captions
        self.randomness = randomness
        self.source = source

    def image_at(self, sample_index: int) -> int:
        """Return the number of the image that a sample shows."""
        turn, subject = divmod(sample_index, len(self.by_subject))
        own = self.by_subject[subject]
        address = (
            (turn // len(own), subject) if subject else (turn // len(own),)
        )  # the first subject draws as an only one would
        order = self.randomness.permutation(f"{self.source}/order", len(own), *address)
        return own[order[turn % len(own)]]

    def __getitem__(self, sample_index: int) -> Sample:
        number = self.image_at(sample_index)
        image = self.images[number]
        num_views, *shape = image.mean_VCHW.shape
        view = int(self.randomness.integers(f"{self.source}/view", [sample_index], num_views))
        noise_CHW = self.randomness.normal(f"{self.source}/latent", [sample_index], tuple(shape))[0]
        return Sample(
            self.source,
            sample_index,
            latents_CHW=image.mean_VCHW[view] + image.std_VCHW[view] * noise_CHW,
            prompt=self.captions(number, sample_index),
            size_crop_6=image.size_crop_V6[view],
            mask_1HW=None if image.mask_V1HW is None else image.mask_V1HW[view],
            name=image.name,
            inside_1HW=None if image.inside_V1HW is None else image.inside_V1HW[view],
        )


def by_shape(samples: Iterable[Sample], largest: int | None = None) -> list[list[Sample]]:
    """Group samples by the shape of their latents, at most `largest` in a group; within a shape in their order."""
    groups: dict[torch.Size, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.latents_CHW.shape, []).append(sample)
    size = largest or max(map(len, groups.values()), default=1)
    return [group[first : first + size] for group in groups.values() for first in range(0, len(group), size)]


class ResumableBatchSampler(Sampler[list[int]]):
    """Yield endless batches of sample indices for one process of several, starting at the batch of `position()`.

    position: returns (first batch, rank, world size). It is called when iteration starts: by then a resumed run has
    restored its step, and the processes have found each other.
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
