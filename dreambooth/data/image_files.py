"""Read image files as upright 8-bit sRGB: a model learns what a person sees in a viewer.

Files of cameras, phones and editors are read; a file that cannot be read is named in an error.
"""

import contextlib
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dreambooth.errors import UserError, escaped, first_line

# By content, not by extension. A closed list, because Pillow's own has formats that take almost any bytes for an image
# (TGA) or start another program (EPS).
FORMATS = {
    "AVIF": "AVIF",
    "BMP": "BMP",
    "GIF": "GIF",
    "HEIF": "HEIC",
    "JPEG": "JPEG",
    "PNG": "PNG",
    "PPM": "PPM",
    "TIFF": "TIFF",
    "WEBP": "WebP",
}
MIN_SIDE = 16  # pixels; smaller images are icons, or damaged
MAX_ASPECT = 16  # long side over short one

# What Pillow's decoders raise on damaged files, found by flipping and cutting bytes of every format above.
DECODER_ERRORS = (
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    struct.error,
    zlib.error,
)


def load_image(path: str | Path) -> Image.Image:
    """Return the image in a file as a viewer shows it: 8-bit RGB in sRGB, upright, the first frame of several.

    Transparency is laid on white: pages and viewers show a cut-out so, and base models saw it so; the colour that a
    file holds under full transparency was never meant to be seen. Raises UserError with the file's name and the reason.
    """
    try:
        with _without_warnings():
            return _to_rgb(_decode(Path(path)))
    except UserError as error:
        raise UserError(f"{escaped(path)}: {error}. {allowed_formats()}") from error


def load_mask(path: str | Path) -> Image.Image:
    """Return a mask in grey levels: white is the subject, black is not. Raises UserError as `load_image` does."""
    return load_image(path).convert("L")


def transparency_mask(path: str | Path) -> Image.Image:
    """Return the mask of a cut-out, 0 where it is transparent, 255 elsewhere. Raises UserError if nothing is."""
    with _without_warnings():
        image = _decode(Path(path))
    if not image.has_transparency_data:
        raise UserError(
            f"{escaped(path)}: has no transparency, and data.mask is 'alpha'; cut the subject out, set it to auto, "
            "or name a folder of masks"
        )
    return image.convert("RGBA").getchannel("A")


def check_image(path: Path) -> list[str]:
    """Decode an image and return what Pillow warns of. Raises UserError, without the name, where it cannot be used."""
    with _without_warnings() as warned:
        _to_rgb(_decode(path, check_size=True))
    return warned


def num_frames(path: Path) -> int:
    """Return the number of images in a readable file; previews or parts beside its image (MPO, HEIC) do not count."""
    with _without_warnings(), Image.open(path, formats=readable_formats()) as image:
        return _num_frames(image)


def _num_frames(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format in {"AVIF", "GIF", "PNG", "TIFF", "WEBP"} else 1


def allowed_formats() -> str:
    """Return the sentence of an error that names the formats."""
    return f"Allowed: {', '.join(FORMATS[name] for name in readable_formats())}."


@cache
def readable_formats() -> tuple[str, ...]:
    """Return the FORMATS that this installation of Pillow decodes."""
    Image.init()
    try:
        import pillow_heif  # an extra: it comes with the HEVC decoder
    except ImportError:
        return tuple(name for name in FORMATS if name in Image.OPEN and name != "HEIF")
    pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _without_warnings() -> Iterator[list[str]]:
    """Collect Pillow's warnings, which name no file, instead of printing them; the list is filled at the end."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Pillow warns from 89 million pixels on and refuses from twice that; phones do take 100 million.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield found
    found += dict.fromkeys(str(each.message).strip() for each in caught)


def _decode(path: Path, check_size: bool = False) -> Image.Image:
    """Return the first frame, upright, in the mode of the file. Raises UserError with the reason, without the name."""
    try:
        _check_is_file(path)
        with Image.open(path, formats=readable_formats()) as image:
            if check_size:
                _check_size(*image.size)
            image.load()
            upright = ImageOps.exif_transpose(image)
            _num_frames(image)  # raises for a file that is damaged after its first image
            return upright
    except UnidentifiedImageError as error:
        if path.suffix.lower() in {".heic", ".heif"} and "HEIF" not in readable_formats():
            raise UserError("HEIC is read once pillow-heif is installed: pip install pillow-heif") from error
        raise UserError("not an image") from error
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("no such file") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels") from error
    except DECODER_ERRORS as error:
        raise UserError(_decoder_reason(error)) from error


def _decoder_reason(error: Exception) -> str:
    """Return a decoder's error in plain words; for a torn file Pillow names the bytes read, not those missing."""
    if "truncated" in str(error).lower():
        return "cut short: the last bytes of the file are missing; copy or download it again"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return f"cannot be read: {reason}"


def _check_is_file(path: Path) -> None:
    """Raise UserError for a folder, and for a pipe, whose end would never come; OSError where there is nothing."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UserError("a folder; images in it are not looked for")
    if not stat.S_ISREG(mode):
        raise UserError("not a file")
    if not path.stat().st_size:
        raise UserError("empty, 0 bytes")


def _check_size(width: int, height: int) -> None:
    """Raise UserError for a size that no photo has, before any pixel is decoded."""
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{width} x {height} pixels; each side needs {MIN_SIDE} or more")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(f"{width} x {height} pixels; one side may be {MAX_ASPECT} times the other at most")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB in sRGB, transparency laid on white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    if image.mode != "CMYK":
        image = image.convert("RGB")
    return _to_srgb(image, profile)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey levels of 16 bits (modes I;16, I) or floating point in [0, 1] (F) to 8 bits, without clipping."""
    levels_HW = np.asarray(image)
    white = 1.0 if image.mode == "F" else 65535
    if not (levels_HW.min() >= 0 and levels_HW.max() <= white):  # NaN fails as well
        raise UserError(
            f"grey levels from {levels_HW.min():g} to {levels_HW.max():g}, where 0 to {white:g} are known; "
            "save it with 8 or 16 bits"
        )
    if image.mode == "F":
        grey = Image.fromarray((levels_HW * 255).round().astype(np.uint8))
    else:  # by a table: a float for each of 178 million levels would take gigabytes
        grey = image.convert("I").point((np.arange(65536) * (255 / 65535)).round().astype(int).tolist(), "L")
    if "transparency" in image.info:  # PNG: one level is see-through
        grey.putalpha(Image.fromarray(np.where(levels_HW == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert RGB or CMYK with its colour profile to sRGB: without it a phone's Display P3 looks pale."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None  # only a conversion in place returns None
            return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # broken, or meant for other channels: viewers take such an image for sRGB too
    return image.convert("RGB")
