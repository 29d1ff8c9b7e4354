"""The pictures of an evaluation: which, from which seed, where they lie, and which of them are there already.

    <out>/<MODEL>/<subject>/<number>-<prompt>/<image>.png      and class-<class prompt>/ beside the prompts

Each PNG holds its recipe. One that is there with the same recipe is not made again; one with another recipe is an error
that names the difference, so that no table mixes two ways of sampling. A recipe names the weights by their digest: a
run that was trained on is another model.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from dreambooth.data.images import to_images
from dreambooth.errors import UserError
from dreambooth.evaluation.models import Loader, learned_by, model_of
from dreambooth.evaluation.prompts import SEEDS_A_PROMPT
from dreambooth.evaluation.subjects import Subject
from dreambooth.export.subject_info import SubjectInfo
from dreambooth.families import fingerprint
from dreambooth.generation.images import RECIPE, Model, write_png
from dreambooth.generation.sampler import cut_warning, sample_pixels
from dreambooth.generation.settings import SamplerSettings
from dreambooth.prompts import fill_prompt, plain_prompt

CLASS_PROMPT = "a photo of a {class}"
MAX_SLUG = 60  # characters of a prompt in a folder's name
MAX_FOLDER = 100  # characters of a model in a folder's name

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """How every picture is made: one way for all models. size: (height, width), pixels."""

    settings: SamplerSettings
    size: tuple[int, int]
    seed: int
    num_images: int
    num_class_images: int
    batch_size: int


@dataclass(frozen=True)
class Task:
    """What is asked of one subject."""

    subject: Subject
    class_noun: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Shot:
    """One picture. prompt: as the model gets it. text: with the identifier taken out, as CLIP reads it."""

    row: str
    model: str
    subject: str
    is_class: bool
    prompt: str
    text: str
    seed: int
    path: Path


def plan(
    row: str, task: Task, card: SubjectInfo | None, way: Way, out: Path, class_only: bool = False
) -> Iterator[Shot]:
    """Yield the pictures of one row and subject, prompt by prompt, the class prompt last.

    card: None for a plain base. class_only: the class prompt alone, as the base is asked to measure drift from.
    """
    noun, folder = task.class_noun, out / folder_name(row) / task.subject.name
    asked = [] if class_only else [
        (f"{number:02d}", template, way.num_images, way.seed + SEEDS_A_PROMPT * number)
        for number, template in enumerate(task.prompts)
    ]  # fmt: skip
    for label, template, num_images, seed in [*asked, ("class", CLASS_PROMPT, way.num_class_images, way.seed)]:
        prompt, text = fill(template, card, noun), plain_prompt(template, [noun])
        for number in range(num_images):
            path = folder / f"{label}-{slug(template)}" / f"{number:03d}.png"
            yield Shot(
                row, model_of(row, task.subject.name), task.subject.name, label == "class", prompt, text,
                seed + number, path,
            )  # fmt: skip


def fill(template: str, card: SubjectInfo | None, class_noun: str) -> str:
    """The prompt as a model gets it. A plain base does not know the identifier: it gets the class noun alone.

    Raises UserError where a model has learned several subjects, and not just one of the class.
    """
    if card is None or "{subject}" not in template:
        return plain_prompt(template, [class_noun])
    return fill_prompt(template, [learned_by(card, class_noun)])


def slug(text: str) -> str:
    """'a {subject} on the beach' -> 'a-subject-on-the-beach'."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:MAX_SLUG]


def folder_name(row: str) -> str:
    """'checkpoints/{name}' -> 'checkpoints-name'."""
    return re.sub(r"[^\w.-]+", "-", row)[-MAX_FOLDER:].strip("-.")


def check_rows(rows: Sequence[str]) -> None:
    """Raise UserError for two rows whose pictures would lie in one folder."""
    by_folder: dict[str, str] = {}
    for row in rows:
        if (other := by_folder.setdefault(folder_name(row), row)) is not row:
            raise UserError(f"MODEL: {other} and {row} would write to one folder, {folder_name(row)}; name each once")


