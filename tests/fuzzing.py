"""Junk to feed in, and what must hold whatever comes: a result that is right or one of our errors, in 10 s and 2 GB.

`tests/test_fuzz.py` tries a share that is always the same, `benchmarks/fuzz.py` as many as one likes.
"""

import contextlib
import io
import json
import math
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from PIL import Image, ImageCms

from dreambooth.checkpointing import AtomicCheckpointIO, StateEntry, find_newest, find_state, manifest_path
from dreambooth.config import Config, config_fields, field_of, load_config, to_dict
from dreambooth.data.image_files import load_image
from dreambooth.data.image_folder import list_images
from dreambooth.data.images import to_tensor
from dreambooth.data.near_duplicates import inspect_image
from dreambooth.errors import DreamBoothError, UserError
from dreambooth.families import Family, load_family
from dreambooth.families.single_file import read_header
from dreambooth.methods import adapter_files, adapters
from dreambooth.subject_info import card_in_file

ROOT = Path(__file__).parent.parent
MAX_SECONDS = 10  # of this process's own time
MAX_BYTES = 2 * 2**30


class TooLong(BaseException):
    """No `except` for errors of libraries takes this for one."""


@contextlib.contextmanager
def bounded(seconds: float = MAX_SECONDS) -> Iterator[None]:
    """Raises TooLong after so long; AssertionError where more than 2 GB are held at a time."""

    def ring(number: int, frame: object) -> None:
        raise TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert peak < MAX_BYTES, f"{peak / 2**30:.2f} GiB were held"


# -------------------------------------------------------------------------------- damage

places = st.floats(0, 1, exclude_max=True)
flips = st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=8)
damages = st.one_of(
    st.tuples(st.just("flip"), flips),
    st.tuples(st.just("header"), flips),  # within the first 64 bytes
    st.tuples(st.just("cut"), places),
    st.tuples(st.just("splice"), st.tuples(places, places, places)),
    st.tuples(st.just("insert"), st.tuples(places, st.binary(min_size=1, max_size=16))),
    st.tuples(st.just("zero"), st.tuples(places, st.integers(1, 64))),
)


def damaged(content: bytes, damage: tuple[str, Any], other: bytes) -> bytes:
    """Return what a bad disk, a torn download or a malicious hand makes of a file; spliced from `other`."""
    kind, how = damage
    data = bytearray(content or b"\0")
    if kind in ("flip", "header"):
        reach = len(data) if kind == "flip" else min(64, len(data))
        for place, mask in how:
            data[int(place * reach)] ^= mask
    elif kind == "cut":
        del data[int(how * len(data)) :]
    elif kind == "splice":
        first, start, end = how
        data[int(first * len(data)) :] = other[
            int(min(start, end) * len(other)) : int(max(start, end) * len(other)) + 1
        ]
    elif kind == "insert":
        place, piece = how
        data[int(place * len(data)) : int(place * len(data))] = piece
    else:
        place, length = how
        first = int(place * len(data))
        data[first : first + length] = bytes(len(data[first : first + length]))
    return bytes(data)


# -------------------------------------------------------------------------------- configs

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**3), 10**4),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "auto", "nan", "1e3", "5e-6", "007", "no", "???", "${run.name}", "${oc.env:HOME}", "{subject}",
         "{class}", "a {subject_2}", "../x", "a/b", "~", "x" * 5000, "sks", "32-true", "\0", "\ud800", "stream"]
    ),
)  # fmt: skip
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=8,
)
known_keys = st.sampled_from(sorted(config_fields()))
keys = st.one_of(known_keys, known_keys.map(lambda key: key[:-1]), st.text(max_size=16))
settings_of = st.dictionaries(keys, st.one_of(scalars, trees), max_size=6)
REQUIRED = {
    "run.name": "x",
    "model.base": "checkpoints/toyworld",
    "subject.images": "data/robot",
    "subject.class_noun": "robot",
}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        if dot and isinstance(tree.setdefault(section, {}), dict):
            tree[section][name] = value
        else:
            tree[section] = value
    return tree


