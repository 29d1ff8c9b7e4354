"""Score single images as a validation does: likeness to the subject's photos, and fidelity to the prompt."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.config import load_config
from dreambooth.data.image_files import load_image
from dreambooth.data.image_folder import list_images
from dreambooth.errors import UserError
from dreambooth.evaluation.encoders import find_encoders
from dreambooth.generation.models.base_path import find_path
from dreambooth.generation.models.loading import Model
from dreambooth.generation.models.location import model_folder
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.prompting.weight_syntax import parse_weights
from dreambooth.generation.request import read_recipe
from dreambooth.metrics.scores import prompt_similarity
from dreambooth.metrics.subject import Encoders, SubjectScorer
from dreambooth.prompt_words import has_words
from dreambooth.prompts import without_identifiers
from dreambooth.subject_info import LearnedSubject

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageScore:
    """Hold the scores of one image. None: not measured.

    likeness: cosine similarity to the photos of the subjects that the prompt names (DINO, else CLIP). prompt: to the
    prompt without identifiers (CLIP).
    """

    likeness: float | None
    prompt: float | None

    @property
    def value(self) -> float:
        """Return likeness * prompt, of what was measured: one percent more of either counts the same."""
        return (1.0 if self.likeness is None else self.likeness) * (1.0 if self.prompt is None else self.prompt)

    def __str__(self) -> str:
        parts = (("likeness", self.likeness), ("prompt", self.prompt))
        return ", ".join(f"{name} {value:.3f}" for name, value in parts if value is not None)


@dataclass(frozen=True)
class ImageScorer:
    """Score images by their recipes. subjects: what a model has learned, each with its photos (None: not known)."""

    encoders: Encoders
    subjects: Sequence[tuple[LearnedSubject, SubjectScorer | None]]

    def __call__(self, images: Sequence[Image.Image], recipes: Sequence[Mapping[str, Any]]) -> list[ImageScore]:
        """Return the scores of images, in their order."""
        return [self._score(image, recipe) for image, recipe in zip(images, recipes, strict=True)]

    def _score(self, image: Image.Image, recipe: Mapping[str, Any]) -> ImageScore:
        prompt = str(recipe["prompt"])
        learned = [subject for subject, _ in self.subjects]
        text = without_identifiers(_without_weights(prompt, recipe), learned)
        named = [scorer for subject, scorer in self.subjects if scorer and has_words(prompt, subject.identifier)]
        found = [scorer.subject([image], [text]) for scorer in named]
        measures = [each.get("dino", each.get("clip_i", [])) for each in found]
        likeness = [numbers[0] for numbers in measures if numbers]
        clip = self.encoders.clip
        of_prompt = None
        if clip is not None:
            of_prompt = float(prompt_similarity(clip.images([image]), clip.texts([text])))
        return ImageScore(sum(likeness) / len(likeness) if likeness else None, of_prompt)


def _without_weights(prompt: str, recipe: Mapping[str, Any]) -> str:
    if "text_encoding" not in recipe:
        return prompt
    return " ".join(each.text for each in parse_weights(prompt).prompts)


def make_image_scorer(
    name: str, subjects: Sequence[LearnedSubject], device: str, photos: Path | None = None
) -> ImageScorer:
    """Make the scorer of a model's images, with the encoders that its run measured with.

    name: of the model. photos: folder of the subject's, None: those that the run learned from. Raises UserError where
    nothing is left to measure with.
    """
    encoders = find_encoders("auto", "auto", [name], device, lpips=False)
    folders = [photos, *[None] * (len(subjects) - 1)] if photos is not None else _photo_folders(name, len(subjects))
    scorers = [None if folder is None else _scorer(encoders, folder) for folder in folders[: len(subjects)]]
    if encoders.clip is None and not any(scorers):
        raise UserError(
            f"--score: there is neither a CLIP nor a photo of what {name} has learned; write --score PHOTOS"
        )
    if not any(scorers):
        logger.info(f"note: no likeness: the photos that {name} learned from are not known; write --score PHOTOS")
    return ImageScorer(encoders, list(zip(subjects, scorers, strict=True)))


class GridScorer:
    """Score the cells of a grid, model by model. photos: as for `make_image_scorer`. found: by file."""

    def __init__(self, device: str, photos: Path | None = None) -> None:
        self._device = device
        self._photos = photos
        self._scorers: dict[tuple[str, tuple[LearnedSubject, ...]], ImageScorer] = {}
        self.found: dict[Path, ImageScore] = {}

    def __call__(self, ref: ModelRef, model: Model, paths: Sequence[Path]) -> list[float]:
        """Return how good each image is. ref: of the model; of a step of a run the run's."""
        key = (ref.name, model.subjects)
        if key not in self._scorers:
            self._scorers[key] = make_image_scorer(*key, self._device, self._photos)
        images = [Image.open(path).convert("RGB") for path in paths]
        scores = self._scorers[key](images, [read_recipe(path) for path in paths])
        self.found |= dict(zip(paths, scores, strict=True))
        return [score.value for score in scores]


def _scorer(encoders: Encoders, folder: Path) -> SubjectScorer:
    return SubjectScorer(encoders, [load_image(path) for path in list_images(str(folder))])


def _photo_folders(name: str, num_subjects: int) -> list[Path | None]:
    """Return where the photos of a run's subjects lie; None for those that are not there."""
    folder = model_folder(name)
    config = folder.parent / "config.yaml"
    if not config.is_file():
        return [None] * num_subjects
    paths = [Path(find_path(str(subject.images), folder)) for subject in load_config(config).subjects]
    found = [path if path.is_dir() else None for path in paths]
    return (found + [None] * num_subjects)[:num_subjects]


def ranked(scores: Iterable[ImageScore]) -> list[int]:
    """Return the numbers of images, the best first; of equal ones the earlier."""
    values = [score.value for score in scores]
    return sorted(range(len(values)), key=lambda number: -values[number])
