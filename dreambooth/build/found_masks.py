"""Masks of the subjects' photos that a model finds by their class noun: data.mask=auto."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from dreambooth.build.networks import pick_device
from dreambooth.config import Config
from dreambooth.data.image_files import load_image
from dreambooth.errors import UserError, escaped
from dreambooth.readers.masks import MaskFinder, load_mask_finder
from dreambooth.readers.usual import MASK

logger = logging.getLogger(__name__)
CURE = "name another data.mask_model, a folder of masks, or null"


def find_photo_masks(photos: Sequence[Sequence[Path]], config: Config) -> list[Image.Image]:
    """Return a mask for each photo, one subject's after the other's: white on what its class noun names.

    photos: of each subject. Raises UserError for a photo in which nothing is found and for a class noun that the model
    does not know, and ModelError without a model.
    """

    @cache  # several subjects need one model
    def finder(name: str) -> MaskFinder:
        return load_mask_finder(name, str(pick_device(config)))

    masks: list[Image.Image] = []
    for subject, own in zip(config.subjects, photos, strict=True):
        images = [load_image(path) for path in own]
        largest = max((image.size for image in images), key=max)
        find, noun = finder(config.data.mask_model or MASK.model_for(largest)), subject.class_noun
        try:
            found = find(images, [noun] * len(images))
        except UserError as error:  # of a noun that is none of its labels
            raise UserError(f"data.mask=auto: {str(error).removeprefix('mask=')}; {CURE}") from error
        for path, mask in zip(own, found, strict=True):
            if mask.getbbox() is None:
                raise UserError(f"data.mask=auto: {escaped(find.name)} finds no {noun!r} in {escaped(path)}; {CURE}")
        fractions = [mask.histogram()[255] / (mask.width * mask.height) for mask in found]
        logger.info(
            f"masks of a {noun}, by {find.name}: {min(fractions):.0%} to {max(fractions):.0%} of a photo counts"
        )
        masks += found
    return masks
