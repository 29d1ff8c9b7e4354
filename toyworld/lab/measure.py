"""Measure the images of one trial: by encoders as in the paper, and by the judge, which was trained on the truth.

Shapes: B images, N photos, D embedding dimensions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL.Image import Image
from torch import Tensor

from dreambooth.metrics import scores
from dreambooth.metrics.encoders import ImageEncoder
from dreambooth.metrics.subject import Encoders, SubjectScorer, load_encoders
from toyworld.editions import Edition, edition_of
from toyworld.lab.metrics import fraction_of_range
from toyworld.outcome import UNSEEN_PLACES, Judge, judged, load_judge, mean_distance, places_of
from toyworld.scenes import PHRASES

NUM_ANCHORS = 120  # renderings of the subject, and of as many others of its class: ± 0.03 on a range of 1


@dataclass(frozen=True)
class Tools:
    """Hold the networks that images are measured with, and the edition of the world that they know."""

    encoders: Encoders
    judge: Judge
    edition: Edition


def load_tools(encoders: Path, judge: Path) -> Tools:
    """Load the encoders and the judge. Raises ModelError or UserError where one of them is missing."""
    return Tools(load_encoders(str(encoders / "vit"), str(encoders / "clip")), load_judge(judge), edition_of(judge))


@dataclass(frozen=True)
class Samples:
    """Hold what one model draws, and the untouched base for the same class prompt and seeds."""

    subject: Sequence[Image]  # over the unseen places, in the order of `outcome.draw_subject`
    of_class: Sequence[Image]
    base: Sequence[Image]


@cache
def renderings(edition: Edition, spec: Any) -> list[Image]:
    """Return renderings of the subject itself in the unseen places: what a perfect model would draw."""
    rng = random.Random(f"renderings of {spec}")
    return [edition.show(rng, spec, UNSEEN_PLACES[i % 4]) for i in range(NUM_ANCHORS)]


@cache
def others(edition: Edition, spec: Any) -> list[Image]:
    """Return as many other objects of its class in the unseen places: what a model draws that learned nothing."""
    rng = random.Random(f"others than {spec}")
    specs = [edition.random_spec(rng, spec.class_noun) for _ in range(NUM_ANCHORS)]
    return [edition.show(rng, other, UNSEEN_PLACES[i % 4]) for i, other in enumerate(specs)]


@cache
def anchors(encoder: ImageEncoder, edition: Edition, spec: Any) -> tuple[Tensor, Tensor]:
    """Return the embeddings of others of its class and of the subject itself, [NUM_ANCHORS, D] each; made once."""
    return encoder.images(others(edition, spec)), encoder.images(renderings(edition, spec))


def measure(tools: Tools, spec: Any, photos: Sequence[Image], images: Samples) -> dict[str, float]:
    """Return all of `metrics.METRICS` that images tell; similarity is measured to the subject's photos."""
    return {**_by_encoders(tools, spec, photos, images), **_by_judge(tools, spec, images)}


def _by_encoders(tools: Tools, spec: Any, photos: Sequence[Image], images: Samples) -> dict[str, float]:
    encoders = tools.encoders
    scorer = SubjectScorer(encoders, photos)
    texts = [f"a photo of a {spec.class_noun} {PHRASES[place][0]}" for place in places_of(len(images.subject))]
    found = {**scorer.subject(images.subject, texts), **scorer.of_class(images.of_class, images.base)}
    means = {name: fmean(numbers) for name, numbers in found.items()}
    base = {name: fmean(numbers) for name, numbers in scorer.of_class(images.base).items()}
    photos_ND = encoders.main.images(photos)
    other, real = (
        float(scores.similarity(anchors_BD, photos_ND).mean())
        for anchors_BD in anchors(encoders.main, tools.edition, spec)
    )
    return {
        **means,
        "base_pres": base["pres"],
        "base_div": base["div"],
        "other": other,
        "real": real,
        "fidelity_way": fraction_of_range(means["dino"], other, real),
        "pres_way": fraction_of_range(means["pres"], other, real),
        "base_pres_way": fraction_of_range(base["pres"], other, real),
        "leak_way": fraction_of_range(means["pres"], base["pres"], real),
        "div_share": means["div"] / base["div"],
    }


def _by_judge(tools: Tools, spec: Any, images: Samples) -> dict[str, float]:
    outcome = judged(list(images.subject), list(images.of_class), spec, tools.judge, tools.edition)
    return {
        "place_right": outcome.place_right,
        "class_right": outcome.class_right,
        "main_right": outcome.main_right,
        "second_right": outcome.second_right,
        "pattern_right": outcome.pattern_right,
        "true_similarity": outcome.subject_similarity,
        "true_other_similarity": outcome.other_similarity,
        "nearer_to_subject": outcome.nearer_to_subject,
        "true_leak": outcome.class_prompt_similarity,
        "true_diversity": outcome.class_prompt_diversity,
        "true_base_diversity": mean_distance(tools.judge(images.base).embedding(spec.class_noun)),
    }