def try_config(content: bytes, overrides: list[str], given: dict[str, Any] | None = None) -> bool:
    """Whether it is taken for a config. given: what stands in it, by key: no other value may come out."""
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / "config.yaml"
        path.write_bytes(content)
        try:
            config = load_config(path, overrides)
        except UserError as error:
            return check_message(error)
        check_config(config, given or {}, path)
        return True


def check_message(error: UserError) -> bool:
    """False: what was tried is not taken. The message is one, and no book."""
    text = str(error)
    assert text.strip()
    assert max(map(len, text.splitlines())) < 1000, text[:2000]
    assert text.isprintable() or all(letter.isprintable() or letter == "\n" for letter in text), ascii(text)
    return False


def check_config(config: Config, given: dict[str, Any], path: Path) -> None:
    """It is what was given, sound, and comes back from its own file."""
    sections = to_dict(config)
    for key, value in given.items():
        section, name = key.split(".")
        taken = sections[section][name]
        if isinstance(value, str) and not isinstance(taken, (str, list)):
            continue  # "5e-6" and "yes" are read as what they mean
        if not (isinstance(value, (str, list)) and "${" in str(value)):
            assert taken == value, f"{key}: {value!r} became {taken!r}"
    for key, item in config_fields().items():
        section, name = key.split(".")
        value = (sections.get(section) or {}).get(name)
        if isinstance(value, float):
            assert math.isfinite(value), key
        if isinstance(value, str):
            assert "${" not in value, key
        assert item is field_of(key)
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    assert load_config(path) == config


shipped = sorted((ROOT / "configs").glob("*.yaml"))


# -------------------------------------------------------------------------------- pictures


