"""Picture files to pixels and back: what a person sees in a viewer is what a model learns.

What a camera, a phone or an editor writes comes out as upright 8-bit sRGB; what cannot is named in an error.
Shapes: B batch, C channels (3, red green blue), H/W height and width in pixels. A size is (width, height).
"""

import hashlib
import itertools
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from dreambooth.data.buckets import Size, largest_part
from dreambooth.data.captions import is_caption_file
from dreambooth.errors import NonFiniteError, UserError, escaped

# By content, not by extension. A closed list, because Pillow's own has formats that take almost any bytes for a picture
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
MIN_SIDE = 16  # pixels; what has fewer is an icon, or went wrong
MAX_ASPECT = 16  # long side over short one
ALIKE = 5.0  # of 255; re-encoded or resized copies differ by 1 or 2, the most alike of photos in one series by 10
SYSTEM_FILES = {"__macosx", "desktop.ini", "ehthumbs.db", "thumbs.db"}  # lower case; names with a leading dot as well

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


def list_images(folder: str | Path) -> list[Path]:
    """The pictures in `folder`, sorted by name; files that the system puts there (.DS_Store, Thumbs.db) do not count.

    Every file is decoded once, so that training never meets one that cannot be. Raises UserError if the folder is
    missing or has no pictures, or with the names of everything in it that is not a readable picture. Captions beside
    the pictures do not count as such.
    """
    folder = Path(folder)
    files = sorted(path for path in _entries(folder) if not _is_system_file(path.name))
    stems = {path.stem for path in files if path.suffix != ".txt"}
    paths = [path for path in files if not is_caption_file(path, stems)]
    if not paths:
        raise UserError(f"{escaped(folder)}: the folder has no pictures. {_allowed()}")
    reasons = {path.name: _why_unreadable(path) for path in paths}
    bad = [f"{escaped(name)} ({escaped(reason)})" for name, reason in reasons.items() if reason]
    if bad:
        raise UserError(
            f"{escaped(folder)}: {len(bad)} of {len(paths)} files cannot be used as pictures: {', '.join(bad)}.\n"
            f"{_allowed()} Mend, move or remove the others."
        )
    return paths


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except NotADirectoryError as error:
        raise UserError(f"{escaped(folder)}: a file. Name a folder of pictures.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = "no such folder" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error})"
        raise UserError(f"{escaped(folder)}: {reason}. Name a folder of pictures.") from error


@dataclass(frozen=True)
class ImageInfo:
    """What a picture is at a glance. size: as it is seen. num_frames: pictures in its file, of which the first is read.

    colours_HWC: of its 16 x 16 parts, 0 to 255.
    """

    path: Path
    size: Size
    num_frames: int
    colours_HWC: np.ndarray


def inspect_image(path: Path) -> ImageInfo:
    """Raises UserError as `load_image` does."""
    image = load_image(path)
    colours_HWC = np.asarray(image.resize((16, 16), Image.Resampling.BOX)).astype(np.float32)
    with Image.open(path, formats=_readable_formats()) as file:
        return ImageInfo(path, image.size, _num_frames(file), colours_HWC)


def near_duplicates(looks: Sequence[ImageInfo]) -> list[tuple[Path, Path]]:
    """Pairs that show the same: copies, re-encoded, resized or cut by a hair; not two photos of one thing."""
    return [
        (one.path, other.path)
        for one, other in itertools.combinations(looks, 2)
        if abs(one.colours_HWC - other.colours_HWC).mean() < ALIKE
    ]


def _num_frames(image: Image.Image) -> int:
    """1 for what holds previews or parts beside its picture (MPO, HEIC)."""
    return getattr(image, "n_frames", 1) if image.format in {"AVIF", "GIF", "PNG", "TIFF", "WEBP"} else 1


def load_image(path: str | Path) -> Image.Image:
    """The picture in a file as a viewer shows it: 8-bit RGB in the sRGB colours, upright, the first frame of several.

    Transparency is laid on white: pages and viewers show a cut-out so, and base models saw it so; the colour that a
    file holds under full transparency was never meant to be seen. Raises UserError with the file's name and the reason.
    """
    try:
        return _to_rgb(_decode(Path(path)))
    except UserError as error:
        raise UserError(f"{escaped(path)}: {error}. {_allowed()}") from error


def load_mask(path: str | Path) -> Image.Image:
    """A mask as a picture in grey levels: white is the subject, black is not. Raises UserError as `load_image` does."""
    return load_image(path).convert("L")


def transparency_mask(path: str | Path) -> Image.Image:
    """What a cut-out shows (255) and what is transparent (0). Raises UserError for a picture without transparency."""
    image = _decode(Path(path))
    if not image.has_transparency_data:
        raise UserError(
            f"{path}: has no transparency, and data.mask is 'alpha'; cut the subject out, or name a folder of masks"
        )
    return image.convert("RGBA").getchannel("A")


def is_upscaled(own: Size, size: Size) -> bool:
    """Whether `resize_and_crop` from a picture of `own` size to `size` invents detail: a side has fewer pixels."""
    return own[0] < size[0] or own[1] < size[1]


def resize_and_crop(image: Image.Image, size: Size, position_xy: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """The largest part of `image` in the shape of `size`, resized to that many pixels; nothing is squashed.

    position_xy: where the part lies, 0 left or top, 0.5 the centre, 1 right or bottom; only one side has room to move.
    Ask `is_upscaled` first where too small a picture matters.
    """
    assert all(0 <= position <= 1 for position in position_xy), position_xy
    width, height = largest_part(image.size, size)
    # Whole source pixels, so that a picture that needs no resizing is cut and not resampled.
    left, top = (
        min(round(position * room), room)
        for position, room in zip(position_xy, (image.width - width, image.height - height), strict=True)
    )
    return image.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def center_square(image: Image.Image) -> Image.Image:
    """The largest centred square, not resized."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as pixels_CHW, float32 in [-1, 1]: -1 is 0, 1 is 255."""
    assert image.mode == "RGB", image.mode
    pixels_HWC = torch.from_numpy(np.array(image))
    return pixels_HWC.permute(2, 0, 1).float().div(127.5).sub(1).contiguous()


def to_images(pixels_BCHW: Tensor) -> list[Image.Image]:
    """Pixels in [-1, 1], any dtype and device, as RGB pictures: rounded, and what lies outside is clamped.

    Undoes `to_tensor` exactly. Raises NonFiniteError rather than write the black picture that NaN would become.
    """
    pixels_BHWC = pixels_BCHW.detach().float().cpu().permute(0, 2, 3, 1)
    if not pixels_BHWC.isfinite().all():
        raise NonFiniteError(
            "The decoded picture holds numbers that are not finite. "
            "A VAE in float16 overflows easily: use float32 or bfloat16."
        )
    levels_BHWC = pixels_BHWC.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return [Image.fromarray(levels_HWC) for levels_HWC in levels_BHWC]


def grid(images: Sequence[Image.Image], columns: int, padding: int = 2) -> Image.Image:
    """Pictures of one size in rows of `columns`, `padding` white pixels around each; a short last row ends white."""
    assert images, "a grid of no pictures"
    assert len({image.size for image in images}) == 1, "a grid needs pictures of one size"
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = (length + padding for length in images[0].size)
    sheet = Image.new("RGB", (columns * width + padding, rows * height + padding), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet.paste(image, (column * width + padding, row * height + padding))
    return sheet


def cells(sheet: Image.Image, side: int, padding: int = 2) -> list[Image.Image]:
    """The pictures of `side` x `side` pixels that `grid` laid out, row by row; empty places of a last row come white.

    Raises UserError where the sheet cannot be such a grid.
    """
    columns, rows = ((length - padding) // (side + padding) for length in sheet.size)
    if sheet.size != (columns * (side + padding) + padding, rows * (side + padding) + padding):
        raise UserError(f"{sheet.width} x {sheet.height} pixels are no grid of pictures of {side} x {side}")
    lefts, tops = ([place * (side + padding) + padding for place in range(count)] for count in (columns, rows))
    return [sheet.crop((left, top, left + side, top + side)) for top in tops for left in lefts]


def digest_files(paths: Iterable[str | Path]) -> str:
    """SHA-256, in hexadecimal, over names and contents in the order given; the folder they lie in does not count."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        # Digests of fixed length: no byte can move from a name to a content and leave the sum as it was.
        digest.update(hashlib.sha256(os.fsencode(path.name)).digest() + content)
    return digest.hexdigest()


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def _allowed() -> str:
    return f"Allowed: {', '.join(FORMATS[name] for name in _readable_formats())}."


def _why_unreadable(path: Path) -> str:
    """Empty if the picture can be read, and is large enough to be one."""
    try:
        _to_rgb(_decode(path, check_size=True))
    except UserError as error:
        return str(error)
    return ""


@cache
def _readable_formats() -> tuple[str, ...]:
    """The FORMATS that this installation of Pillow decodes."""
    Image.init()
    try:
        import pillow_heif  # an extra: it comes with the HEVC decoder
    except ImportError:
        return tuple(name for name in FORMATS if name in Image.OPEN and name != "HEIF")
    pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(path: Path, check_size: bool = False) -> Image.Image:
    """The first frame, upright, in the mode that the file has. Raises UserError with the reason, without the name."""
    try:
        _check_is_file(path)
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels on and refuses from twice that; phones do take 100 million.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_readable_formats()) as image:
                if check_size:
                    _check_size(*image.size)
                image.load()
                upright = ImageOps.exif_transpose(image)
                _num_frames(image)  # a file that is torn behind its first picture is torn
                return upright
    except UnidentifiedImageError as error:
        if path.suffix.lower() in {".heic", ".heif"} and "HEIF" not in _readable_formats():
            raise UserError("HEIC is read once pillow-heif is installed: pip install pillow-heif") from error
        raise UserError("not a picture") from error
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("no such file") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels") from error
    except DECODER_ERRORS as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"cannot be read: {said}") from error


def _check_is_file(path: Path) -> None:
    """Raises UserError for a folder, and for a pipe, whose end would never come. OSError where there is nothing."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UserError("a folder; pictures in it are not looked for")
    if not stat.S_ISREG(mode):
        raise UserError("not a file")
    if not path.stat().st_size:
        raise UserError("empty, 0 bytes")


def _check_size(width: int, height: int) -> None:
    """By the file's header, before any pixel is decoded. Raises UserError."""
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{width} x {height} pixels; each side needs {MIN_SIDE} or more")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(f"{width} x {height} pixels; one side may be {MAX_ASPECT} times the other at most")


def _to_rgb(image: Image.Image) -> Image.Image:
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
    """Grey levels of 16 bits (modes I;16, I) or floating point in [0, 1] (F) to 8 bits, scaled and not clipped."""
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
    """RGB or CMYK with its colour profile to RGB in sRGB: without it a phone's Display P3 looks pale."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None  # only a conversion in place returns None
            return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # broken, or meant for other channels: viewers take such a picture for sRGB too
    return image.convert("RGB")
