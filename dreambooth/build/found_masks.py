"""Masks of the subjects' photos that a model finds by their class noun: data.mask=auto."""

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dreambooth.build.networks import pick_device
from dreambooth.config import Config
from dreambooth.data.image_files import load_image
from dreambooth.errors import UserError, escaped
from dreambooth.readers.masks import load_mask_finder
from dreambooth.readers.usual import MASK

logger = logging.getLogger(__name__)


def find_photo_masks(photos: Sequence[Sequence[Path]], config: Config) -> list[Image.Image]:
    """Return a mask for each photo, one subject's after the other's: white on what its class noun names.

    photos: of each subject. Raises UserError for a photo in which nothing is found, and ModelError without a model.
    """
    masks: list[Image.Image] = []
    for subject, own in zip(config.subjects, photos, strict=True):
        images = [load_image(path) for path in own]
        largest = max((image.size for image in images), key=max)
        find = load_mask_finder(config.data.mask_model or MASK.model_for(largest), str(pick_device(config)))
        found = find(images, [subject.class_noun] * len(images))
        for path, mask in zip(own, found, strict=True):
            if mask.getbbox() is None:
                raise UserError(
                    f"data.mask=auto: {find.name} finds no {subject.class_noun!r} in {escaped(path)}; name a folder of "
                    "masks, or null"
                )
        shares = [mask.histogram()[255] / (mask.width * mask.height) for mask in found]
        logger.info(
            f"masks of a {subject.class_noun}, by {find.name}: {min(shares):.0%} to {max(shares):.0%} of a photo counts"
        )
        masks += found
    return masks
