"""The subjects' images: where they are, the sizes they are cut to, and warnings about them."""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from PIL import Image

from dreambooth.build.method import find_start
from dreambooth.build.prompts import captions_of
from dreambooth.config import Config
from dreambooth.data.buckets import Size, make_buckets, nearest_bucket
from dreambooth.data.images import (
    ImageInfo,
    inspect_image,
    is_upscaled,
    list_images,
    load_image,
    load_mask,
    near_duplicates,
    transparency_mask,
)
from dreambooth.data.latents import EncodedImage, encode_image_files
from dreambooth.distributed import tell
from dreambooth.errors import UserError, escaped
from dreambooth.families import Family
from dreambooth.randomness import Randomness


@dataclass(frozen=True)
class SubjectData:
    """What a run reads beside its base. photos, captions: of each subject. start: `find_start`.

    masks: of all photos, one subject's after the other's; None: every pixel counts.
    """

    start: Path | None
    photos: list[list[Path]]
    captions: list[list[str]]
    masks: list[Image.Image] | None


def load_subject_data(config: Config) -> SubjectData:
    """Find and check the inputs. Raises UserError for what does not exist or cannot be used."""
    start, photos = find_start(config), [list_images(subject.images) for subject in config.subjects]
    return SubjectData(start, photos, captions_of(photos, config), load_masks([*chain(*photos)], config))


def picture_warnings(looks: Sequence[ImageInfo], buckets: list[Size], resolution: int) -> Iterator[str]:
    """Yield what is no reason to refuse images, but worth a warning."""
    small = [look.path for look in looks if is_upscaled(look.size, nearest_bucket(look.size, buckets))]
    if small:  # enlarging blurs, and blur is learned with the subject
        yield f"smaller than data.resolution ({resolution}), so enlarged: {_named(small)}"
    if moving := [look for look in looks if look.num_frames > 1]:
        frames = ", ".join(f"{escaped(look.path.name)} (1 of {look.num_frames})" for look in moving)
        yield f"several pictures in a file, of which the first is taken: {frames}"
    if pairs := near_duplicates(looks):
        twice = "; ".join(f"{_named([one])} and {_named([other])}" for one, other in pairs)
        yield f"(nearly) the same picture twice, which then counts twice; leave one out: {twice}"


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(escaped(path.name) for path in paths)


def buckets_of(family: Family, config: Config) -> list[Size]:
    """Return the sizes that images are cut to: one square, or with data.buckets several shapes.

    Raises UserError for a resolution, or a step, that does not fit the base.
    """
    data = config.data
    family.latent_shape(data.resolution, data.resolution)
    if not data.buckets:
        return [(data.resolution, data.resolution)]
    if data.bucket_step % family.size_multiple:
        raise UserError(
            f"data.bucket_step={data.bucket_step}: this base's denoiser halves sides of {family.size_multiple} pixels "
            f"evenly; use a multiple of {family.size_multiple}"
        )
    return make_buckets(data.resolution, data.bucket_step)


def tell_buckets(pictures: list[EncodedImage]) -> None:
    """Report how many images each bucket got."""
    sizes = Counter(tuple(picture.size_crop_V6[0, 4:].tolist()) for picture in pictures)
    listed = ", ".join(f"{width}x{height} ({count})" for (height, width), count in sorted(sizes.items()))
    tell(f"buckets (and pictures in each): {listed}")


def encode_subjects(family: Family, given: SubjectData, config: Config, randomness: Randomness) -> list[EncodedImage]:
    """Encode all images of all subjects, one subject's after the other's, and warn of their sizes."""
    paths = [*chain(*given.photos)]
    for warning in picture_warnings([*map(inspect_image, paths)], buckets_of(family, config), config.data.resolution):
        tell(f"warning: {warning}")
    subjects = [number for number, own in enumerate(given.photos) for _ in own]
    pictures = encode(family, paths, config, randomness, given.masks, subjects)
    if config.data.buckets:
        tell_buckets(pictures)
    return pictures


def encode(
    family: Family,
    paths: list[Path],
    config: Config,
    randomness: Randomness,
    masks: list[Image.Image] | None = None,
    subjects: Sequence[int] | None = None,
) -> list[EncodedImage]:
    """Encode images as the settings say. subjects: the number of the one that each shows; None: the first."""
    data = config.data
    return encode_image_files(
        paths,
        family.encode_images,
        buckets=buckets_of(family, config),
        num_crops=data.num_crops if data.crop == "random" else 1,
        flip=data.flip,
        randomness=randomness,
        masks=masks,
        subjects=subjects,
    )


def load_masks(paths: list[Path], config: Config) -> list[Image.Image] | None:
    """Load the mask of each image; None: every pixel counts. Raises UserError for one that is missing or black."""
    if config.data.mask is None:
        return None
    masks = [transparency_mask(path) if config.data.mask == "alpha" else mask_beside(path, config) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        if mask.getextrema()[1] == 0:
            raise UserError(f"{path}: its mask (data.mask={config.data.mask}) leaves nothing of it")
    return masks


def mask_beside(path: Path, config: Config) -> Image.Image:
    """Load an image's mask from the folder data.mask. Raises UserError for none, several, or one of another size."""
    found = sorted(Path(str(config.data.mask)).glob(f"{glob.escape(path.stem)}.*"))
    if len(found) != 1:
        raise UserError(
            f"data.mask: {config.data.mask} holds {len(found)} masks named {path.stem}.*, and {path.name} needs one"
        )
    mask, size = load_mask(found[0]), load_image(path).size
    if mask.size != size:
        raise UserError(f"{found[0]}: {mask.size[0]}x{mask.size[1]} pixels; {path.name} has {size[0]}x{size[1]}")
    return mask
