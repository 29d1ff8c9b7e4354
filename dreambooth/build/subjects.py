"""The subjects' images: their files, the sizes they are cut to, and warnings about them."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from PIL import Image

from dreambooth.build.found_masks import find_photo_masks
from dreambooth.build.method import find_start
from dreambooth.build.pairs import Pair, draw_pairs, plan_pairs
from dreambooth.build.prompts import captions_of
from dreambooth.config import Config
from dreambooth.data.buckets import Size, is_upscaled, make_buckets, nearest_bucket
from dreambooth.data.captions import METADATA, files_beside
from dreambooth.data.image_folder import ImageFolder, open_folder
from dreambooth.data.latents import EncodedImage, Encoder, encode_image_files, encode_mixed
from dreambooth.data.masks import AUTO, mask_of
from dreambooth.data.near_duplicates import ImageInfo, inspect_image, near_duplicates
from dreambooth.errors import UserError, escaped
from dreambooth.families import Family
from dreambooth.randomness import Randomness

logger = logging.getLogger(__name__)
MAX_NAMED = 10  # files, or pairs of them, that a note lists


@dataclass(frozen=True)
class SubjectData:
    """Hold a run's training data. photos, captions: of each subject. start: `find_start`.

    masks: of all photos, one subject's after the other's; None: every pixel counts. pairs: of data.cut_mix. notes:
    about the folders' files.
    """

    start: Path | None
    photos: list[list[Path]]
    captions: list[list[str]]
    masks: list[Image.Image] | None
    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)

    @property
    def all_captions(self) -> list[list[str]]:
        """Return the captions of each subject, then those of the pairs, if there are any."""
        return [*self.captions, [pair.caption for pair in self.pairs]] if self.pairs else self.captions


def load_subject_data(config: Config) -> SubjectData:
    """Load a run's photos, captions and masks. Raises UserError for those that are missing or cannot be used."""
    start, folders = find_start(config), [open_folder(subject.images) for subject in config.subjects]
    photos = [folder.images for folder in folders]
    notes = [note for folder in folders for note in folder_notes(folder, config.data.captions)]
    captions, masks = captions_of(folders, config), load_masks(photos, config)
    return SubjectData(start, photos, captions, masks, plan_pairs(photos, captions, masks, config), notes)


def folder_notes(folder: ImageFolder, reads_captions: bool) -> Iterator[str]:
    """Yield notes on ignored files of a folder, and Pillow's warnings of its images."""
    name = escaped(folder.path)
    if folder.system_files:
        yield f"{name}: ignored, as systems and editors leave such files: {_some(folder.system_files)}"
    beside = {*files_beside(folder.images, folder.captions).values()} if reads_captions else set()
    unread = [path.name for path in folder.captions if path not in beside]
    if unread and not reads_captions:
        yield f"{name}: captions that are not read: {_some(unread)}; set data.captions=true to train with them"
    elif unread := [each for each in unread if each != METADATA]:
        yield f"{name}: captions that are not read, as the image has another one: {_some(unread)}"
    for image, warnings in folder.warnings.items():
        yield f"{name}/{escaped(image)}: {escaped('; '.join(warnings))}"


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(escaped(name) for name in names[:MAX_NAMED]) + more


def image_warnings(images: Sequence[ImageInfo], buckets: list[Size], resolution: int) -> Iterator[str]:
    """Yield warnings of images that can be used, but could be better."""
    small = [image.path.name for image in images if is_upscaled(image.size, nearest_bucket(image.size, buckets))]
    if small:  # enlarging blurs, and blur is learned with the subject
        yield f"smaller than data.resolution ({resolution}), so enlarged: {_some(small)}"
    if moving := [image for image in images if image.num_frames > 1]:
        frames = _some([f"{image.path.name} (1 of {image.num_frames})" for image in moving])
        yield f"several images in a file, of which the first is used: {frames}"
    if pairs := near_duplicates(images):
        twice = _some([f"{one.name} and {other.name}" for one, other in pairs])
        yield f"(nearly) the same image twice, which then counts twice; leave one out: {twice}"


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