# ------------------------------------------------------------------------------------------------ what is there already


def recipes(shots: Iterable[Shot], load: Loader, way: Way) -> dict[Path, Recipe]:
    """The recipe of every picture. Each model is loaded once, and asked whether it takes the prompts and the size.

    Raises ModelError, and UserError for a prompt that is too long or a size that does not fit.
    """
    found = {}
    for model, own in by_model(shots).items():
        common = _common_recipe(load(model), way)
        _check_prompts(load(model), [shot.prompt for shot in own], way)
        found.update({shot.path: {"prompt": shot.prompt, "seed": shot.seed, **common} for shot in own})
    return found


def by_model(shots: Iterable[Shot]) -> dict[str, list[Shot]]:
    found: dict[str, list[Shot]] = {}
    for shot in shots:
        found.setdefault(shot.model, []).append(shot)
    return found


def _common_recipe(model: Model, way: Way) -> Recipe:
    dtype = str(next(model.family.denoiser.parameters()).dtype).removeprefix("torch.")
    own = {"model": model.name, "weights": fingerprint(model.family)[:16], "dtype": dtype}
    versions = {package: version(package) for package in ("torch", "diffusers")}
    return {**own, **asdict(way.settings), "width": way.size[1], "height": way.size[0], **versions}


@torch.no_grad()
def _check_prompts(model: Model, prompts: Sequence[str], way: Way) -> None:
    model.family.latent_shape(*way.size)
    for prompt in dict.fromkeys([way.settings.negative_prompt, *prompts]):
        if (warning := cut_warning(model.family, f"prompt {prompt!r}", prompt)) is not None:
            raise UserError(f"{warning}; shorten it")


def missing(shots: Sequence[Shot], recipes: Mapping[Path, Recipe]) -> list[Shot]:
    """The pictures that are still to be made. Raises UserError where another picture is in the place of one."""
    there = [shot for shot in shots if shot.path.exists()]
    changed = [(shot, change) for shot in there if (change := _change(shot.path, recipes[shot.path]))]
    if changed:
        shot, change = changed[0]
        more = f", and {len(changed) - 1} more like it" if len(changed) > 1 else ""
        raise UserError(f"{shot.path}{more}: {change}.\nNothing was overwritten: name another --out, or remove them")
    return [shot for shot in shots if not shot.path.exists()]


def _change(path: Path, recipe: Recipe) -> str:
    """What differs between a picture's own recipe and the wanted one; empty if nothing does."""
    try:
        with Image.open(path) as image:
            own = json.loads(image.info.get(RECIPE, "null"))
    except (OSError, json.JSONDecodeError):
        return "cannot be read as a picture with a recipe"
    if own is None:
        return "a picture without a recipe"
    keys = [key for key in {**recipe, **own} if own.get(key) != recipe.get(key)]
    told = "; ".join(f"{key} {own.get(key)!r} -> {recipe.get(key)!r}" for key in keys)
    return f"made otherwise: {told}" if keys else ""


# ------------------------------------------------------------------------------------------------------------- sampling


def sample(todo: Sequence[Shot], recipes: Mapping[Path, Recipe], load: Loader, way: Way, num_there: int) -> None:
    """Make the pictures, model by model. A kill at any moment leaves whole pictures only."""
    total = num_there + len(todo)
    with tqdm(total=total, initial=num_there, unit="picture", disable=not sys.stderr.isatty()) as progress:
        for model, shots in by_model(todo).items():
            for shot, image in zip(shots, _draw(load(model), shots, way), strict=True):
                write_png(shot.path, image, recipes[shot.path])
                progress.update()


def _draw(model: Model, shots: Sequence[Shot], way: Way) -> Iterator[Image.Image]:
    prompts, seeds = [shot.prompt for shot in shots], [shot.seed for shot in shots]
    for pixels_BCHW in sample_pixels(model.family, prompts, seeds, way.size, way.settings, way.batch_size):
        yield from to_images(pixels_BCHW)
