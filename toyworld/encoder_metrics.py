"""Measure whether the encoders order images correctly, on subjects that they never saw, crisp and softened.

Every image of a subject has three rivals in the same place: a near miss of it, another object of its class, and one
of another class. An encoder for identity should find them less and less similar to the subject's photos. Of the prompts
that differ in the place, or in the class, CLIP should find the true one the most similar.

Shapes: S subjects, P images of each, C classes, L places, B images, T texts, D embedding dimensions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dreambooth.metrics.encoders import ClipEncoder, load_clip, load_image_encoder
from toyworld.encoder_batches import noisy_round_trip
from toyworld.encoders import Lessons
from toyworld.latents import to_images, to_pixels
from toyworld.scenes import PHRASES, PLACES

PHOTO_PLACES = ("grass", "studio", "city", "snow", "forest")  # as of `toyworld subject`
UNSEEN_PLACES = ("beach", "desert", "night", "moon")
KINDS = ("same object", "near miss", "another of its class", "another class")  # from the most to the least similar
BATCH_SIZE = 100

Embed = Callable[[Sequence[Image.Image]], Tensor]  # B images to [B, D] of length 1
Soften = Callable[[Sequence[Image.Image]], list[Image.Image]]


def _batches(images: Sequence[Image.Image]) -> list[list[Image.Image]]:
    return [list(images[start : start + BATCH_SIZE]) for start in range(0, len(images), BATCH_SIZE)]


@dataclass(frozen=True)
class TestSet:
    """Hold P images of every kind for each of S subjects, and five photos of each subject."""

    classes: list[str]  # S
    places: list[str]  # P, the same for every subject and kind
    photos: list[Image.Image]  # S * 5
    images: dict[str, list[Image.Image]]  # by kind, S * P

    def softened(self, soften: Soften) -> TestSet:
        """Return the same set with all images but the photos softened."""
        return TestSet(self.classes, self.places, self.photos, {k: soften(v) for k, v in self.images.items()})


def build_test_set(lessons: Lessons, subjects_per_class: int, images_per_place: int) -> TestSet:
    """Return the images of the first `subjects_per_class` subjects of every class; the same on every call."""
    places = [place for place in UNSEEN_PLACES for _ in range(images_per_place)]
    test_set = TestSet([], places, [], {kind: [] for kind in KINDS})
    edition = lessons.edition
    for noun in edition.classes:
        for seed in range(subjects_per_class):
            spec, rng = edition.subject(noun, seed), random.Random(f"exam {noun} {seed}")
            test_set.classes.append(noun)
            test_set.photos.extend(edition.show(rng, spec, place) for place in PHOTO_PLACES)
            for place in places:
                for kind, shown in zip(KINDS, _subject_and_rivals(rng, spec, lessons), strict=True):
                    test_set.images[kind].append(edition.show(rng, shown, place))
    return test_set


def _subject_and_rivals(rng: random.Random, spec: Any, lessons: Lessons) -> tuple[Any, ...]:
    edition = lessons.edition
    miss = lessons.near_miss(rng, spec)
    while miss == spec:
        miss = lessons.near_miss(rng, spec)
    elsewhere = rng.choice([noun for noun in edition.classes if noun != spec.class_noun])
    return spec, miss, edition.random_spec(rng, spec.class_noun), edition.random_spec(rng, elsewhere)


def soften_with(vae: Any, seed: int = 0) -> Soften:
    """Return a function that softens images as training does: through the autoencoder, with noise on the latents."""

    def soften(images: Sequence[Image.Image]) -> list[Image.Image]:
        torch.manual_seed(seed)
        return [soft for batch in _batches(images) for soft in to_images(noisy_round_trip(vae, to_pixels(batch)))]

    return soften


def similarity_to_photos(embed: Embed, test_set: TestSet) -> dict[str, Tensor]:
    """Return, for each kind, every image's mean cosine similarity to its subject's photos, [S * P]."""
    num_subjects = len(test_set.classes)
    photos_SPD = embed(test_set.photos).unflatten(0, (num_subjects, -1))

    def of(images: Sequence[Image.Image]) -> Tensor:
        images_SPD = embed(images).unflatten(0, (num_subjects, -1))
        return torch.einsum("spd,sqd->spq", images_SPD, photos_SPD).mean(-1).flatten()

    return {kind: of(images) for kind, images in test_set.images.items()}


def prompt(class_noun: str, place: str) -> str:
    """Return the prompt that asks for this class in this place."""
    return f"a photo of a {class_noun} {PHRASES[place][0]}"


def text_match(clip: ClipEncoder, test_set: TestSet, classes: Sequence[str]) -> dict[str, Tensor]:
    """Return cosines of every image of the subjects, [S * P]: to its own prompt, and to the nearest of the wrong ones.

    Keys: own, wrong place (the class is right), wrong class (the place is right).
    """
    texts_CLD = clip.texts([prompt(noun, place) for noun in classes for place in PLACES])
    texts_CLD = texts_CLD.unflatten(0, (len(classes), len(PLACES)))
    images_BD = clip.images(test_set.images[KINDS[0]])
    cosine_BCL = torch.einsum("bd,cld->bcl", images_BD, texts_CLD)
    noun_B = torch.tensor([classes.index(noun) for noun in test_set.classes for _ in test_set.places])
    place_B = torch.tensor([PLACES.index(place) for _ in test_set.classes for place in test_set.places])
    row = torch.arange(len(images_BD))
    of_places_BL, of_classes_BC = cosine_BCL[row, noun_B], cosine_BCL[row, :, place_B]
    own = of_places_BL[row, place_B]
    of_places_BL[row, place_B] = of_classes_BC[row, noun_B] = -torch.inf
    return {"own": own, "wrong place": of_places_BL.amax(-1), "wrong class": of_classes_BC.amax(-1)}


@dataclass(frozen=True)
class Ordering:
    """Hold how often one cosine is greater than another, and the mean difference; crisp first, softened second."""

    name: str
    percents: tuple[float, float]
    margins: tuple[float, float]
    gates: tuple[float | None, float | None] = (None, None)  # percent

    def row(self) -> str:
        cells = [
            f"{percent:.1f} % ({margin:+.2f})" for percent, margin in zip(self.percents, self.margins, strict=True)
        ]
        gates = ", ".join("–" if gate is None else f"{gate:.0f} %" for gate in self.gates)
        return f"| {self.name} | {cells[0]} | {cells[1]} | {gates} |"


def _ordering(
    name: str, cosines: Sequence[dict[str, Tensor]], greater: str, less: str, *gates: float | None
) -> Ordering:
    margins = [crisp_or_soft[greater] - crisp_or_soft[less] for crisp_or_soft in cosines]
    percents = [100 * (margin > 0).float().mean().item() for margin in margins]
    means = [margin.mean().item() for margin in margins]
    return Ordering(name, (percents[0], percents[1]), (means[0], means[1]), (gates[0], gates[1]))


def measure(
    folder: Path, lessons: Lessons, vae: Any, subjects_per_class: int = 3, images_per_place: int = 2
) -> list[Ordering]:
    """Return all measurements of the model card, of the encoders in `folder`. `vae` softens.

    Raises ModelError if an encoder is missing.
    """
    vit_encoder, clip_encoder = load_image_encoder(str(folder / "vit")), load_clip(str(folder / "clip"))
    crisp = build_test_set(lessons, subjects_per_class, images_per_place)
    test_sets = (crisp, crisp.softened(soften_with(vae)))
    vit = [similarity_to_photos(vit_encoder.images, test_set) for test_set in test_sets]
    clip = [similarity_to_photos(clip_encoder.images, test_set) for test_set in test_sets]
    text = [text_match(clip_encoder, test_set, lessons.edition.classes) for test_set in test_sets]
    same, miss, instance, other = KINDS
    return [
        _ordering(f"ViT: {same} > {miss}", vit, same, miss, None, None),
        _ordering(f"ViT: {same} > {instance}", vit, same, instance, 97, None),
        _ordering(f"ViT: {instance} > {other}", vit, instance, other, 90, None),
        _ordering(f"CLIP-I: {same} > {miss}", clip, same, miss, None, None),
        _ordering(f"CLIP-I: {same} > {instance}", clip, same, instance, 85, None),
        _ordering(f"CLIP-I: {instance} > {other}", clip, instance, other, 85, None),
        _ordering("CLIP-T: right place > every other place", text, "own", "wrong place", 97, 90),
        _ordering("CLIP-T: right class > every other class", text, "own", "wrong class", 97, 90),
    ]


def table(orderings: Sequence[Ordering]) -> str:
    """Return the orderings as a Markdown table."""
    head = ["| how often (mean difference of cosines) | crisp | softened | at least |", "|---|---|---|---|"]
    return "\n".join(head + [ordering.row() for ordering in orderings])
