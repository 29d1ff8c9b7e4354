import itertools
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageDraw, ImageOps

from dreambooth.build.subjects import folder_notes
from dreambooth.data import image_files
from dreambooth.data.buckets import is_upscaled
from dreambooth.data.image_files import load_image
from dreambooth.data.image_folder import list_images, open_folder
from dreambooth.data.images import cells, digest_files, grid, resize_and_crop, to_images, to_tensor
from dreambooth.data.near_duplicates import MAX_DISTANCE, ImageInfo, inspect_image, near_duplicates
from dreambooth.errors import NonFiniteError, UserError

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "dreambench"
ORIENTATION = 0x0112  # the EXIF tag


@pytest.fixture
def picture() -> Image.Image:
    """Smooth, coloured, not square, and different in all eight orientations."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([x * 4, y * 5, 255 - x * 2 - y * 2], -1).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def assert_same_picture(image: Image.Image, expected: Image.Image, tolerance: int = 0) -> None:
    assert image.mode == "RGB"
    assert image.size == expected.size
    distance = abs(pixels(image) - pixels(expected)).max()
    assert distance <= tolerance, f"pixels differ by up to {distance} of 255, allowed are {tolerance}"


# list_images


def test_pictures_are_listed_in_sorted_order_whatever_order_they_were_written_in(tmp_path, picture):
    numbers = np.random.default_rng(0).permutation(40)  # many, because some file systems keep a few in order by chance
    for number in numbers:
        picture.save(tmp_path / f"{number:02}{'.png' if number % 2 else '.jpg'}")
    assert [path.name[:2] for path in list_images(tmp_path)] == [f"{number:02}" for number in range(40)]


def test_files_that_the_system_leaves_in_a_folder_are_not_pictures_and_not_errors(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    files = [".DS_Store", "._a.png", "Icon\r", "Picasa.ini", "Thumbs.db", "a.AAE", "desktop.ini"]
    folders = ["@eaDir", "__MACOSX"]
    for name in files:
        (tmp_path / name).write_bytes(b"\0\1junk")
    for name in folders:
        (tmp_path / name).mkdir()
    folder = open_folder(str(tmp_path))
    assert [path.name for path in folder.images] == ["a.png"]
    assert folder.system_files == sorted([*files, *folders])
    (note,) = folder_notes(folder, reads_captions=False)
    assert note.startswith(
        f"{tmp_path}: ignored, as systems and editors leave such files: .DS_Store, ._a.png, @eaDir, I"
    )
    assert "\r" not in note, "a terminal would act on this name"


@pytest.mark.parametrize("cut", [1, 2, 100])
@pytest.mark.parametrize("name", ["a.jpg", "a.tiff"])
def test_a_file_without_its_last_bytes_is_told_as_such(tmp_path, picture, name, cut):
    path = tmp_path / name
    picture.save(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=rf"{name} \(cut short: the last bytes of the file are missing"):
        list_images(tmp_path)


def test_what_pillow_warns_of_is_said_once_with_the_files_name(tmp_path, picture, recwarn):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    picture.save(tmp_path / "a.jpg", exif=exif)
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    content[content.index(b"Exif\0\0") + 10] = 0xFF  # where its table lies
    (tmp_path / "a.jpg").write_bytes(content)
    folder = open_folder(tmp_path)
    inspect_image(folder.images[0])
    load_image(folder.images[0])
    assert [str(each.message) for each in recwarn] == []
    (note,) = folder_notes(folder, reads_captions=False)
    assert note.startswith(f"{tmp_path}/a.jpg: Corrupt EXIF data.")


def test_every_file_that_is_not_a_readable_picture_is_named_in_one_error_and_no_other(tmp_path, picture):
    picture.save(tmp_path / "good.png")
    picture.save(tmp_path / "good.jpg")
    (tmp_path / "notes.txt").write_text("a robot")
    (tmp_path / "table.png").write_text("not, a, png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "masks").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for name in ("cut.jpg", "cut.png", "cut.webp"):
        picture.save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as error:
        list_images(tmp_path)
    message = str(error.value)
    for name in ("notes.txt", "table.png", "empty.jpg", "masks", "gone.png", "cut.jpg", "cut.png", "cut.webp"):
        assert name in message, f"{name} is not named"
    assert "good" not in message, "a readable picture is named as bad"
    assert "PNG" in message, "what is allowed is not named"
    assert message.count("\n") <= 1, "a message is one or two lines"


def test_a_flipped_byte_in_a_png_is_found(tmp_path, picture):
    path = tmp_path / "flipped.png"
    picture.save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 40] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"flipped\.png"):
        list_images(tmp_path)


def test_a_folder_that_is_missing_empty_or_a_file_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("missing", "empty", "file"):
        with pytest.raises(UserError, match=name):
            list_images(tmp_path / name)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_sizes_that_no_picture_has_are_refused_by_their_headers_all_at_once_and_before_decoding(tmp_path):
    sizes = {"huge": (50000, 50000), "dot": (1, 1), "sliver": (2000, 3), "strip": (4000, 200), "icon": (15, 15)}
    for name, size in sizes.items():  # there are no pixels in these files: decoding one would be told as damage
        (tmp_path / f"{name}.png").write_bytes(png_header(*size))
    (tmp_path / "page.jpg").write_text("<!doctype html><p>not found")
    (tmp_path / "drawing.jpg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "zero.jpg").touch()
    with pytest.raises(UserError) as error:
        list_images(tmp_path)
    for told in (
        "8 of 8 files cannot be used",
        "huge.png (more than 178 million pixels)",
        "dot.png (1 x 1 pixels; each side needs 16 or more)",
        "sliver.png (2000 x 3 pixels; each side",
        "strip.png (4000 x 200 pixels; one side may be 16 times the other at most)",
        "icon.png (15 x 15 pixels",
        "page.jpg (not an image)",
        "drawing.jpg (not an image)",
        "zero.jpg (empty, 0 bytes)",
    ):
        assert told in str(error.value)


def test_a_pipe_a_loop_of_links_and_a_file_of_odd_name_are_named_and_hang_nothing(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "new\nline\x1b[31m.png").touch()
    with pytest.raises(UserError) as error:
        list_images(tmp_path)
    for told in ("pipe.png (not a file)", "loop.png (cannot be read: Too many levels", "round (a folder;"):
        assert told in str(error.value)
    assert r"new\nline\x1b[31m.png (empty, 0 bytes)" in str(error.value), "a terminal would act on this name"


def test_pictures_of_odd_names_are_read_and_counted(tmp_path, picture):
    names = ["-rf.png", "ünïcödé 🐶.png", "new\nline.png", "x" * 250 + ".png", "$(touch pwned).png", "%s{0}.png"]
    names.append(os.fsdecode(b"no-utf8-\xff.png"))
    for name in names:
        picture.save(tmp_path / name)
    paths = list_images(tmp_path)
    assert sorted(path.name for path in paths) == sorted(names)
    assert len({digest_files([path]) for path in paths}) == len(names)


def test_a_copy_re_encoded_resized_or_cut_by_a_hair_is_alike_and_a_mirrored_or_other_picture_is_not(tmp_path, picture):
    picture = picture.resize((256, 192), Image.Resampling.BICUBIC)
    ImageDraw.Draw(picture).ellipse((30, 40, 90, 120), fill="navy")
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "again.png")
    picture.save(tmp_path / "encoded.jpg", quality=60)
    picture.resize((100, 75)).save(tmp_path / "small.webp")
    picture.crop((2, 2, 254, 190)).save(tmp_path / "cut.png")
    copies = {"again.png", "encoded.jpg", "small.webp", "cut.png"}
    ImageOps.mirror(picture).save(tmp_path / "mirrored.png")
    Image.new("RGB", picture.size, "gray").save(tmp_path / "other.png")
    pairs = [
        {one.name, other.name}
        for one, other in near_duplicates([inspect_image(path) for path in list_images(tmp_path)])
    ]
    assert {other for pair in pairs for other in pair - {"a.png"} if "a.png" in pair} == copies
    assert not [pair for pair in pairs if pair & {"mirrored.png", "other.png"}]


def test_no_pair_is_lost_among_many(tmp_path):
    """Random images of few colours, so that many are near in brightness, against the comparison of all pairs."""
    random = np.random.default_rng(0)
    tones = random.integers(40, 200, size=(12, 1, 1, 3)) + random.integers(-25, 25, size=(12, 16, 16, 3))
    noise = random.normal(0, random.choice([2, 5, 6, 7, 8], size=(300, 1, 1, 1)), size=(300, 16, 16, 3))
    colours_NHWC = (tones[random.integers(12, size=300)] + noise).astype(np.float32)
    images = [ImageInfo(Path(f"{number:03}"), (16, 16), 1, each) for number, each in enumerate(colours_NHWC)]
    expected = [
        (one.path, other.path)
        for one, other in itertools.combinations(images, 2)
        if abs(one.colours_HWC - other.colours_HWC).mean() < MAX_DISTANCE
    ]
    assert 100 < len(expected) < 10_000
    assert near_duplicates(images) == expected


def test_4000_photos_are_compared_in_seconds():
    random = np.random.default_rng(0)
    colours_NHWC = random.integers(256, size=(4000, 4, 4, 3)).repeat(4, 1).repeat(4, 2).astype(np.float32)
    images = [ImageInfo(Path(f"{number}"), (16, 16), 1, each) for number, each in enumerate(colours_NHWC)]
    started = time.process_time()
    assert near_duplicates(images) == []
    assert time.process_time() - started < 15, "all pairs one by one take a minute"


SERIES = [Path(__file__).parents[1] / "data" / name for name in ("dog", "robot")]
SERIES += sorted(path.parent for path in PHOTOGRAPHS.glob("*/00.jpg"))


@pytest.mark.parametrize("folder", SERIES, ids=lambda folder: folder.name)
def test_no_two_photos_of_one_subject_are_taken_for_copies(folder):
    looks = [inspect_image(path) for path in list_images(folder)]
    assert len(looks) >= 4
    assert near_duplicates(looks) == []


def test_of_several_pictures_in_a_file_the_number_is_known(tmp_path, picture):
    others = [picture.rotate(90), picture.rotate(180)]
    for name in ("a.gif", "a.png", "a.webp", "a.tiff"):
        picture.save(tmp_path / name, save_all=True, append_images=others)
        assert inspect_image(tmp_path / name).num_frames == 3, name
    picture.save(tmp_path / "b.jpg")
    picture.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=others)
    assert [inspect_image(tmp_path / name).num_frames for name in ("b.jpg", "phone.jpg")] == [1, 1]


# load_image


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_all_eight_exif_orientations_show_the_same_upright_picture(tmp_path, picture, suffix):
    plain = tmp_path / f"plain{suffix}"
    picture.save(plain, quality=95)
    undo = {  # how a camera that was held so stores the pixels
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation in range(1, 9):
        stored = picture.transpose(undo[orientation]) if orientation in undo else picture
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        path = tmp_path / f"{orientation}{suffix}"
        stored.save(path, exif=exif, quality=95)
        # JPEG and WebP lose a little, and in another place in a rotated picture.
        assert_same_picture(load_image(path), load_image(plain), tolerance=0 if suffix in {".png", ".tiff"} else 16)


def test_transparency_is_laid_on_white_in_proportion(tmp_path):
    for alpha, expected in ((0, 255), (51, 204), (128, 127), (255, 0)):
        Image.new("RGBA", (4, 4), (0, 0, 0, alpha)).save(tmp_path / "a.png")
        assert (pixels(load_image(tmp_path / "a.png")) == expected).all(), f"alpha {alpha} of black on white"


def test_the_colour_hidden_under_full_transparency_never_shows(tmp_path):
    for mode, hidden in (("RGBA", (255, 0, 255, 0)), ("LA", (7, 0))):
        Image.new(mode, (4, 4), hidden).save(tmp_path / "a.png")
        assert (pixels(load_image(tmp_path / "a.png")) == 255).all(), mode
    for mode, key in (("RGB", (9, 8, 7)), ("L", 9), ("I;16", 9)):
        Image.new(mode, (4, 4), key).save(tmp_path / "a.png", transparency=key)
        assert (pixels(load_image(tmp_path / "a.png")) == 255).all(), f"{mode} with a see-through level"


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_the_transparent_entry_of_a_palette_becomes_white_and_the_others_keep_their_colour(tmp_path, suffix):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 128, 255])
    image.paste(0, (0, 0, 2, 4))
    image.save(tmp_path / f"a{suffix}", transparency=0)
    loaded = load_image(tmp_path / f"a{suffix}")
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((3, 0)) == (0, 128, 255)


def sixteen_bits(image_HW: np.ndarray, path: Path) -> None:
    Image.fromarray(image_HW.astype(np.uint16)).save(path)


def big_endian_tiff(image_HW: np.ndarray, path: Path) -> None:
    height, width = image_HW.shape
    Image.frombytes("I;16B", (width, height), image_HW.astype(">u2").tobytes()).save(path)


def wide_integers(image_HW: np.ndarray, path: Path) -> None:
    Image.fromarray(image_HW.astype(np.int32)).save(path)


def fractions(image_HW: np.ndarray, path: Path) -> None:
    Image.fromarray((image_HW / 65535).astype(np.float32)).save(path)


def colours(image_HW: np.ndarray, path: Path) -> None:
    """A PNG of three 16-bit channels, written by hand: Pillow reads such files and does not write them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = image_HW.shape
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in image_HW)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (sixteen_bits, "a.png"),
        (sixteen_bits, "a.tiff"),
        (sixteen_bits, "a.pgm"),
        (big_endian_tiff, "a.tiff"),
        (wide_integers, "a.tiff"),
        (fractions, "a.tiff"),
        (colours, "a.png"),
    ],
)
def test_a_ramp_deeper_than_8_bits_is_scaled_and_not_clipped(
    tmp_path, write: Callable[[np.ndarray, Path], None], name: str
):
    ramp_HW = np.arange(0, 65536, 16).reshape(32, 128)
    write(ramp_HW, tmp_path / name)
    loaded_HWC = pixels(load_image(tmp_path / name))
    assert (np.diff(loaded_HWC[..., 0].ravel()) >= 0).all(), "the ramp goes down somewhere"
    assert abs(loaded_HWC - ramp_HW[..., None] / 257).max() <= 1, "a level is more than 1 of 255 off"


