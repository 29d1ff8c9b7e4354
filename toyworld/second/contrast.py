"""Trains the second edition's base to heed its captions: against captions with one false word.

After the base's own training a small word (which head, how many eyes, which side) is often not heeded, as it changes
few pixels. Condition contrastive alignment (Chen et al. 2024, arXiv 2410.09347) trains for the difference that the word
makes: the true caption has to predict better than before, the false one worse.

Shapes: B pictures, C latent channels, h/w latent height and width, L tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from toyworld import world
from toyworld.base import CaptionedUNet
from toyworld.captions import PLURAL_PATTERN
from toyworld.latents import LinearCodec
from toyworld.second import picture
from toyworld.second.captions import caption
from toyworld.second.encoding import encode_captions, encode_pictures
from toyworld.second.later import LaterStage, LaterTask
from toyworld.second.look import HEADS, NUM_EYES, WORN
from toyworld.second.picture import Picture, Thing
from toyworld.second.things import CLASSES

BETA = 300.0  # the factor on the errors' differences
TIMESTEP_SHIFT = 0.3  # t / 1000 = sigmoid(normal + shift): small words count from mid-noise on up
P_TWO_THINGS = 0.2
# Classes by how often they are drawn: dogs are what the base misses most.
CLASS_WEIGHTS = {"dog": 6.0, "cat": 3.0, "robot": 3.0, "fish": 3.0}  # others: 1
# What the false word is about, by how often it is tried; where the caption does not tell it, another is.
FIELDS: dict[str, tuple[float, tuple[Any, ...]]] = {
    "head": (6.0, HEADS),
    "num_eyes": (4.0, NUM_EYES),
    "facing": (4.0, ("left", "right")),
    "pattern": (2.0, tuple(PLURAL_PATTERN)),
    "worn": (2.0, WORN[1:]),
    "main": (1.0, tuple(world.COLOUR_NAMES)),
}


@dataclass(frozen=True)
class CaptionPair:
    """Hold a picture, a caption that is true of it, and the same with one false word."""

    picture: Picture
    true: str
    false: str


class Batch(NamedTuple):
    """Hold what one step of one process trains on."""

    latents_BChw: Tensor
    weights_B1hw: Tensor  # of the error, mean 1 in each picture
    true_BL: Tensor
    false_BL: Tensor


def draw_pair(rng: random.Random) -> CaptionPair:
    """Return a picture of one or two things with both captions, neither of which tells of a held-out thing."""
    number = 2 if rng.random() < P_TWO_THINGS else 1
    weights = [CLASS_WEIGHTS.get(each, 1.0) for each in CLASSES]
    nouns = rng.choices(CLASSES, weights) if number == 1 else picture.random_classes(rng, number)
    specs = [picture.trained_spec(rng, each) for each in nouns]
    shown = picture.random_picture(rng, specs, picture.possible_relation(rng, specs))
    while True:
        (field,) = rng.choices(list(FIELDS), [weight for weight, _ in FIELDS.values()])
        changed = with_false(rng, shown, rng.randrange(number), field)
        words = rng.random()  # both captions are worded alike
        true, false = (caption(random.Random(words), each) for each in (shown, changed))
        if true != false and not any(picture.is_held_out(thing.spec) for thing in changed.things):
            return CaptionPair(shown, true, false)


def with_false(rng: random.Random, shown: Picture, index: int, field: str) -> Picture:
    """Return the picture with another value in one field of its thing `index`; the same if it has no such value."""
    thing = shown.things[index]
    values = FIELDS[field][1]
    now = thing.facing if field == "facing" else getattr(thing.spec, field)
    if now not in values:
        return shown
    others = [value for value in values if value not in (now, thing.spec.second)]
    things = list(shown.things)
    things[index] = _changed(thing, field, rng.choice(others))
    return replace(shown, things=tuple(things))


def _changed(thing: Thing, field: str, value: Any) -> Thing:
    if field == "facing":
        return replace(thing, mirrored=value == "left")
    return replace(thing, spec=replace(thing.spec, **{field: value}))


def make_batch(codec: LinearCodec, size: int, rank: int, world_size: int, step: int) -> Batch:
    """Return the batch of a step and process; it follows from these alone."""
    rng = random.Random(f"contrast {step * world_size + rank}")
    pairs = [draw_pair(rng) for _ in range(size)]
    true_BL, false_BL = (encode_captions([getattr(each, name) for each in pairs]) for name in ("true", "false"))
    return Batch(*encode_pictures(codec, [each.picture for each in pairs]), true_BL, false_BL)


class ContrastTask(LaterTask):
    """Compute the loss from the errors of the model and of its reference."""

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return -log sigmoid(d of the true captions) - log sigmoid(-d of the false), the batch's mean.

        d = BETA * (the reference's error - the model's).
        """
        better_true_B, better_false_B = self.better(batch, generator)
        return -(F.logsigmoid(better_true_B) + F.logsigmoid(-better_false_B)).mean()

    def better(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return d of B pictures with their true captions, and with the false ones, at the same noise."""
        noise = torch.randn(batch.latents_BChw.shape, generator=generator)
        t_over_T = torch.sigmoid(torch.randn(len(noise), generator=generator) + TIMESTEP_SHIFT)
        inputs = self.noised(batch.latents_BChw, t_over_T, noise)
        with torch.no_grad():
            reference = errors(self.predict_reference, batch, *inputs)
        better_true_B, better_false_B = (BETA * (reference - errors(self.predict, batch, *inputs))).chunk(2)
        return better_true_B, better_false_B


def errors(predict: CaptionedUNet, batch: Batch, noisy_BChw: Tensor, t_B: Tensor, target_BChw: Tensor) -> Tensor:
    """Return the errors of B pictures with their true captions, then with the false ones, [2 B]."""
    tokens = torch.cat([batch.true_BL, batch.false_BL])
    predicted = predict(noisy_BChw.repeat(2, 1, 1, 1), t_B.repeat(2), tokens).float()
    squared = (predicted - target_BChw.repeat(2, 1, 1, 1)) ** 2
    return (squared * batch.weights_B1hw.repeat(2, 1, 1, 1)).mean((1, 2, 3))


STAGE = LaterStage(
    "contrast",
    make_batch,
    ContrastTask,
    {"peak_lr": 3e-5, "decay_fraction": 0.6, "ema_decay": 0.995},
)
