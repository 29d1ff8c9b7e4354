"""Do the metric encoders order what they must? Figures on subjects that they never saw, crisp and softened.

Every picture of a subject has three rivals in the same place: a near miss of it, another object of its class, and one
of another class. An encoder for identity should find them less and less like the subject's photos. Of the prompts that
differ in the place, or in the class, CLIP should find the true one the likest.

Shapes: S subjects, P pictures of each, C classes, L places, B pictures, T texts, D embedding dimensions.
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
from toyworld import world
from toyworld.encoder_batches import redrawn
from toyworld.judge import near_miss
from toyworld.latents import to_pictures, to_pixels
from toyworld.scenes import PHRASES

PHOTO_PLACES = ("grass", "studio", "city", "snow", "forest")  # as of `toyworld subject`
UNSEEN_PLACES = ("beach", "desert", "night", "moon")
KINDS = ("same object", "near miss", "another of its class", "another class")  # from likest to unlikest
BATCH_SIZE = 100

Embed = Callable[[Sequence[Image.Image]], Tensor]  # B pictures to [B, D] of length 1
Redraw = Callable[[Sequence[Image.Image]], list[Image.Image]]


def _in_parts(pictures: Sequence[Image.Image]) -> list[list[Image.Image]]:
    return [list(pictures[start : start + BATCH_SIZE]) for start in range(0, len(pictures), BATCH_SIZE)]


@dataclass(frozen=True)
class Exam:
    """Pictures of S subjects, P each, of every kind; and five photos of each subject."""

    classes: list[str]  # S
    places: list[str]  # P, the same for every subject and kind
    photos: list[Image.Image]  # S * 5
    pictures: dict[str, list[Image.Image]]  # by kind, S * P

    def softened(self, redraw: Redraw) -> Exam:
        """The same exam with all but the photos redrawn."""
        return Exam(self.classes, self.places, self.photos, {k: redraw(v) for k, v in self.pictures.items()})


def make_exam(subjects_per_class: int, pictures_per_place: int) -> Exam:
    """The same on every call; the first subjects of every class."""
    places = [place for place in UNSEEN_PLACES for _ in range(pictures_per_place)]
    exam = Exam([], places, [], {kind: [] for kind in KINDS})
    for noun in world.CLASSES:
        for seed in range(subjects_per_class):
            spec, rng = world.subject(noun, seed), random.Random(f"exam {noun} {seed}")
            exam.classes.append(noun)
            exam.photos.extend(world.render(spec, world.random_scene(rng, place)) for place in PHOTO_PLACES)
            for place in places:
                for kind, shown in zip(KINDS, _subject_and_rivals(rng, spec), strict=True):
                    exam.pictures[kind].append(world.render(shown, world.random_scene(rng, place)))
    return exam


def _subject_and_rivals(rng: random.Random, spec: world.Spec) -> tuple[world.Spec, ...]:
    miss = near_miss(rng, spec)
    while miss == spec:
        miss = near_miss(rng, spec)
    elsewhere = rng.choice([noun for noun in world.CLASSES if noun != spec.class_noun])
    return spec, miss, world.random_spec(rng, spec.class_noun), world.random_spec(rng, elsewhere)


def redraw_with(vae: Any, seed: int = 0) -> Redraw:
    """Softens pictures as training does: through the autoencoder, the latents a little off."""

    def redraw(pictures: Sequence[Image.Image]) -> list[Image.Image]:
        torch.manual_seed(seed)
        return [soft for part in _in_parts(pictures) for soft in to_pictures(redrawn(vae, to_pixels(part)))]

    return redraw


def likeness(embed: Embed, exam: Exam) -> dict[str, Tensor]:
    """By kind, the mean cosine of every picture to its subject's photos, [S * P]."""
    num_subjects = len(exam.classes)
    photos_SPD = embed(exam.photos).unflatten(0, (num_subjects, -1))

    def of(pictures: Sequence[Image.Image]) -> Tensor:
        pictures_SPD = embed(pictures).unflatten(0, (num_subjects, -1))
        return torch.einsum("spd,sqd->spq", pictures_SPD, photos_SPD).mean(-1).flatten()

    return {kind: of(pictures) for kind, pictures in exam.pictures.items()}


def prompt(class_noun: str, place: str) -> str:
    """Hold the prompts that images are asked for with."""
    return f"a photo of a {class_noun} {PHRASES[place][0]}"


