"""From pictures on the disk to one number per picture and measure.

The paper measures DIV among the pictures of one prompt *with the subject* (section 4.3): `div`. What the validation of
a run calls div, among the pictures of the class prompt, is `class_div` here: it tells whether the class has collapsed.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from dreambooth.data.images import load_image
from dreambooth.evaluation.protocol import Shot
from dreambooth.evaluation.subjects import Subject
from dreambooth.metrics.scores import self_similarity
from dreambooth.metrics.subject import Encoders, SubjectScorer

MEASURES = ("dino", "clip_i", "clip_t", "div", "pres", "class_div", "drift")  # the order of tables


@dataclass(frozen=True)
class Scored:
    """A picture and its number for each measure that applies to it."""

    shot: Shot
    scores: dict[str, float]


def score_subject(
    encoders: Encoders, subject: Subject, shots: Sequence[Shot], base: Mapping[int, Path]
) -> Iterator[Scored]:
    """Yield the scores of one subject's pictures, which lie in `shots` prompt by prompt, of any number of models.

    base: the untouched base's picture of the class prompt, by seed; empty: no drift.
    """
    scorer = SubjectScorer(encoders, [load_image(path) for path in subject.photos])
    for _, group in itertools.groupby(shots, key=lambda shot: shot.path.parent):
        of_prompt = list(group)
        pictures = [load_image(shot.path) for shot in of_prompt]
        if of_prompt[0].is_class:
            found = _of_class(scorer, pictures, [load_image(base[shot.seed]) for shot in of_prompt] if base else None)
        else:
            found = _of_subject(scorer, pictures, [shot.text for shot in of_prompt])
        for number, shot in enumerate(of_prompt):
            yield Scored(shot, {name: numbers[number] for name, numbers in found.items()})


def _of_subject(scorer: SubjectScorer, pictures: Sequence[Image], texts: Sequence[str]) -> dict[str, list[float]]:
    found = scorer.subject(pictures, texts)
    among = scorer.of_class(pictures)  # distances within a prompt do not care whose pictures they are
    return {**found, "div": among["div"]} if "div" in among else found


def _of_class(scorer: SubjectScorer, pictures: Sequence[Image], base: Sequence[Image] | None) -> dict[str, list[float]]:
    found = scorer.of_class(pictures, base)
    return {"class_div" if name == "div" else name: numbers for name, numbers in found.items()}


def real_scores(encoders: Encoders, subject: Subject) -> dict[str, float]:
    """DINO and CLIP-I among the subject's own photos; empty where there is but one."""
    if len(subject.photos) < 2:
        return {}
    photos = [load_image(path) for path in subject.photos]
    named = {"dino": encoders.dino, "clip_i": encoders.clip}
    return {name: self_similarity(encoder.images(photos)) for name, encoder in named.items() if encoder is not None}