def test_grey_levels_without_a_known_white_are_refused_with_their_range(tmp_path):
    for levels in ([0, 70000], [-1, 5]):
        Image.fromarray(np.array([levels], dtype=np.int32)).save(tmp_path / "deep.tiff")
        with pytest.raises(UserError, match=rf"deep\.tiff.*{levels[0]} to {levels[1]}"):
            load_image(tmp_path / "deep.tiff")
    for levels in ([0, 255], [0, float("nan")]):
        Image.fromarray(np.array([levels], dtype=np.float32)).save(tmp_path / "float.tiff")
        with pytest.raises(UserError, match=r"float\.tiff"):
            load_image(tmp_path / "float.tiff")


def test_a_cmyk_picture_keeps_its_colours(tmp_path, picture):
    picture.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert_same_picture(load_image(tmp_path / "a.jpg"), picture, tolerance=16)


def test_the_first_frame_of_an_animation_is_the_picture(tmp_path):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for suffix in (".gif", ".png", ".webp", ".tiff"):
        path = tmp_path / f"a{suffix}"
        red.save(path, save_all=True, append_images=[blue], lossless=True)
        assert load_image(path).getpixel((4, 4)) == pytest.approx((255, 0, 0), abs=2), suffix


def test_the_srgb_profile_that_cameras_embed_changes_nothing(tmp_path, picture):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.save(tmp_path / "a.png", icc_profile=profile)
    assert_same_picture(load_image(tmp_path / "a.png"), picture, tolerance=1)


