"""A first config for a folder of photos: what was found there, settings that suit the base, what the run will cost.

`python -m dreambooth new FOLDER --class NOUN` writes it; each line says why it is there.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from dreambooth import build
from dreambooth.config import Config, flatten, load_config, to_dict
from dreambooth.data.buckets import Size, kept_fraction, make_buckets, nearest_bucket
from dreambooth.data.captions import METADATA, files_beside
from dreambooth.data.image_files import load_image, transparency_mask
from dreambooth.data.image_folder import ImageFolder, open_folder
from dreambooth.data.images import grid, resize_and_crop
from dreambooth.data.near_duplicates import ImageInfo, inspect_image
from dreambooth.disk import GIB
from dreambooth.errors import ModelError, UserError, escaped
from dreambooth.files import beside_of
from dreambooth.preflight.costs import Costs, costs_of
from dreambooth.preflight.memory_plan import Planner, device_memory, is_enough, with_savings

MIN_KEPT = 0.75  # of a photo that a square cuts more of, buckets keep the rest
FEW_PHOTOS = 6  # that the usual number of steps is for
STEPS_A_PHOTO = 150  # for each further one
TOY_RESOLUTION = 128  # pixels; bases up to here are tiny, and learn at other rates than Stable Diffusion
THUMBNAIL = 256  # pixels a side of a crop in the grid
MAX_SHOWN = 64  # crops

Draft = dict[str, tuple[Any, str]]  # value and comment of each section.key, in the order in which they are written

SD: Draft = {
    "method.name": ("lora", "a file of some MB beside the base; full trains all weights and takes most memory"),
    "method.rank": (16, ""),
    "method.train_text_encoder": (True, "so that the identifier can come to mean something"),
    "optim.lr": (1.0e-4, "the usual rate of a LoRA; a full training takes 2.0e-6"),
    "optim.warmup_steps": (20, "Adam's second moments settle before the full rate"),
    "train.max_steps": (800, ""),
    "train.precision": ("bf16-mixed", "the frozen base in 16 bits, what trains in 32"),
    "train.gradient_checkpointing": (True, "less memory for a third more time"),
    "train.save_every_steps": (100, ""),
    "validate.every_steps": (200, "samples and scores; the best step is kept"),
}
SDXL: Draft = {
    **SD,
    "method.train_text_encoder": (False, "both are well trained, and large"),
    "prior.num_images": (100, "seconds each at this size"),
    "prior.batch_size": (1, "images of 1024 pixels are large"),
    "validate.num_images": (2, ""),
}
TOY: Draft = {
    "prior.source": ("teacher", "the frozen base's own predictions for images of the class are the target"),
    "prior.teacher_latents": ("class", ""),
    "prior.weight": (2, "1 lets the class drift half as far again towards the subject"),
    "prior.num_images": (64, ""),
    "prior.num_inference_steps": (10, ""),
    "prior.guidance_scale": (1, "what the base believes"),
    "optim.lr": (4.0e-4, "200 times that of Stable Diffusion 1.5, for 1/130 of its weights"),
    "optim.identifier_lr": (4.0e-3, "what is the subject's and not its class's has to go into one row"),
    "optim.schedule": ("linear", ""),
    "train.max_steps": (240, ""),
    "train.batch_size": (4, ""),
    "train.precision": ("32-true", ""),
    "train.save_every_steps": (80, ""),
    "train.num_threads": (1, "so small a network is faster on one core"),
    "validate.every_steps": (80, "samples and scores; the best step is kept"),
    "validate.num_images": (6, "a step that looks better on 3 may be so by noise alone"),
    "validate.scheduler": ("unipc", ""),
    "validate.num_inference_steps": (6, ""),
    "validate.guidance_scale": (4, ""),
}


@dataclass(frozen=True)
class Request:
    """Hold what the user asks for. memory: bytes there are; None: what this device has."""

    photos: Path
    class_noun: str
    base: str
    identifier: str
    out: Path
    memory: int | None = None


@dataclass(frozen=True)
class NewRun:
    """Hold a config that was written, its text, and its warnings. costs: None where the base is not there."""

    config: Config
    crops: Image.Image
    found: str
    warnings: list[str]
    costs: Costs | None


def write_new_config(request: Request) -> NewRun:
    """Write a config for a folder of photos. Raises UserError for what cannot be used, and for a file that is there."""
    if request.out.exists():
        raise UserError(f"{escaped(request.out)}: is there already; name another file with --out, or remove it")
    folder = open_folder(request.photos)
    images = [inspect_image(path) for path in folder.images]
    draft = first_draft(request, folder, images)
    warnings = drop_unusable(draft, request.out)
    costs = None
    try:
        costs = fit(draft, request, warnings)
    except ModelError as error:
        warnings.append(f"memory, disk and time are not known, as the base is not there: {error}")
    config = parsed(draft, request.out)
    warnings += photo_warnings(images, config)
    crops = crops_grid(folder.images, config)
    write_once(request.out, render(draft))
    return NewRun(config, crops, found_words(folder, config), warnings, costs)


# -------------------------------------------------------------------------------- the settings


def first_draft(request: Request, folder: ImageFolder, images: Sequence[ImageInfo]) -> Draft:
    """Return settings by what is known without loading the base."""
    resolution, is_xl = base_facts(request.base)
    is_toy = resolution <= TOY_RESOLUTION
    preset = TOY if is_toy else SDXL if is_xl else SD
    steps = preset["train.max_steps"][0] + (0 if is_toy else STEPS_A_PHOTO * max(0, len(images) - FEW_PHOTOS))
    draft: Draft = {
        "run.name": (request.photos.resolve().name, "the run's folder in checkpoints/"),
        "model.base": (request.base, "a hub id, a folder or a single .safetensors"),
        "subject.images": (str(request.photos), f"{len(images)} photo{'s' * (len(images) != 1)}"),
        "subject.identifier": (request.identifier, "a rare word that will mean the subject"),
        "subject.class_noun": (request.class_noun, "what kind of thing it is"),
        "data.resolution": (resolution, "what the base was trained at"),
        **found_settings(folder, images, may_have_buckets=not is_toy),
        **preset,
        "train.max_steps": (steps, "" if is_toy else f"{STEPS_A_PHOTO} more for each photo beyond {FEW_PHOTOS}"),
        "validate.prompts": (
            ["a photo of {subject} on the beach", "a photo of {subject} in the snow", "a photo of a {class}"],
            "is the subject there, does the prompt count, what becomes of the class?",
        ),
    }
    for key, name in (("dino", "vit"), ("clip", "clip")):
        if (encoder := Path(f"{request.base.rstrip('/')}-encoders", name)).is_dir():
            draft[f"validate.{key}"] = (str(encoder), "")
    return draft


def base_facts(base: str) -> tuple[int, bool]:
    """Return the resolution of a base and whether it is an XL, by its folder's configs, else by its name."""
    unet = Path(base, "unet", "config.json")
    if unet.is_file():
        config = json.loads(unet.read_text(encoding="utf-8"))
        return 8 * int(config["sample_size"]), config.get("addition_embed_type") == "text_time"
    is_xl = "xl" in base.lower()
    return (1024, True) if is_xl else (512, False)


