"""A first config for a folder of photos, with a reason beside each line: what `new` and `prepare` write."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dreambooth.config import Config, default_of, load_config
from dreambooth.config.rules import DEVICE_OF_WINDOWS, MAX_NAME_BYTES
from dreambooth.data.buckets import kept_fraction
from dreambooth.data.captions import METADATA, files_beside
from dreambooth.data.image_folder import ImageFolder
from dreambooth.data.masks import find_masks
from dreambooth.data.near_duplicates import ImageInfo
from dreambooth.errors import UserError, escaped
from dreambooth.home_folder import with_home
from dreambooth.proposal.facts import base_facts, vocabulary
from dreambooth.proposal.rules import ALWAYS_SHOWN, Case, Draft, choices, fixed_settings

MIN_KEPT = 0.75  # of a photo that a square cuts more of, buckets keep the rest
CAPTIONS = (True, "each photo has one; class images are made from them too, without identifier")  # data.captions


@dataclass(frozen=True)
class Request:
    """Hold what the user asks for. memory: bytes there are; None: what this device has."""

    photos: Path
    class_noun: str
    base: str
    identifier: str
    out: Path
    memory: int | None = None


def first_draft(request: Request, folder: ImageFolder, images: Sequence[ImageInfo]) -> Draft:
    """Return settings by what is known without loading the base."""
    base = base_facts(request.base)
    fixed = fixed_settings(base)
    trains_text = fixed.get("method.train_text_encoder", (True, ""))[0]
    ruled = choices(Case(base, [len(images)], fixed["method.name"][0], trains_text))
    is_adapter = fixed["method.name"][0] != "full"
    draft: Draft = {
        "run.name": (run_name(request.photos.resolve().name), "the run's folder in checkpoints/"),
        "model.base": (request.base, "a hub id, a folder or a single .safetensors"),
        "subject.images": (str(request.photos), f"{len(images)} photo{'s' * (len(images) != 1)}"),
        "subject.identifier": (request.identifier, "a rare word that will mean the subject"),
        "subject.class_noun": (request.class_noun, "what kind of thing it is"),
        "data.resolution": ruled.pop("data.resolution"),
        **found_settings(folder, images, may_have_buckets=not base.is_tiny),
        "method.name": fixed["method.name"],
    }
    for key, choice in ruled.items():
        is_read = (key != "method.rank" or is_adapter) and (
            key != "prior.teacher_latents" or ruled["prior.source"][0] == "teacher"
        )
        if is_read and (key in ALWAYS_SHOWN or choice[0] != default_of(key)):
            draft[key] = choice
    draft |= {key: choice for key, choice in fixed.items() if key not in draft}
    prompts = ["a photo of {subject} on the beach", "a photo of {subject} in the snow", "a photo of a {class}"]
    draft["validate.prompts"] = (prompts, "is the subject there, does the prompt count, what becomes of the class?")
    encoders = encoder_settings(request.base)
    if base.is_toy and "validate.clip" in encoders:
        draft["method.start_word"] = (
            "auto",
            "the laboratory: with it the class comes .08 of the way to the subject, without it .25",
        )
        draft.pop("optim.identifier_lr", None)  # one that starts as words learns as well at the rate of the rest
    return draft | encoders


def run_name(folder: str) -> str:
    """Return a folder's name as a run can have it on every system: "rex-10-30" for "rex-10:30"."""
    letters = [letter if letter.isprintable() and letter not in '/\\:*?"<>|' else "-" for letter in folder]
    name = "".join(letters).encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip(" .-")
    return f"run-{name}".rstrip("-") if not name or DEVICE_OF_WINDOWS.fullmatch(name) else name


def encoder_settings(base: str) -> Draft:
    """Return settings for the encoders that were made for a base, or for the toy world and lie beside a toy base.

    Of several such the one that knows the same words is of its edition of the toy world, whatever the base is called.
    """
    folders = [Path(f"{base.rstrip('/')}-encoders")]
    if base_facts(base).is_tiny:
        folder = Path(with_home(base))
        words = vocabulary(folder / "tokenizer")
        beside = sorted(folder.parent.glob("toyworld*-encoders"))
        folders += sorted(beside, key=lambda encoders: vocabulary(encoders / "clip") != words)
    draft: Draft = {}
    for key, name in (("dino", "vit"), ("clip", "clip")):
        if encoder := next((folder / name for folder in folders if (folder / name).is_dir()), None):
            draft[f"validate.{key}"] = (str(encoder), "made for images of its kind, and beside it")
    return draft


def found_settings(folder: ImageFolder, images: Sequence[ImageInfo], may_have_buckets: bool) -> Draft:
    """Return settings for the captions, masks and shapes of the photos."""
    draft: Draft = {}
    if has_all_captions(folder):
        draft["data.captions"] = CAPTIONS
    masks = find_masks(folder.path, folder.images)
    if masks is not None:
        draft["data.mask"] = mask_setting(masks)
    if may_have_buckets and (cut := [image for image in images if kept_fraction(image.size, (1, 1)) < MIN_KEPT]):
        draft["data.buckets"] = (True, f"a square would cut more than a quarter off {len(cut)} of {len(images)} photos")
    return draft


def mask_setting(source: str) -> tuple[str, str]:
    """Return data.mask with its reason. source: as data.mask names it."""
    return source, "what is not transparent counts" if source == "alpha" else "white is what counts of a photo"


def has_all_captions(folder: ImageFolder) -> bool:
    """Return whether each photo has a caption beside it, or there is a list, whose lines are checked later."""
    is_listed = any(path.name == METADATA for path in folder.captions)
    return is_listed or len(files_beside(folder.images, folder.captions)) == len(folder.images)


def render(draft: Draft, command: str = "new") -> str:
    """Return a draft as a YAML file, section by section, with its reasons in a column. command: that writes it."""
    lines = [f"# Written by `python -m dreambooth {command}`; `python -m dreambooth train --help` lists every key."]
    last = ""
    for key, (value, comment) in by_section(draft).items():
        section, name = key.split(".")
        lines += [f"{section}:"] * (section != last) + _entry(name, value, comment)
        last = section
    return "\n".join(lines) + "\n"


def by_section(draft: Draft) -> Draft:
    """Return a draft with the keys of a section together."""
    sections = dict.fromkeys(key.split(".")[0] for key in draft)
    return {key: draft[key] for section in sections for key in draft if key.split(".")[0] == section}


def _entry(name: str, value: Any, comment: str) -> list[str]:
    items = [f"    - {shown_value(item)}" for item in value] if isinstance(value, list) else []
    line = f"  {name}:" if items else f"  {name}: {shown_value(value)}"
    return [f"{line:<32} # {comment}" if comment else line, *items]


def shown_value(value: Any) -> str:
    """Return a value as a YAML file has it."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < value < 1e-2 else repr(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).split("\n...")[0].strip()


def parsed(draft: Draft, out: Path) -> Config:
    """Return the config that a draft is. Raises UserError in the name of the file that it is to become."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, out.name)
        write_once(path, render(draft))
        try:
            return load_config(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), escaped(out))) from error


def write_once(path: Path, text: str) -> None:
    """Write a text to a file that is not there yet. Raises UserError where it is, or cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{escaped(path)}: cannot be written: {error.strerror or error}") from error