def test_a_colour_profile_that_is_broken_or_of_other_channels_is_taken_for_srgb(tmp_path, picture):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"broken", lab):
        picture.save(tmp_path / "a.png", icc_profile=profile)
        assert_same_picture(load_image(tmp_path / "a.png"), picture)


def test_a_wide_gamut_profile_makes_colours_stronger_and_leaves_grey_alone(tmp_path):
    """Display P3, which phones use: its (200, 100, 100) is more red than the same numbers in sRGB."""
    path = tmp_path / "p3.png"
    Image.new("RGB", (4, 4), (200, 100, 100)).save(path, icc_profile=display_p3())
    red, green, blue = load_image(path).getpixel((0, 0))
    assert red > 203
    assert green < 97
    assert blue < 99
    Image.new("RGB", (4, 4), (120, 120, 120)).save(path, icc_profile=display_p3())
    assert load_image(path).getpixel((0, 0)) == pytest.approx((120, 120, 120), abs=1)


def display_p3() -> bytes:
    """The sRGB profile with its three primaries exchanged for those of Display P3 (adapted to D50, as profiles are)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for number in range(struct.unpack_from(">I", profile, 128)[0]):
        tag, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        if tag in primaries:
            struct.pack_into(">3i", profile, offset + 8, *(round(value * 65536) for value in primaries[tag]))
    return bytes(profile)


def test_a_decompression_bomb_is_refused_before_it_fills_the_memory(tmp_path):
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    with pytest.raises(UserError, match=r"bomb\.png.*million pixels"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("error")
def test_a_phone_picture_of_100_million_pixels_is_taken_without_a_warning(tmp_path):
    Image.new("1", (10000, 10000)).save(tmp_path / "large.png")
    assert load_image(tmp_path / "large.png").size == (10000, 10000)


def test_a_picture_is_known_by_its_content_and_not_by_its_extension(tmp_path, picture):
    picture.save(tmp_path / "a.jpg", format="PNG")
    picture.save(tmp_path / "no_extension", format="PNG")
    assert_same_picture(load_image(tmp_path / "a.jpg"), picture)
    assert len(list_images(tmp_path)) == 2


def test_heic_is_read_where_its_decoder_is_installed(tmp_path, picture):
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
    pillow_heif.from_pillow(picture).save(tmp_path / "a.heic", quality=95)
    assert_same_picture(load_image(tmp_path / "a.heic"), picture, tolerance=24)


def test_heic_names_the_missing_decoder_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    fresh = image_files.readable_formats.__wrapped__  # it remembers its answer
    monkeypatch.setattr(image_files, "readable_formats", fresh)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError, match="pip install pillow-heif"):
        load_image(tmp_path / "a.heic")


# resize_and_crop


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (640, 400), (333, 1001), (20, 33)])
def test_a_circle_stays_a_circle(size):
    width, height = size
    radius = min(size) * 0.4
    image = Image.new("RGB", size, "black")
    box = (width / 2 - radius, height / 2 - radius, width / 2 + radius, height / 2 + radius)
    ImageDraw.Draw(image).ellipse(box, fill="white")
    white_HW = pixels(resize_and_crop(image, (64, 64)))[..., 0] > 127
    width_of_disc, height_of_disc = white_HW.any(0).sum(), white_HW.any(1).sum()
    # A drawn disc is up to one source pixel wider than 0.8 of the side.
    assert abs(int(width_of_disc) - int(height_of_disc)) <= 1
    assert abs(width_of_disc - 0.8 * 64) <= 2 + 64 / min(size)


def test_a_picture_of_the_right_height_is_cut_and_not_resampled(picture):
    for x in (0.0, 0.3, 0.5, 1.0):
        left = round(x * (64 - 48))
        assert_same_picture(resize_and_crop(picture, (48, 48), (x, 0.7)), picture.crop((left, 0, left + 48, 48)))


def test_the_crop_moves_from_one_end_of_the_long_side_to_the_other():
    """A ramp along the long side: the mean of the crop says where it lay."""
    for transpose in (False, True):
        ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (50, 1))).convert("RGB")
        ramp = ramp.transpose(Image.Transpose.TRANSPOSE) if transpose else ramp
        for position in (0.0, 0.25, 0.5, 1.0):
            xy = (0.9, position) if transpose else (position, 0.9)
            mean = pixels(resize_and_crop(ramp, (25, 25), xy)).mean()
            assert mean == pytest.approx(24.5 + 150 * position, abs=0.6)


def test_a_fine_pattern_is_averaged_and_not_aliased():
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (256, 128))).convert("RGB")
    inner = pixels(resize_and_crop(stripes, (50, 50)))[5:-5, 5:-5]
    assert abs(inner - 127.5).max() < 16


def test_upscaling_is_told_by_the_side_that_is_short_of_pixels(picture):
    assert not is_upscaled(picture.size, (48, 48))
    assert is_upscaled(picture.size, (49, 49))
    assert resize_and_crop(picture, (100, 100)).size == (100, 100)


# tensors


def test_every_level_survives_the_way_to_a_tensor_and_back():
    levels_HW = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels_HW, levels_HW[::-1], levels_HW.T], -1))
    pixels_CHW = to_tensor(image)
    assert pixels_CHW.shape == (3, 16, 16)
    assert pixels_CHW.dtype == torch.float32
    assert pixels_CHW.min() == -1
    assert pixels_CHW.max() == 1
    (back,) = to_images(pixels_CHW[None])
    assert_same_picture(back, image)


def test_pixels_are_rounded_and_clamped():
    step = 2 / 255
    values = torch.tensor([-9.0, -1 - step, -1 + 0.4 * step, -1 + 0.6 * step, 1 - 0.4 * step, 9.0])
    (image,) = to_images(values.expand(1, 3, 1, 6))
    assert pixels(image)[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


def test_pixels_with_gradients_in_half_precision_become_pictures():
    pixels_BCHW = torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16, requires_grad=True)
    assert [image.size for image in to_images(pixels_BCHW)] == [(5, 4), (5, 4)]


def test_nan_is_an_error_and_not_a_black_picture():
    with pytest.raises(NonFiniteError, match="float32"):
        to_images(torch.full((1, 3, 4, 4), float("nan")))


# grids and digests


def test_a_grid_holds_every_picture_at_its_place_on_white():
    images = [Image.new("RGB", (5, 4), (level, 0, 0)) for level in (10, 20, 30, 40, 50)]
    sheet = grid(images, columns=3, padding=2)
    assert sheet.size == (3 * 7 + 2, 2 * 6 + 2)
    for number, image in enumerate(images):
        left, top = 2 + number % 3 * 7, 2 + number // 3 * 6
        assert_same_picture(sheet.crop((left, top, left + 5, top + 4)), image)
    assert_same_picture(sheet.crop((16, 8, 21, 12)), Image.new("RGB", (5, 4), "white"))
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    assert grid(images[:2], columns=4, padding=0).size == (10, 4), "columns that no picture fills are left out"


@pytest.mark.parametrize("padding", [0, 1, 2, 5])
@pytest.mark.parametrize(("num_images", "columns"), [(1, 1), (6, 3), (3, 1), (4, 9)])
def test_the_cells_of_a_grid_are_the_very_pictures(num_images, columns, padding):
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(256, size=(8, 8, 3), dtype=np.uint8)) for _ in range(num_images)]
    cut = cells(grid(images, columns, padding), side=8, padding=padding)
    assert len(cut) == num_images
    for image, cell in zip(images, cut, strict=True):
        assert_same_picture(cell, image)


def test_the_empty_places_of_a_grid_come_white_and_what_is_no_grid_is_refused():
    images = [Image.new("RGB", (8, 8), "red")] * 5
    white = cells(grid(images, columns=3), side=8)[5]
    assert_same_picture(white, Image.new("RGB", (8, 8), "white"))
    with pytest.raises(UserError, match="32 x 22 pixels are no grid of images of 9 x 9"):
        cells(grid(images, columns=3), side=9)


def test_a_digest_changes_with_a_name_a_content_and_the_order_and_with_nothing_else(tmp_path):
    def write(folder: str, **contents: str) -> list[Path]:
        (tmp_path / folder).mkdir()
        for name, content in contents.items():
            (tmp_path / folder / name).write_text(content)
        return [tmp_path / folder / name for name in contents]

    paths = write("one", a="x", b="y")
    digest = digest_files(paths)
    assert digest_files(write("moved", a="x", b="y")) == digest
    others = [
        digest_files(write("content", a="x", b="z")),
        digest_files(write("name", a="x", c="y")),
        digest_files(write("border", a="", xb="y")),
        digest_files(write("swapped", b="x", a="y")),
        digest_files(reversed(paths)),
        digest_files(paths[:1]),
        digest_files([]),
    ]
    assert len({digest, *others}) == 8, "two different sets of files have one digest"


# real photographs


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the DreamBench photographs are not beside the repository")
@pytest.mark.parametrize("subject", ["backpack_dog", "cat2", "dog6", "grey_sloth_plushie", "rc_car", "teapot"])
def test_real_photographs_become_square_pixels_with_their_content_in_place(subject):
    paths = list_images(PHOTOGRAPHS / subject)
    assert [path.name for path in paths] == ["00.jpg", "01.jpg", "02.jpg", "03.jpg", "04.jpg"]
    for path in paths:
        image = load_image(path)
        square = resize_and_crop(image, (64, 64))
        assert to_tensor(square).shape == (3, 64, 64)
        # Another way to the same square: the centre crop of the whole picture, averaged.
        expected = ImageOps.fit(image, (64, 64), Image.Resampling.BOX)
        assert abs(pixels(square) - pixels(expected)).mean() < 6, f"{path.name} is squashed or shifted"
