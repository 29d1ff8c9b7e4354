"""Trains the second edition's base to show the details that a caption names: which head, how many eyes, what is worn.

A detail changes few pixels, so a caption without it predicts nearly as well, and images often miss it. Guidance away
from the caption without its details mends that, as guidance away from no caption does for the whole (Ho and Salimans
2022, arXiv 2207.12598; a negative prompt is the same), but costs a third forward pass of each step. So the base is
trained to predict for a caption what it predicted with that guidance, as in guidance distillation (Meng et al. 2023,
arXiv 2210.03142). What it predicts for captions without details stays.

Shapes: B pictures, C latent channels, h/w latent height and width, L tokens.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

import torch
from torch import Tensor

from toyworld.captions import PLURAL_PATTERN, with_articles
from toyworld.latents import LinearCodec
from toyworld.second import picture
from toyworld.second.captions import caption
from toyworld.second.encoding import encode_captions, encode_pictures
from toyworld.second.later import LaterStage, LaterTask
from toyworld.second.look import WORN
from toyworld.second.picture import Picture
from toyworld.second.things import CLASSES

GUIDANCE = 1.0  # how far a prediction moves on, away from that without details; classifier-free guidance multiplies it
TIMESTEP_SHIFT, TIMESTEP_SPREAD = 0.6, 1.4  # t / 1000 = sigmoid(spread * normal + shift): all, high ones more often
LOSS_FACTOR = 10.0  # counts only where gradients are clipped: the optimizers take losses of any scale alike
P_DETAILED = 5 / 6  # of a batch; the others have no details, and half of those no caption
P_TWO_THINGS = 0.15
P_PLAIN = 0.3  # of a picture without patterns: that a caption which names no detail is kept
CLASS_WEIGHTS = {"dog": 4.0, "cat": 3.0, "fish": 4.0, "robot": 3.0}  # of one thing; others: .8
# Each detail as it stands in a caption. A head may be named alone or with eyes.
DETAILS = [
    r" with a \w+ head(?: and \w+ eyes?)?",
    r" with \w+ eyes?",
    rf" with \w+ (?:{'|'.join(PLURAL_PATTERN.values())})\b",
    rf" wearing a (?:\w+ )?(?:{'|'.join(WORN[1:])})\b",
    r" facing (?:left|right)",
    rf"\b(?:{'|'.join(PLURAL_PATTERN)}) ",
]


class Batch(NamedTuple):
    """Hold what one step of one process trains on."""

    latents_BChw: Tensor
    weights_B1hw: Tensor  # of the error, mean 1 in each picture
    tokens_BL: Tensor
    plain_BL: Tensor  # of the captions without their details


def without_details(text: str) -> str:
    """Return a caption without what it names beside class, colours, place and relation."""
    text = re.sub(r"\ban\b", "a", text)
    for detail in DETAILS:
        text = re.sub(detail, "", text)
    return with_articles(text)


def draw_detailed(rng: random.Random) -> tuple[Picture, str]:
    """Return a picture of one or two things and a caption, which names a detail; of some without a pattern none."""
    weights = [CLASS_WEIGHTS.get(each, 0.8) for each in CLASSES]
    two = rng.random() < P_TWO_THINGS
    shown = _picture(rng, picture.random_classes(rng, 2) if two else rng.choices(CLASSES, weights))
    is_plain = all(thing.spec.pattern not in PLURAL_PATTERN for thing in shown.things)
    while True:
        text = caption(rng, shown)
        if without_details(text) != text or (is_plain and rng.random() < P_PLAIN):
            return shown, text


def draw_plain(rng: random.Random) -> tuple[Picture, str]:
    """Return a picture of one to three things and a caption without details, or none."""
    shown = _picture(rng, picture.random_classes(rng, rng.choice((1, 1, 1, 2, 3))))
    return shown, "" if rng.random() < 0.5 else without_details(caption(rng, shown))


def _picture(rng: random.Random, nouns: list[str]) -> Picture:
    specs = [picture.trained_spec(rng, noun) for noun in nouns]
    return picture.random_picture(rng, specs, picture.possible_relation(rng, specs))


def make_batch(codec: LinearCodec, size: int, rank: int, world_size: int, step: int) -> Batch:
    """Return the batch of a step and process; it follows from these alone."""
    rng = random.Random(f"details {step * world_size + rank}")
    number = round(P_DETAILED * size)
    pictures, texts = zip(*(draw_detailed(rng) if i < number else draw_plain(rng) for i in range(size)), strict=True)
    plain_BL = encode_captions([without_details(text) for text in texts])
    return Batch(*encode_pictures(codec, pictures), encode_captions(texts), plain_BL)


class DetailsTask(LaterTask):
    """Compute how far the model is from its reference with guidance."""

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return LOSS_FACTOR times the mean squared distance, weighted up where the thing is."""
        noise = torch.randn(batch.latents_BChw.shape, generator=generator)
        t_over_T = torch.sigmoid(TIMESTEP_SPREAD * torch.randn(len(noise), generator=generator) + TIMESTEP_SHIFT)
        noisy, t_B, _ = self.noised(batch.latents_BChw, t_over_T, noise)
        distance = self.predict(noisy, t_B, batch.tokens_BL).float() - self.guided(noisy, t_B, batch)
        return LOSS_FACTOR * (distance**2 * batch.weights_B1hw).mean()

    @torch.no_grad()
    def guided(self, noisy_BChw: Tensor, t_B: Tensor, batch: Batch) -> Tensor:
        """Return what the reference predicts, moved on by GUIDANCE away from what it predicts without the details."""
        predicted = self.predict_reference(noisy_BChw, t_B, batch.tokens_BL).float()
        has_B = (batch.tokens_BL != batch.plain_BL).any(1)
        if not has_B.any():
            return predicted
        plain = self.predict_reference(noisy_BChw[has_B], t_B[has_B], batch.plain_BL[has_B]).float()
        moved = predicted.clone()
        moved[has_B] += GUIDANCE * (predicted[has_B] - plain)
        return moved


STAGE = LaterStage(
    "details",
    make_batch,
    DetailsTask,
    {"peak_lr": 1e-4, "muon_lr": 1e-3, "muon_prefix": "unet.", "decay_fraction": 0.8, "ema_decay": 0.98},
)
