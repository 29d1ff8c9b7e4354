"""Image files that another image is made from, by file and content hash, so that a recipe can name them.

Nothing heavy is imported here.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import UserError, escaped
from dreambooth.home_folder import with_home, without_home

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageRef:
    """Name an image file, or hold a program's own image. sha256: of the file or of the pixels, once they were read.

    file: None for an image in memory, whose pixels no recipe can bring back.
    """

    file: str | None
    sha256: str | None = None
    pixels: "Image.Image | None" = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Return what to call it in a message."""
        return "an image in memory" if self.file is None else escaped(self.file)


def image_ref(image: "str | Path | Image.Image") -> ImageRef:
    """Return the ref of a file or of a PIL image."""
    return ImageRef(str(image)) if isinstance(image, str | Path) else ImageRef(None, pixels=image)


def read_image(ref: ImageRef, option: str) -> "Image.Image":
    """Return the image that a ref names, upright in sRGB. Raises UserError, with the option, where it cannot be read.

    Warns where the file is not the one that a recipe has recorded.
    """
    from dreambooth.data.image_files import load_image

    if ref.pixels is not None:
        return ref.pixels.convert("RGB")
    if ref.file is None:
        raise UserError(f"{option}: the image was made from one in memory, which no file holds; name it with {option}")
    path = Path(ref.file).expanduser()
    if not path.exists():
        moved = "" if ref.sha256 is None else f"; where it lies elsewhere now, name it with {option}"
        raise UserError(f"{option} {ref.name}: there is no such file{moved}")
    try:
        image = load_image(path)
    except UserError as error:
        raise UserError(f"{option} {error}") from error
    if ref.sha256 not in (None, _digest(ref)):
        logger.warning(f"{ref.name}: another file than the one the image was made with; this will be another image")
    return image


def with_digest(ref: ImageRef) -> ImageRef:
    """Return the ref with the hash of the file, or of the pixels, as they are now."""
    return replace(ref, sha256=_digest(ref))


def _digest(ref: ImageRef) -> str:
    if ref.pixels is not None:
        image = ref.pixels.convert("RGB")
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    with Path(str(ref.file)).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ref_as_json(ref: ImageRef) -> dict[str, Any]:
    """Return a ref as a recipe has it, with ~ for the home folder."""
    return {"file": None if ref.file is None else without_home(ref.file), "sha256": ref.sha256}


def ref_of(found: Mapping[str, Any]) -> ImageRef:
    """Return the ref of a recipe. Raises KeyError for what `ref_as_json` has not written."""
    file, sha256 = found["file"], found["sha256"]
    return ImageRef(None if file is None else with_home(str(file)), None if sha256 is None else str(sha256))