def log_buckets(images: list[EncodedImage]) -> None:
    """Report how many images each bucket got."""
    sizes = Counter(tuple(image.size_crop_V6[0, 4:].tolist()) for image in images)
    listed = ", ".join(f"{width}x{height} ({count})" for (height, width), count in sorted(sizes.items()))
    logger.info(f"buckets (and images in each): {listed}")


def encode_subjects(
    family: Family, data: SubjectData, config: Config, randomness: Randomness, encoder: Encoder | None = None
) -> list[EncodedImage]:
    """Encode the photos of all subjects in order, and warn of their sizes. encoder: as in `encode`."""
    paths = [*chain(*data.photos)]
    for note in data.notes:
        logger.info(f"note: {note}")
    for warning in image_warnings([*map(inspect_image, paths)], buckets_of(family, config), config.data.resolution):
        logger.warning(warning)
    subjects = [number for number, own in enumerate(data.photos) for _ in own]
    images = encode(family, paths, config, randomness, data.masks, subjects, encoder)
    check_masked(paths, images, config)
    if config.data.buckets:
        log_buckets(images)
    return images


def encode_pairs(
    family: Family, data: SubjectData, config: Config, randomness: Randomness, encoder: Encoder | None = None
) -> list[EncodedImage]:
    """Encode the images of data.cut_mix, as of one subject more. They are not mirrored: a prompt says who is left."""
    size, encoded = size_of_pairs(family, config), []
    for pair, mixed in zip(data.pairs, draw_pairs(data.pairs, size, randomness), strict=True):
        name = f"image {pair.number} of data.cut_mix"
        encoded.append(encode_mixed(mixed, encoder or family.encode_images, len(data.photos), name))
    return encoded


def size_of_pairs(family: Family, config: Config) -> Size:
    """Return the size of the images of data.cut_mix: of training's sizes the one that is most like a square."""
    return nearest_bucket((1, 1), buckets_of(family, config))


def check_masked(paths: list[Path], images: list[EncodedImage], config: Config) -> None:
    """Raise UserError for a photo of which some crop shows nothing that its mask lets count: its loss is 0 / 0."""
    for path, image in zip(paths, images, strict=True):
        mask_V1HW = image.mask_V1HW
        if mask_V1HW is not None and not config.data.unmasked_weight and not mask_V1HW.flatten(1).any(1).all():
            raise UserError(
                f"data.unmasked_weight=0: nothing counts in a crop of {escaped(path)}, as its mask is black there; set "
                "data.crop=subject, or data.unmasked_weight above 0"
            )


def encode(
    family: Family,
    paths: list[Path],
    config: Config,
    randomness: Randomness,
    masks: list[Image.Image] | None = None,
    subjects: Sequence[int] | None = None,
    encoder: Encoder | None = None,
) -> list[EncodedImage]:
    """Encode images as the settings say. subjects: the number of the one that each shows; None: the first.

    encoder: encodes pixels, or knows what the family makes of them; None: the family encodes.
    """
    data = config.data
    return encode_image_files(
        paths,
        encoder or family.encode_images,
        buckets=buckets_of(family, config),
        num_crops=data.num_crops if data.crop == "random" else 1,
        flip=data.flip,
        randomness=randomness,
        masks=masks,
        subjects=subjects,
        around_subject=data.crop == "subject",
    )


def load_masks(photos: list[list[Path]], config: Config) -> list[Image.Image] | None:
    """Load or find the mask of each photo; None: every pixel counts. Raises UserError for one that is missing or black.

    photos: of each subject.
    """
    if config.data.mask is None:
        return None
    if config.data.mask == AUTO:
        return find_photo_masks(photos, config)
    paths = [*chain(*photos)]
    masks = [mask_of(path, config.data.mask) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        if mask.getextrema()[1] == 0:
            raise UserError(f"{escaped(path)}: its mask (data.mask={config.data.mask}) leaves nothing of it")
    return masks
