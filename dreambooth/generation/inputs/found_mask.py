"""A mask that words name: `--mask subject`, `--mask background`, `--mask "the hat"`. The mask is found in the image."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.errors import ModelError, UserError
from dreambooth.generation.inputs.image_refs import image_ref, read_image
from dreambooth.subject_info import LearnedSubject

if TYPE_CHECKING:
    from PIL import Image

SUBJECT, BACKGROUND = "subject", "background"
FILE_NAME = re.compile(r".*(\.\w{2,5}|[/\\].*)")  # with an ending, or with a folder

logger = logging.getLogger(__name__)


def is_words(mask: object) -> bool:
    """Return whether a mask is named by words, and not by a file or an image."""
    return isinstance(mask, str) and not Path(mask).expanduser().exists() and FILE_NAME.fullmatch(mask) is None


def find_mask_of(
    words: str,
    image: "str | Path | Image.Image",
    subjects: Sequence[LearnedSubject],
    finder: str | None = None,
    device: str = "cpu",
) -> "Image.Image":
    """Return the mask of what words name in an image: mode L, as large as it, 255 on what is named.

    words: `subject` is the class noun of the first of `subjects`, `background` all but it; else any text. finder: hub
    id or folder of a model of `readers.masks.FINDERS`; None: the embedded one for images of the toy world, else the
    published CLIPSeg. Raises UserError where the model has learned no subject, or nothing is found; ModelError.
    """
    noun = subjects[0].class_noun if subjects else None
    if words in (SUBJECT, BACKGROUND) and noun is None:
        raise UserError(f"--mask {words}: this model has learned no subject; say what it is, e.g. --mask dog")
    pixels = read_image(image_ref(image), "--init-image")
    from dreambooth.readers.masks import find_mask

    named = noun if words == SUBJECT and noun is not None else words
    try:
        mask = find_mask(pixels, named, finder, noun, device)
    except ModelError as error:
        raise ModelError(f"{error} (it finds a --mask of words; a file is taken as it is)") from error
    part = mask.histogram()[255] / (mask.width * mask.height)
    logger.info(f"mask: {words} is {100 * part:.0f} % of the image")
    return mask
