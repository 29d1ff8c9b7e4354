"""The images of an evaluation: their prompts, seeds and paths, and which of them exist already.

    <out>/<MODEL>/<subject>/<number>-<prompt>/<image>.png      and class-<class prompt>/ beside the prompts

Each PNG holds its recipe. One with the same recipe is not made again; one with another recipe is an error that names
the difference, so that no table mixes two kinds of sampling. A recipe names the weights by their digest: a run that was
trained further is another model.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dreambooth.errors import UserError
from dreambooth.evaluation.models import Loader, learned_by, model_of
from dreambooth.evaluation.prompts import SEEDS_A_PROMPT
from dreambooth.evaluation.subjects import Subject
from dreambooth.families import fingerprint
from dreambooth.generation.images import OnProgress, Progress, check_can_sample, generate
from dreambooth.generation.models.loading import Model
from dreambooth.generation.prompting.prompt_reading import cut_warning
from dreambooth.generation.request import ImageRequest, make_recipe, read_recipe, recipe_changes, write_png
from dreambooth.generation.settings import SamplerSettings
from dreambooth.prompts import fill_prompt, has_field, plain_prompt
from dreambooth.subject_info import SubjectInfo

CLASS, CLASS_PROMPT = "class", "a photo of a {class}"
MAX_SLUG = 60  # characters of a prompt in a folder's name
MAX_FOLDER = 100  # characters of a model in a folder's name

Recipe = dict[str, Any]


@dataclass(frozen=True)
class SamplingSpec:
    """Hold how every image is sampled, the same for all models. size: (height, width), pixels."""

    settings: SamplerSettings
    size: tuple[int, int]
    seed: int
    num_images: int
    num_class_images: int
    batch_size: int


@dataclass(frozen=True)
class Task:
    """Hold one subject to evaluate on, and its prompts."""

    subject: Subject
    class_noun: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class ImageSpec:
    """Hold one image to make. prompt: as the model gets it. text: without the identifier, as CLIP reads it."""

    row: str
    model: str
    subject: str
    is_class: bool
    prompt: str
    text: str
    seed: int
    path: Path


def plan(
    row: str, task: Task, card: SubjectInfo | None, sampling: SamplingSpec, out: Path, class_only: bool = False
) -> Iterator[ImageSpec]:
    """Yield the images of one row and subject, prompt by prompt, the class prompt last.

    card: None for a plain base. class_only: the class prompt alone, as the base is sampled to measure drift from.
    """
    for number, template in enumerate(() if class_only else task.prompts):
        seed = sampling.seed + SEEDS_A_PROMPT * number
        yield from _of_prompt(row, task, card, out, f"{number:02d}", template, range(seed, seed + sampling.num_images))
    seeds = range(sampling.seed, sampling.seed + sampling.num_class_images)
    yield from _of_prompt(row, task, card, out, CLASS, CLASS_PROMPT, seeds)


def _of_prompt(
    row: str, task: Task, card: SubjectInfo | None, out: Path, label: str, template: str, seeds: Iterable[int]
) -> Iterator[ImageSpec]:
    """Yield the images of one prompt. label: begins the name of its folder."""
    noun, subject = task.class_noun, task.subject.name
    prompt, text = fill(template, card, noun), plain_prompt(template, [noun])
    folder = out / folder_name(row) / subject / f"{label}-{slug(template)}"
    for number, seed in enumerate(seeds):
        path = folder / f"{number:03d}.png"
        yield ImageSpec(row, model_of(row, subject), subject, label == CLASS, prompt, text, seed, path)


def fill(template: str, card: SubjectInfo | None, class_noun: str) -> str:
    """Return the prompt as a model gets it. A plain base does not know the identifier: it gets the class noun alone.

    Raises UserError where a model has learned several subjects, and not just one of the class.
    """
    if card is None or not has_field(template, "subject"):
        return plain_prompt(template, [class_noun])
    return fill_prompt(template, [learned_by(card, class_noun)])


def slug(text: str) -> str:
    """Return a prompt as a file name: 'a {subject} on the beach' gives 'a-subject-on-the-beach'."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:MAX_SLUG]


