"""Masks of images: white where the subject is, black where it is not."""

import glob
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dreambooth.data.image_files import load_image, load_mask, transparency_mask
from dreambooth.errors import UserError

ALPHA = "alpha"  # the photos' own transparency
AUTO = "auto"  # what a model finds


def is_folder(source: str | None) -> bool:
    """Return whether data.mask names a folder."""
    return source not in (None, ALPHA, AUTO)


def mask_of(path: Path, source: str) -> Image.Image:
    """Load an image's mask: its transparency, of the source "alpha", or the file of its name in that folder.

    Raises UserError for none, several, or one of another size.
    """
    if source == ALPHA:
        return transparency_mask(path)
    found = sorted(Path(source).glob(f"{glob.escape(path.stem)}.*"))
    if len(found) != 1:
        raise UserError(f"data.mask: {source} holds {len(found)} masks named {path.stem}.*, and {path.name} needs one")
    mask, size = load_mask(found[0]), load_image(path).size
    if mask.size != size:
        raise UserError(f"{found[0]}: {mask.size[0]}x{mask.size[1]} pixels; {path.name} has {size[0]}x{size[1]}")
    return mask


def find_masks(folder: Path, images: Sequence[Path]) -> str | None:
    """Return where the masks of a folder's images are, as data.mask names it; None where there are none.

    "alpha" where all images are cut out, else the folder <name>-masks beside it.
    """
    if all_cut_out(images):
        return ALPHA
    beside = masks_folder(folder)
    return str(beside) if beside.is_dir() else None


def masks_folder(folder: Path) -> Path:
    """Return the folder beside a folder of images that its masks are looked for in: <name>-masks."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.parent / f"{named.name}-masks"


def all_cut_out(images: Sequence[Path]) -> bool:
    """Return whether a part of every image is transparent."""
    return bool(images) and all(transparent_fraction(path) > 0 for path in images)


def transparent_fraction(path: Path) -> float:
    """Return which fraction of an image is less than half opaque, 0 to 1; 0 for one that cannot be read."""
    try:
        alpha = transparency_mask(path)
    except UserError:
        return 0.0
    return sum(alpha.histogram()[:128]) / (alpha.width * alpha.height)