def text_match(clip: ClipEncoder, exam: Exam) -> dict[str, Tensor]:
    """Cosines of every picture of the subjects, [S * P]: to its own prompt, and the likest of the wrong ones.

    Keys: own, wrong place (the class is right), wrong class (the place is right).
    """
    texts_CLD = clip.texts([prompt(noun, place) for noun in world.CLASSES for place in world.PLACES])
    texts_CLD = texts_CLD.unflatten(0, (len(world.CLASSES), len(world.PLACES)))
    images_BD = clip.images(exam.pictures[KINDS[0]])
    cosine_BCL = torch.einsum("bd,cld->bcl", images_BD, texts_CLD)
    noun_B = torch.tensor([world.CLASSES.index(noun) for noun in exam.classes for _ in exam.places])
    place_B = torch.tensor([world.PLACES.index(place) for _ in exam.classes for place in exam.places])
    row = torch.arange(len(images_BD))
    of_places_BL, of_classes_BC = cosine_BCL[row, noun_B], cosine_BCL[row, :, place_B]
    own = of_places_BL[row, place_B]
    of_places_BL[row, place_B] = of_classes_BC[row, noun_B] = -torch.inf
    return {"own": own, "wrong place": of_places_BL.amax(-1), "wrong class": of_classes_BC.amax(-1)}


@dataclass(frozen=True)
class Ordering:
    """How often one cosine is greater than another, and by how much on average; crisp first, softened second."""

    name: str
    shares: tuple[float, float]  # percent
    margins: tuple[float, float]
    gates: tuple[float | None, float | None] = (None, None)  # percent

    def row(self) -> str:
        cells = [f"{share:.1f} % ({margin:+.2f})" for share, margin in zip(self.shares, self.margins, strict=True)]
        gates = ", ".join("–" if gate is None else f"{gate:.0f} %" for gate in self.gates)
        return f"| {self.name} | {cells[0]} | {cells[1]} | {gates} |"


def _ordering(
    name: str, cosines: Sequence[dict[str, Tensor]], greater: str, less: str, *gates: float | None
) -> Ordering:
    margins = [crisp_or_soft[greater] - crisp_or_soft[less] for crisp_or_soft in cosines]
    shares = [100 * (margin > 0).float().mean().item() for margin in margins]
    means = [margin.mean().item() for margin in margins]
    return Ordering(name, (shares[0], shares[1]), (means[0], means[1]), (gates[0], gates[1]))


def measure(folder: Path, vae: Any, subjects_per_class: int = 3, pictures_per_place: int = 2) -> list[Ordering]:
    """All figures of the model card, of the encoders in `folder`. `vae` softens.

    Raises ModelError if an encoder is missing.
    """
    vit_encoder, clip_encoder = load_image_encoder(str(folder / "vit")), load_clip(str(folder / "clip"))
    crisp = make_exam(subjects_per_class, pictures_per_place)
    exams = (crisp, crisp.softened(redraw_with(vae)))
    vit = [likeness(vit_encoder.images, exam) for exam in exams]
    clip = [likeness(clip_encoder.images, exam) for exam in exams]
    text = [text_match(clip_encoder, exam) for exam in exams]
    same, miss, instance, other = KINDS
    return [
        _ordering(f"ViT: {same} > {miss}", vit, same, miss, None, None),
        _ordering(f"ViT: {same} > {instance}", vit, same, instance, 97, None),
        _ordering(f"ViT: {instance} > {other}", vit, instance, other, 90, None),
        _ordering(f"CLIP-I: {same} > {miss}", clip, same, miss, None, None),
        _ordering(f"CLIP-I: {same} > {instance}", clip, same, instance, 85, None),
        _ordering(f"CLIP-I: {instance} > {other}", clip, instance, other, 85, None),
        _ordering("CLIP-T: right place > each of eight others", text, "own", "wrong place", 97, 90),
        _ordering("CLIP-T: right class > each of nine others", text, "own", "wrong class", 97, 90),
    ]


def table(orderings: Sequence[Ordering]) -> str:
    """Markdown."""
    head = ["| how often (mean difference of cosines) | crisp | softened | at least |", "|---|---|---|---|"]
    return "\n".join(head + [ordering.row() for ordering in orderings])
