"""Scores of images on the disk: one number per image and measure.

The paper measures DIV among the images of one prompt *with the subject* (section 4.3): `div`. What the validation of
a run calls div, among the images of the class prompt, is `class_div` here: it shows whether the class has collapsed.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from PIL.Image import Image

from dreambooth.data.image_files import load_image
from dreambooth.evaluation.protocol import ImageSpec
from dreambooth.evaluation.subjects import Subject
from dreambooth.metrics.scores import self_similarity, similarity
from dreambooth.metrics.subject import Encoders, SubjectScorer

MEASURES = ("dino", "clip_i", "clip_t", "div", "pres", "class_div", "drift")  # the order of tables


def ordered(measures: Iterable[str]) -> list[str]:
    """Return the usual measures, whether they were taken or not, and after them the others, each once."""
    return list(dict.fromkeys((*MEASURES, *measures)))


@dataclass(frozen=True)
class Scored:
    """Hold an image and its score by each measure that applies to it."""

    image: ImageSpec
    scores: dict[str, float]


def score_subject(
    encoders: Encoders, subject: Subject, class_noun: str, images: Sequence[ImageSpec], base: Mapping[int, Path]
) -> Iterator[Scored]:
    """Yield the scores of one subject's images, of any number of models; `images` are ordered by prompt.

    base: the untouched base's image of the class prompt, by seed; empty: no drift.
    """
    scorer = SubjectScorer(encoders, [load_image(path) for path in subject.photos], class_noun)
    for _, group in itertools.groupby(images, key=lambda image: image.path.parent):
        of_prompt = list(group)
        generated = [load_image(image.path) for image in of_prompt]
        if of_prompt[0].is_class:
            untouched = [load_image(base[image.seed]) for image in of_prompt] if base else None
            found = _of_class(scorer, generated, untouched)
        else:
            found = _of_subject(scorer, generated, [image.text for image in of_prompt])
        for number, image in enumerate(of_prompt):
            yield Scored(image, {name: numbers[number] for name, numbers in found.items()})


def _of_subject(scorer: SubjectScorer, generated: Sequence[Image], texts: Sequence[str]) -> dict[str, list[float]]:
    found = scorer.subject(generated, texts)
    found |= {"div": scorer.among(generated)} if len(generated) > 1 else {}
    return found | scorer.read(generated, texts[0])


def _of_class(
    scorer: SubjectScorer, generated: Sequence[Image], base: Sequence[Image] | None
) -> dict[str, list[float]]:
    found = scorer.of_class(generated, base)
    return {"class_div" if name == "div" else name: numbers for name, numbers in found.items()}


def real_scores(encoders: Encoders, subject: Subject, class_noun: str) -> dict[str, float]:
    """Return scores of the subject's own photos: DINO and CLIP-I among several, and the answers to questions."""
    photos = [load_image(path) for path in subject.photos]
    named = {"dino": encoders.dino, "clip_i": encoders.clip} if len(photos) > 1 else {}
    found = {name: self_similarity(encoder.images(photos)) for name, encoder in named.items() if encoder is not None}
    if encoders.reader is not None:
        found |= {name: fmean(numbers) for name, numbers in encoders.reader.of_photos(photos, class_noun).items()}
    return found


def ignored_clip_t(encoders: Encoders, base: Sequence[ImageSpec], images: Sequence[ImageSpec]) -> float | None:
    """Return CLIP-T of the base's class images under the prompts of `images`: the score of a model that ignores them.

    None without a CLIP or without class images.
    """
    of_class = [load_image(image.path) for image in base if image.is_class]
    texts = list(dict.fromkeys(image.text for image in images if not image.is_class))
    if encoders.clip is None or not of_class or not texts:
        return None
    return float(similarity(encoders.clip.images(of_class), encoders.clip.texts(texts)).mean())