def found_settings(folder: ImageFolder, images: Sequence[ImageInfo], may_have_buckets: bool) -> Draft:
    """Return settings for the captions, masks and shapes of the photos."""
    draft: Draft = {}
    if has_all_captions(folder):
        draft["data.captions"] = (True, "each photo has one; class images are made of the same without identifier")
    if has_all_transparency(folder.images):
        draft["data.mask"] = ("alpha", "what is not transparent counts")
    elif (masks := folder.path.with_name(f"{folder.path.name}-masks")).is_dir():
        draft["data.mask"] = (str(masks), "white is what counts of a photo")
    cut = [image for image in images if kept_fraction(image.size, (1, 1)) < MIN_KEPT]
    if cut and may_have_buckets:
        draft["data.buckets"] = (True, f"a square would cut more than a quarter off {len(cut)} of {len(images)} photos")
    return draft


def drop_unusable(draft: Draft, out: Path) -> list[str]:
    """Leave captions and masks out of the draft if a run would refuse them; return the reasons. Raises UserError."""
    try:
        build.load_subject_data(parsed(draft, out))
    except UserError as error:
        dropped = [key for key in ("data.captions", "data.mask") if draft.pop(key, None) is not None]
        if not dropped:
            raise
        return [f"{', '.join(dropped)} left out: {error}"]
    return []


def has_all_captions(folder: ImageFolder) -> bool:
    """Return whether each photo has a caption beside it, or there is a list, whose lines are checked later."""
    is_listed = any(path.name == METADATA for path in folder.captions)
    return is_listed or len(files_beside(folder.images, folder.captions)) == len(folder.images)


