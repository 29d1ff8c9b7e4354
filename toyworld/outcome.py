"""Measure a DreamBooth result by the renderer's truth: subject fidelity, the prompt's scene, and the class prompt.

The subject is sampled in places that its training images do not show, and compared by the judge's identity embedding
with unseen renderings of the subject and with other objects of its class.
Shapes: B images, D embedding dimensions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from dreambooth.data.images import to_images
from dreambooth.generation.models.loading import Model
from dreambooth.generation.sampler import sample_pixels
from dreambooth.generation.settings import SamplerSettings
from toyworld import world
from toyworld.editions import SECOND, Edition, edition_of
from toyworld.judge import Judge as FirstJudge
from toyworld.scenes import PHRASES
from toyworld.second.judge import Judge as SecondJudge

UNSEEN_PLACES = ("beach", "desert", "night", "moon")
NUM_REFERENCES = 36  # renderings of the subject, and as many other objects of its class
NUM_STEPS = 20
GUIDANCE = 4.0  # where none is 1; each family counts in its own way


class Verdict(Protocol):
    """Answer questions about B images, as a judge of any edition does."""

    def embedding(self, class_noun: str) -> Tensor:
        """Return the identity of the thing of that class in each image, [B, D] of length 1."""

    def accuracy(self, question: str, expected: Sequence[str], class_noun: str) -> float:
        """Return the fraction of images of which the answer is the expected one, for the thing of that class."""


class Judge(Protocol):
    """A judge of any edition."""

    def __call__(self, images: Sequence[Image.Image]) -> Verdict: ...


def load_judge(folder: Path) -> Judge:
    """Load the judge of a base, of whichever edition. Raises UserError where there is none."""
    return SecondJudge.load(folder) if edition_of(folder) is SECOND else FirstJudge.load(folder)


@dataclass(frozen=True)
class Outcome:
    """Hold the metrics of a model: fractions of images, and similarities as mean cosines of identity embeddings."""

    subject_similarity: float  # subject prompt's images to unseen renderings of the subject
    other_similarity: float  # the same images to other objects of the class
    nearer_to_subject: float  # fraction nearer to the subject than to every single other object, on average over views
    place_right: float  # fraction showing the place that the prompt names
    class_right: float  # fraction of the subject prompt's images that show the class
    main_right: float  # ... the subject's main colour
    second_right: float  # ... its second colour
    pattern_right: float  # ... its pattern
    class_prompt_similarity: float  # class prompt's images to the subject: what leaked (low is good)
    class_prompt_diversity: float  # mean pairwise distance among the class prompt's images (high is good)

    def rows(self) -> list[tuple[str, float]]:
        """Return text and value of each metric, in the order of a table."""
        return [
            ("images of the subject: similarity to unseen renderings of it", self.subject_similarity),
            ("images of the subject: similarity to others of its class", self.other_similarity),
            ("images of the subject: fraction nearer to it than to any other", self.nearer_to_subject),
            ("images of the subject: fraction in the right (unseen) place", self.place_right),
            ("images of the subject: fraction of the right class", self.class_right),
            ("images of the subject: fraction with its main colour", self.main_right),
            ("images of the subject: fraction with its second colour", self.second_right),
            ("images of the subject: fraction with its pattern", self.pattern_right),
            ("class prompt: similarity to the subject", self.class_prompt_similarity),
            ("class prompt: diversity", self.class_prompt_diversity),
        ]


def references(spec: Any, edition: Edition) -> tuple[list[Image.Image], list[Image.Image]]:
    """Return renderings of the subject in the unseen places, and images of other objects of its class, one each."""
    rng = random.Random(f"references of {spec}")
    own = [edition.show(rng, spec, UNSEEN_PLACES[i % 4]) for i in range(NUM_REFERENCES)]
    others = [edition.random_spec(rng, spec.class_noun) for _ in range(NUM_REFERENCES)]
    return own, [edition.show(rng, other, None) for other in others]


def draw(
    model: Model, prompt: str, num_images: int, seed: int = 1000, settings: SamplerSettings | None = None
) -> list[Image.Image]:
    """Sample one prompt at the model's own resolution, from seeds that validation does not use.

    settings: in place of 20 steps at guidance 4.
    """
    settings = settings or SamplerSettings(NUM_STEPS, model.family.guidance.none + GUIDANCE - 1)
    size = (model.resolution, model.resolution)
    prompts, seeds = [model.fill(prompt)] * num_images, range(seed, seed + num_images)
    return [
        image
        for pixels_BCHW in sample_pixels(model.family, prompts, seeds, size, settings, batch_size=8)
        for image in to_images(pixels_BCHW)
    ]


def draw_subject(model: Model, num_images: int, number: int = 1) -> list[list[Image.Image]]:
    """Sample the model's subject of this number in each of the unseen places, `num_images` a place."""
    template = f"a photo of {{subject_{number}}}"
    return [draw(model, f"{template} {PHRASES[place][0]}", num_images) for place in UNSEEN_PLACES]