def picture_files() -> dict[str, bytes]:
    """A small file of every format and mode that Pillow can write here and the toolkit reads."""
    y, x = np.mgrid[0:24, 0:32]
    rgb = Image.fromarray(np.stack([x * 8, y * 10, 255 - x * 4 - y * 4], -1).astype(np.uint8))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray((x * 8).astype(np.uint8)))
    deep = Image.fromarray((x * 2000).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    moving: dict[str, Any] = {"save_all": True}
    wished: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (rgb, "JPEG", {"exif": exif, "icc_profile": profile}),
        "jpeg-progressive": (rgb, "JPEG", {"progressive": True}),
        "jpeg-cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "jpeg-mpo": (rgb, "MPO", moving),
        "png": (rgb, "PNG", {"exif": exif, "icc_profile": profile}),
        "png-alpha": (alpha, "PNG", {}),
        "png-16": (deep, "PNG", {}),
        "png-palette": (rgb.convert("P"), "PNG", {"transparency": 3}),
        "png-bit": (rgb.convert("1"), "PNG", {}),
        "png-moving": (rgb, "PNG", moving),
        "gif": (rgb.convert("P"), "GIF", {"transparency": 3}),
        "gif-moving": (rgb, "GIF", moving),
        "bmp": (rgb, "BMP", {}),
        "bmp-palette": (rgb.convert("P"), "BMP", {}),
        "ppm": (rgb, "PPM", {}),
        "pgm-16": (deep.convert("I"), "PPM", {}),
        "pfm": (deep.convert("F").point(lambda level: level / 65535), "PPM", {}),
        "tiff": (rgb, "TIFF", {"exif": exif}),
        "tiff-16": (deep, "TIFF", {}),
        "tiff-float": (deep.convert("F").point(lambda level: level / 65535), "TIFF", {}),
        "tiff-lzw": (alpha, "TIFF", {"compression": "tiff_lzw"}),
        "tiff-deflate": (rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff-jpeg": (rgb, "TIFF", {"compression": "jpeg"}),
        "tiff-g4": (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff-packbits": (rgb.convert("CMYK"), "TIFF", {"compression": "packbits"}),
        "tiff-pages": (rgb, "TIFF", moving),
        "webp": (rgb, "WEBP", {"exif": exif}),
        "webp-lossless": (alpha, "WEBP", {"lossless": True}),
        "webp-moving": (rgb, "WEBP", moving),
        "avif": (rgb, "AVIF", {}),
        "avif-alpha": (alpha, "AVIF", {}),
        "heif": (rgb.resize((64, 64)), "HEIF", {}),
    }
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    files = {}
    for name, (image, form, options) in wished.items():
        with contextlib.suppress(KeyError, OSError):  # not built into this Pillow
            target = io.BytesIO()
            own = {**options, "append_images": [rgb.rotate(90)]} if "save_all" in options else options
            image.copy().save(target, form, **own)  # copies: the JPEG writer leaves its settings in what it writes
            files[name] = target.getvalue()
    return files


def try_picture(content: bytes) -> bool:
    """Whether it is taken for a picture. Then it can be loaded, and is one."""
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            assert list_images(folder) == [path]
        except UserError as error:
            return check_message(error)
        image = load_image(path)
        assert image.mode == "RGB"
        assert min(image.size) >= 16
        assert max(image.size) <= 16 * min(image.size)
        if image.width * image.height < 10**7:
            pixels_CHW = to_tensor(image)
            assert pixels_CHW.shape == (3, image.height, image.width)
            assert -1 <= float(pixels_CHW.min()) <= float(pixels_CHW.max()) <= 1
            assert inspect_image(path).size == image.size
        return True


# -------------------------------------------------------------------------------- checkpoints


def saved_state(folder: Path) -> Path:
    """A small checkpoint with its manifest."""
    generator = torch.Generator().manual_seed(0)
    weights = {f"weight {number}": torch.randn(8, 4, generator=generator) for number in range(4)}
    path = folder / "last.ckpt"
    saving = AtomicCheckpointIO({"base model": "abc", "subject pictures": {"a.png": "0" * 64}})
    saving.save_checkpoint({"global_step": 2, "state_dict": {}}, path)
    saving.save_checkpoint({"global_step": 3, "state_dict": weights}, path)
    return path


def try_state(path: Path, state: bytes, manifest: bytes, whole: tuple[bytes, StateEntry]) -> bool:
    """Whether it is taken for a state. Then it is, byte for byte, the one that was written, and known as such."""
    with bounded():
        path.write_bytes(state)
        manifest_path(path).write_bytes(manifest)
        try:
            entry = find_state(path)
        except UserError:
            for read in (lambda: AtomicCheckpointIO().load_checkpoint(path), lambda: find_newest([path])):
                assert refuses(read)
            return False
        assert state == whole[0], "a damaged state is taken for a whole one"
        assert entry == whole[1], "a whole state is taken for another"
        return True


def refuses(read: Callable[[], object]) -> bool:
    try:
        read()
    except UserError:
        return True
    return False


# -------------------------------------------------------------------------------- a LoRA to start from


def lora_file(base: Path, folder: Path) -> bytes:
    """A LoRA of the base as training leaves it, with its card."""
    from dreambooth.methods.base import MethodSettings
    from dreambooth.methods.table import METHODS

    family = load_family(str(base))
    METHODS["lora"].attach(family, MethodSettings(rank=2, train_text_encoder=False))
    adapter_files.save_lora(family, folder)
    return (folder / adapter_files.LORA_FILE).read_bytes()


def try_lora_header(content: bytes) -> bool:
    """Try what a file says before its weights are read."""
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / "start.safetensors"
        path.write_bytes(content)
        taken = True
        for read in (lambda: read_header(path).family, lambda: read_header(path).config, lambda: card_in_file(path)):
            try:
                read()
            except DreamBoothError:
                taken = False
        return taken


def try_lora(content: bytes, family: Family) -> bool:
    """Whether a base takes it. Then all its numbers are finite; the base is as it was afterwards in any case."""
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / "start.safetensors"
        path.write_bytes(content)
        try:
            adapter_files.load_lora(family, path)
            learned = [
                t
                for part in adapters.adapted_components(family).values()
                for t in adapters.adapter_state(part).values()
            ]
            assert learned
            assert all(bool(torch.isfinite(tensor).all()) for tensor in learned)
            return True
        except DreamBoothError:
            return False
        finally:
            adapters.unload_adapters(family)


def junk_safetensors(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


# -------------------------------------------------------------------------------- all of it


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind. trial: tries one; whether it was taken for good. share: of the examples of a long run."""

    inputs: st.SearchStrategy[Any]
    trial: Callable[[Any], bool]
    share: float


def make_kinds(base: Path, folder: Path) -> dict[str, Kind]:
    """base: a Stable Diffusion that a LoRA fits. folder: for files that stay as long as the kinds."""
    files = picture_files()
    path = saved_state(folder)
    state, manifest = path.read_bytes(), manifest_path(path).read_bytes()
    whole = (state, find_state(path))
    lora, family = lora_file(base, folder / "lora"), load_family(str(base))
    configs = [each.read_bytes() for each in shipped]
    lines = st.tuples(keys, st.one_of(scalars.map(str), st.text(max_size=8))).map("=".join)
    pairs = st.tuples(st.sampled_from(sorted(files)), damages, st.sampled_from(sorted(files)))
    bytes_of = {
        "config: trees": (trees | settings_of.map(nested)).map(_dumped),
        "config: damaged": st.tuples(st.sampled_from(configs), damages, st.sampled_from(configs)).map(_spoilt),
        "config: bytes": st.binary(max_size=200)
        | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
    }
    return {
        "config: settings": Kind(settings_of, _try_settings, 0.01),
        "config: overrides": Kind(
            st.lists(lines, max_size=4), lambda some: try_config(_dumped(nested(REQUIRED)), some), 0.005
        ),
        **{name: Kind(inputs, lambda content: try_config(content, []), 0.01) for name, inputs in bytes_of.items()},
        "pictures": Kind(pairs, lambda some: try_picture(damaged(files[some[0]], some[1], files[some[2]])), 0.40),
        "states": Kind(
            st.tuples(damages, damages),
            lambda some: try_state(path, damaged(state, some[0], state), manifest, whole),
            0.21,
        ),
        "manifests": Kind(
            st.tuples(damages, damages),
            lambda some: try_state(path, state, damaged(damaged(manifest, some[0], state), some[1], manifest), whole),
            0.16,
        ),
        "manifests: trees": Kind(
            trees | st.lists(trees | st.fixed_dictionaries({"step": scalars, "num_bytes": scalars, "sha256": scalars})),
            lambda tree: try_state(path, state, json.dumps(tree, default=str).encode("utf-8", "replace"), whole),
            0.04,
        ),
        "LoRA: headers": Kind(
            (trees | st.dictionaries(st.text(max_size=9), tensors_of | trees, max_size=4)).map(junk_safetensors)
            | damages.map(lambda damage: damaged(lora, damage, state)),
            try_lora_header,
            0.135,
        ),
        "LoRA: loaded": Kind(
            damages.map(lambda damage: damaged(lora, damage, lora)), lambda some: try_lora(some, family), 0.01
        ),
    }


tensors_of = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I64", "BOOL", "X"]),
        "shape": st.lists(st.integers(-1, 2**63), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 2**63), max_size=3),
    }
)


def _dumped(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def _spoilt(some: tuple[bytes, tuple[str, Any], bytes]) -> bytes:
    return damaged(*some)


def _try_settings(settings: dict[str, Any]) -> bool:
    """Over what is required. What is taken must come out as it was given."""
    flat = {**REQUIRED, **settings}
    known = {key: value for key, value in flat.items() if key in config_fields()}
    return try_config(_dumped(nested(flat)), [], known)


def fuzz(kind: Kind, examples: int, seed: int | None = None) -> tuple[int, int]:
    """Return how many inputs were tried, and how many of them taken. seed None: always the same ones.

    Raises what the first input raises that breaks a promise, made as small as can be.
    """
    counts = [0, 0]

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=seed is None,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink), print_blob=True,
    )  # fmt: skip
    @given(kind.inputs)
    def each(some: Any) -> None:
        counts[0] += 1
        counts[1] += kind.trial(some)

    (each if seed is None else hypothesis_seed(seed)(each))()
    return counts[0], counts[1]
