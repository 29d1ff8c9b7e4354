"""Teaches the second edition's base which side a thing faces, and holds all else as it was.

The base's own training does not teach it: the side tells mostly at high noise, where few of the timesteps lie, and few
captions name it. So a dog is begun facing both ways, and some get two heads. Here the text encoder first learns to tell
"facing left" from "facing right". Then it is trained with the UNet's inner up-block, where the side is decided: on
captions that name a side at high noise, and beside them to predict for other captions what the base predicts.

Shapes: B pictures, C latent channels, h/w latent height and width, L tokens.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor, nn

from toyworld.base import CAPTION_DROPOUT
from toyworld.latents import LinearCodec
from toyworld.second import picture
from toyworld.second.captions import caption
from toyworld.second.encoding import encode_captions, encode_pictures
from toyworld.second.later import LaterStage, LaterTask
from toyworld.second.picture import Picture
from toyworld.second.things import CLASSES

P_SIDE = 4 / 7  # of a batch: captions that name a side; the others hold what the base predicts
TIMESTEP_SHIFT = 1.5  # of the first: t / 1000 = sigmoid(normal + shift), mostly above 700
OPEN_FROM = 600  # from this timestep on the side is open, and the base's prediction for a named one is wrong
KEEPING = 4.0  # the weight of the second loss
CLASS_WEIGHTS = {"dog": 6.0, "cat": 3.0, "fish": 3.0, "robot": 2.0}  # where the side is named; others: .5
NUMBERS_OF_THINGS = {1: 0.6, 2: 0.3, 3: 0.1}  # in the other pictures, by how often
OTHER_SIDE = {"left": "right", "right": "left"}

TELLING_STEPS = 80  # of the text encoder alone
TELLING_BATCH = 32
APART = 0.4  # how far it has to tell the sides apart, a fraction of its vectors' length
HOLDING = 20.0  # the weight of the mean of both, which stays as it was


class Batch(NamedTuple):
    """Hold what one step of one process trains on; pictures whose captions have to name a side come first."""

    latents_BChw: Tensor
    weights_B1hw: Tensor  # of the error, mean 1 in each picture
    tokens_BL: Tensor
    names_side_B: Tensor


def draw_sided(rng: random.Random) -> tuple[Picture, str]:
    """Return a picture of one thing, and a caption that names the side which it faces."""
    (noun,) = rng.choices(CLASSES, [CLASS_WEIGHTS.get(each, 0.5) for each in CLASSES])
    shown = picture.picture_of(rng, picture.trained_spec(rng, noun))
    while True:
        text = caption(rng, shown)
        if "facing" in text:
            return shown, text


def with_other_side(text: str) -> str:
    """Return the caption with the other side named."""
    before, after = text.split("facing ")
    side, *rest = after.split(" ", 1)
    return " ".join([before + "facing", OTHER_SIDE[side], *rest])


def draw_any(rng: random.Random) -> tuple[Picture, str]:
    """Return a picture of one to three things and a caption, which now and then is empty."""
    (number,) = rng.choices(list(NUMBERS_OF_THINGS), list(NUMBERS_OF_THINGS.values()))
    specs = [picture.trained_spec(rng, noun) for noun in picture.random_classes(rng, number)]
    shown = picture.random_picture(rng, specs, picture.possible_relation(rng, specs))
    return shown, "" if rng.random() < CAPTION_DROPOUT else caption(rng, shown)


def make_batch(codec: LinearCodec, size: int, rank: int, world_size: int, step: int) -> Batch:
    """Return the batch of a step and process; it follows from these alone."""
    rng = random.Random(f"sides {step * world_size + rank}")
    number = round(P_SIDE * size)
    pictures, texts = zip(*(draw_sided(rng) if i < number else draw_any(rng) for i in range(size)), strict=True)
    names_side_B = torch.tensor(["facing" in text for text in texts])
    return Batch(*encode_pictures(codec, pictures), encode_captions(texts), names_side_B)


def tell_sides_apart(text_encoder: nn.Module, reference: nn.Module) -> None:
    """Train the text encoder until it tells the two sides APART, and hold the mean of both at what `reference` says.

    The base's text encoder gives the two words vectors that differ by a fiftieth of their length, too little to train
    a UNet on.
    """
    optimizer = torch.optim.AdamW(text_encoder.parameters(), 1e-3, weight_decay=0)
    rng = random.Random("telling sides apart")
    for _ in range(TELLING_STEPS):
        texts = [draw_sided(rng)[1] for _ in range(TELLING_BATCH)]
        one_BL, other_BL = encode_captions(texts), encode_captions([with_other_side(text) for text in texts])
        is_side_BL1 = (one_BL != other_BL)[..., None].float()
        with torch.no_grad():
            was_one, was_other = (reference(tokens).last_hidden_state for tokens in (one_BL, other_BL))
        one, other = (text_encoder(tokens).last_hidden_state for tokens in (one_BL, other_BL))
        moved = ((one + other - was_one - was_other) / 2).square().mean()
        apart_B = ((one - other) * is_side_BL1).norm(dim=(1, 2)) / (was_one * is_side_BL1).norm(dim=(1, 2))
        optimizer.zero_grad()
        (HOLDING * moved + (APART - apart_B).clamp(min=0).mean()).backward()
        optimizer.step()


class SidesTask(LaterTask):
    """Compute errors where a side is named, and elsewhere the change from the reference."""

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the mean error of the captions with a side, plus KEEPING times the mean change of the others'."""
        size = len(batch.latents_BChw)
        number = round(P_SIDE * size)
        noise = torch.randn(batch.latents_BChw.shape, generator=generator)
        noisy, t_B, target = self.noised(batch.latents_BChw, draw_timesteps(number, size, generator), noise)
        if number < size:
            with torch.no_grad():
                target[number:] = self.predict_reference(noisy[number:], t_B[number:], batch.tokens_BL[number:]).float()
        predicted = self.predict(noisy, t_B, batch.tokens_BL).float()
        error_B = ((predicted - target) ** 2 * batch.weights_B1hw).mean((1, 2, 3))
        is_held_B = ~(batch.names_side_B & (t_B >= OPEN_FROM))[number:]
        return error_B[:number].mean() + KEEPING * error_B[number:][is_held_B].sum() / is_held_B.sum().clamp(min=1)


def draw_timesteps(number: int, size: int, generator: torch.Generator) -> Tensor:
    """Return timesteps of a batch as fractions of the schedule, [size]: `number` mostly high, then some anywhere."""
    high = torch.sigmoid(torch.randn(number, generator=generator) + TIMESTEP_SHIFT)
    return torch.cat([high, torch.rand(size - number, generator=generator)])


def begin(modules: nn.ModuleDict, reference: nn.ModuleDict) -> None:
    """Let the text encoder tell the sides apart."""
    tell_sides_apart(modules["text_encoder"], reference["text_encoder"])


STAGE = LaterStage(
    "sides",
    make_batch,
    SidesTask,
    {"peak_lr": 2e-4, "muon_lr": 5e-3, "muon_prefix": "unet.", "decay_fraction": 0.7, "ema_decay": 0.99},
    trained=("text_encoder.", "unet.up_blocks.0."),
    begin=begin,
)
