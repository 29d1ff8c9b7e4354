"""Images of the workspace for a page: uploads that are checked, thumbnails that are kept."""

import hashlib
import io
import os
import threading
import time
from pathlib import Path

from PIL import Image

from dreambooth.data.image_files import check_image, load_image, readable_formats
from dreambooth.errors import UserError, escaped
from dreambooth.files import atomic_file
from dreambooth.studio.problems import RequestError, TooLargeError
from dreambooth.studio.workspace import Workspace, is_name

MAX_FILES = 100  # in one upload
MAX_BYTES = 50 * 2**20  # of one file
MAX_TOTAL = 500 * 2**20  # bytes of one upload
MAX_PIXELS = 100_000_000  # of one image: phones do take that many
KEEP_THUMBNAILS_S = 30 * 24 * 3600.0
DECODING = threading.Semaphore(2)  # images that are decoded at once: one may take 300 MB
SIDES = (128, 256, 512, 1024)  # of thumbnails, pixels
SUFFIXES = {"AVIF": ".avif", "BMP": ".bmp", "GIF": ".gif", "HEIF": ".heic", "JPEG": ".jpg", "PNG": ".png"}
SUFFIXES |= {"PPM": ".ppm", "TIFF": ".tif", "WEBP": ".webp"}
IMAGE_SUFFIXES = (*SUFFIXES.values(), ".jpeg", ".tiff", ".heif")


def is_image(path: Path) -> bool:
    """Return whether a path is a file that is named as an image, and no hidden one."""
    return path.suffix.lower() in IMAGE_SUFFIXES and is_name(path.name) and path.is_file()


def check_size(name: str, size: int) -> None:
    """Raise TooLargeError for a file of more bytes than one may have."""
    if size > MAX_BYTES:
        raise TooLargeError(f"{escaped(name)}: {size} bytes; {MAX_BYTES} at most")


def check_upload(name: str, content: bytes) -> str:
    """Return the suffix that suits an image's content. Raises RequestError for what is none, or too large.

    By its content, not by its name, and by its size before a pixel is decoded.
    """
    check_size(name, len(content))
    try:
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise TooLargeError(f"{escaped(name)}: {image.width} x {image.height} pixels; {MAX_PIXELS} at most")
            return SUFFIXES[str(image.format)]
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"{escaped(name)}: more than {MAX_PIXELS} pixels") from error
    except Exception as error:
        raise RequestError(f"{escaped(name)}: not an image that can be read; JPEG, PNG, WebP, HEIC ... can") from error


def store_upload(folder: Path, name: str, content: bytes) -> Path:
    """Write an image under this name, or with a number behind it where that is taken; return where it is.

    A name is taken whatever its ending: a.jpg and a.png would share a caption and a mask. The image is decoded once, so
    that none fails later. Raises RequestError for what cannot be used.
    """
    suffix = check_upload(name, content)
    stem = (Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name)[:80]
    taken = {each.stem for each in folder.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES}
    number, free = 1, stem
    while free in taken:
        number += 1
        free = f"{stem}-{number}"
    path = folder / f"{free}{suffix}"
    with atomic_file(path) as file:
        file.write(content)
    try:
        with DECODING:
            check_image(path)
    except UserError as error:
        path.unlink()
        raise RequestError(f"{escaped(name)}: {error}") from error
    return path


def thumbnail(workspace: Workspace, path: Path, side: int) -> Path:
    """Return a WebP file of an image, `side` pixels at most on each side; made when it is first asked for."""
    side = min(SIDES, key=lambda each: abs(each - side))
    status = path.stat()
    key = hashlib.sha256(f"{workspace.relative(path)}\0{status.st_mtime_ns}\0{status.st_size}".encode()).hexdigest()[
        :32
    ]
    place = workspace.thumbnails / f"{key}-{side}.webp"
    if not place.is_file():
        with DECODING:
            image = load_image(path)
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
        with atomic_file(place) as file:
            image.save(file, format="WEBP", quality=82)
    return place


def forget_old_thumbnails(workspace: Workspace) -> None:
    """Remove the thumbnails that were made longer than a month ago; those that are still asked for are made again."""
    for path in workspace.thumbnails.glob("*.webp"):
        if time.time() - path.stat().st_mtime > KEEP_THUMBNAILS_S:
            path.unlink(missing_ok=True)


def size_of(path: Path) -> tuple[int, int] | None:
    """Return width and height of an image by its head, None where it cannot be read."""
    try:
        with Image.open(path, formats=readable_formats()) as image:
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def num_bytes(folder: Path) -> int:
    """Return the bytes that a folder takes; what a link leads to is another's."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total