def number_of(model: Model, class_noun: str) -> int:
    """Return the number of the model's subject that is of this class; 1, the first, if none is."""
    nouns = [subject.class_noun for subject in model.card.subjects] if model.card is not None else []
    return nouns.index(class_noun) + 1 if class_noun in nouns else 1


def poster(photos: list[Image.Image], model: Model, number: int = 1) -> Image.Image:
    """Return a grid: the subject's photos, samples of it in a column for each unseen place, and the class prompt.

    number: of the model's subject.
    """
    rows = [*zip(*draw_subject(model, 3, number), strict=True)]
    last = draw(model, f"a photo of a {{class_{number}}}", 3)
    blank = Image.new("RGB", (world.SIZE, world.SIZE), "white")
    top = (photos + [blank] * 5)[:5]
    return world.contact_sheet(
        [*top, *(image for row, own in zip(rows, last, strict=True) for image in (*row, own))], 5
    )


def measure(model: Model, spec: Any, judge: Judge, edition: Edition, num_images: int = 24) -> Outcome:
    """Sample and judge `num_images` images of the subject over the unseen places, and as many of the class prompt."""
    number = number_of(model, spec.class_noun)
    rows = draw_subject(model, num_images // len(UNSEEN_PLACES), number)
    class_images = draw(model, f"a photo of a {{class_{number}}}", num_images)
    return judged([image for row in rows for image in row], class_images, spec, judge, edition)


def places_of(num_images: int) -> list[str]:
    """Return the place of each of `num_images` images in the order of `draw_subject`."""
    return [place for place in UNSEEN_PLACES for _ in range(num_images // len(UNSEEN_PLACES))]


def judged(
    images: list[Image.Image], class_images: list[Image.Image], spec: Any, judge: Judge, edition: Edition
) -> Outcome:
    """Judge images of the subject, in the order of `draw_subject`, and those of the class prompt."""
    noun = spec.class_noun
    subject, places = judge(images), places_of(len(images))
    class_BD = judge(class_images).embedding(noun)
    own_BD, others_BD = (judge(renderings).embedding(noun) for renderings in references(spec, edition))
    to_own, to_others = subject.embedding(noun) @ own_BD.T, subject.embedding(noun) @ others_BD.T

    def right(question: str, answers: list[str]) -> float:
        return subject.accuracy(question, answers, noun)

    return Outcome(
        subject_similarity=float(to_own.mean()),
        other_similarity=float(to_others.mean()),
        nearer_to_subject=float((to_own.mean(1) > to_others.max(1).values).float().mean()),
        place_right=right("place", places),
        class_right=right("class_noun", [noun] * len(places)),
        main_right=right("main", [spec.main] * len(places)),
        second_right=right("second", [spec.second] * len(places)),
        pattern_right=right("pattern", [spec.pattern] * len(places)),
        class_prompt_similarity=float((class_BD @ own_BD.T).mean()),
        class_prompt_diversity=mean_distance(class_BD),
    )


def mean_distance(embedding_BD: Tensor) -> float:
    """Return 1 - mean cosine over all pairs of different images: 0 where all show the same object."""
    num_images = len(embedding_BD)
    cosines = (embedding_BD @ embedding_BD.T)[~torch.eye(num_images, dtype=torch.bool)]
    return float(1 - cosines.mean())


def table(columns: dict[str, Outcome]) -> str:
    """Return a Markdown table with one column for each outcome."""
    lines = ["| measured by the renderer's truth | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for number, (name, _) in enumerate(next(iter(columns.values())).rows()):
        lines.append(f"| {name} | " + " | ".join(f"{o.rows()[number][1]:.2f}" for o in columns.values()) + " |")
    return "\n".join(lines)