def has_all_transparency(paths: Sequence[Path]) -> bool:
    """Return whether every photo is a cut-out: a part of it is transparent."""
    try:
        return all(transparency_mask(path).getextrema()[0] == 0 for path in paths)
    except UserError:
        return False


# -------------------------------------------------------------------------------- what it costs


def fit(draft: Draft, request: Request, warnings: list[str]) -> Costs:
    """Add the savings to the draft that the run needs to fit into the memory; return what it then takes.

    Raises ModelError where the base cannot be had.
    """
    config = best = parsed(draft, request.out)
    planner = Planner(config)
    if planner.note is not None:
        warnings.append(f"model.base={request.base}: {planner.note}; training downloads it")
    memory, needed = request.memory or device_memory(config)[1], 0
    for _, changed, need in with_savings(planner, config):
        best, needed = changed, need.total
        if is_enough(needed, memory):
            break
    else:
        warnings.append(f"{needed / GIB:.1f} GiB are needed at least, of {memory / GIB:.3g} GiB; take a smaller base")
    before, after = flatten(to_dict(config)), flatten(to_dict(best))
    for key in after:
        if after[key] != before.get(key):
            draft[key] = (after[key], f"so that it fits into {memory / GIB:.3g} GiB")
    return costs_of(planner, best)


# -------------------------------------------------------------------------------- the file


def render(draft: Draft) -> str:
    """Return a draft as a YAML file, section by section, with its comments in a column."""
    lines = ["# Written by `python -m dreambooth new`; `python train.py --help` lists every key."]
    for section in dict.fromkeys(key.split(".")[0] for key in draft):
        lines.append(f"{section}:")
        for key, (value, comment) in draft.items():
            if key.split(".")[0] == section:
                lines += _entry(key.split(".")[1], value, comment)
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any, comment: str) -> list[str]:
    items = [f"    - {_scalar(item)}" for item in value] if isinstance(value, list) else []
    line = f"  {name}:" if items else f"  {name}: {_scalar(value)}"
    return [f"{line:<32} # {comment}" if comment else line, *items]


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < value < 1e-2 else repr(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).split("\n...")[0].strip()


def parsed(draft: Draft, out: Path) -> Config:
    """Return the config that a draft is. Raises UserError in the name of the file that it is to become."""
    beside = beside_of(out)
    write_once(beside, render(draft))
    try:
        return load_config(beside)
    except UserError as error:
        raise UserError(str(error).replace(str(beside), escaped(out))) from error
    finally:
        beside.unlink()


def write_once(path: Path, text: str) -> None:
    """Write a text to a file that is not there yet. Raises UserError where it is, or cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{escaped(path)}: cannot be written: {error.strerror or error}") from error


# -------------------------------------------------------------------------------- what is said


def photo_warnings(images: Sequence[ImageInfo], config: Config) -> Iterator[str]:
    """Yield what to know of the photos before training."""
    if len(images) == 1:
        yield (
            "one photo: its place and light are learned with the subject; take 3 to 5 more in other places, from "
            "other sides"
        )
    yield from build.image_warnings(images, _sizes(config), config.data.resolution)


def _sizes(config: Config) -> list[Size]:
    side = config.data.resolution
    return make_buckets(side, config.data.bucket_step) if config.data.buckets else [(side, side)]


def crops_grid(paths: Sequence[Path], config: Config) -> Image.Image:
    """Return the photos as training will see them, in a grid; each stands on a grey square."""
    crops = []
    for path in paths[:MAX_SHOWN]:
        image = load_image(path)
        crop = resize_and_crop(image, nearest_bucket(image.size, _sizes(config)))
        crop.thumbnail((THUMBNAIL, THUMBNAIL))
        square = Image.new("RGB", (min(THUMBNAIL, config.data.resolution),) * 2, "gray")
        square.paste(crop, ((square.width - crop.width) // 2, (square.height - crop.height) // 2))
        crops.append(square)
    return grid(crops, columns=min(len(crops), 8))


def found_words(folder: ImageFolder, config: Config) -> str:
    """Return what a folder was found to hold, in words."""
    parts = [f"{len(folder.images)} photo{'s' * (len(folder.images) != 1)}"]
    parts += ["captions"] * config.data.captions + [f"masks ({config.data.mask})"] * (config.data.mask is not None)
    return ", ".join(parts)