def folder_name(row: str) -> str:
    """Return a row as a folder name: 'checkpoints/{name}' gives 'checkpoints-name'."""
    return re.sub(r"[^\w.-]+", "-", row)[-MAX_FOLDER:].strip("-.")


def check_rows(rows: Sequence[str]) -> None:
    """Raise UserError for two rows that would write to one folder."""
    by_folder: dict[str, str] = {}
    for row in rows:
        if (other := by_folder.setdefault(folder_name(row), row)) is not row:
            raise UserError(f"MODEL: {other} and {row} would write to one folder, {folder_name(row)}; name each once")


# ------------------------------------------------------------------------------------------------ existing images


def recipes(images: Iterable[ImageSpec], load: Loader, sampling: SamplingSpec) -> dict[Path, Recipe]:
    """Return the recipe of every image. Each model is loaded once, to check that it can do the prompts and the size.

    Raises ModelError, and UserError for a prompt that is too long or a size that does not fit.
    """
    found = {}
    for name, own in by_model(images).items():
        model = load(name)
        check_can_sample(model, sampling.size, sampling.settings)
        _check_prompts(model, [image.prompt for image in own], sampling)
        weights = fingerprint(model.family)
        for image in own:
            found[image.path] = make_recipe(_request(model, image, sampling), weights)
    return found


def by_model(images: Iterable[ImageSpec]) -> dict[str, list[ImageSpec]]:
    """Return the images of each model."""
    found: dict[str, list[ImageSpec]] = {}
    for image in images:
        found.setdefault(image.model, []).append(image)
    return found


def _request(model: Model, image: ImageSpec, sampling: SamplingSpec) -> ImageRequest:
    return ImageRequest(model.ref, image.prompt, image.seed, *sampling.size, sampling.settings)


@torch.no_grad()
def _check_prompts(model: Model, prompts: Sequence[str], sampling: SamplingSpec) -> None:
    for prompt in dict.fromkeys([sampling.settings.negative_prompt, *prompts]):
        if (warning := cut_warning(model.family, f"prompt {prompt!r}", prompt)) is not None:
            raise UserError(f"{warning}; shorten it")


def missing(images: Sequence[ImageSpec], recipes: Mapping[Path, Recipe]) -> list[ImageSpec]:
    """Return the images that do not exist yet. Raises UserError where another image is in the path of one."""
    there = [image for image in images if image.path.exists()]
    changed = [(image, change) for image in there if (change := _change(image.path, recipes[image.path]))]
    if changed:
        image, change = changed[0]
        more = f", and {len(changed) - 1} more like it" if len(changed) > 1 else ""
        raise UserError(f"{image.path}{more}: {change}.\nNothing was overwritten: name another --out, or remove them")
    return [image for image in images if not image.path.exists()]


def _change(path: Path, recipe: Recipe) -> str:
    """Return the differences between an image's own recipe and the requested one, as text; empty for none."""
    try:
        changes = recipe_changes(read_recipe(path), recipe)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    return f"made otherwise: {'; '.join(changes)}" if changes else ""


# ------------------------------------------------------------------------------------------------------------- sampling


def sample(
    missing_images: Sequence[ImageSpec], load: Loader, sampling: SamplingSpec, on_progress: OnProgress | None = None
) -> None:
    """Make the images, model by model. A kill at any moment leaves whole images only."""
    done = 0

    def report(progress: Progress) -> None:
        if on_progress is not None:
            on_progress(replace(progress, images=done + progress.images, num_images=len(missing_images)))

    for name, images in by_model(missing_images).items():
        model = load(name)
        requests = [_request(model, image, sampling) for image in images]
        for image, generated in zip(images, generate(model, requests, sampling.batch_size, report), strict=True):
            write_png(image.path, generated, generated.recipe)
        done += len(images)
