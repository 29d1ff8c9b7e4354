"""Trains the second edition's base to heed its captions: against captions with one false word.

After the base's own training a small word (which head, how many eyes, which side) is often not heeded, as it changes
few pixels. Condition contrastive alignment (Chen et al. 2024, arXiv 2410.09347) trains for the difference that the word
makes: the true caption has to predict better than before, the false one worse.

Shapes: B pictures, C latent channels, h/w latent height and width, M masks, L tokens.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from dreambooth.errors import UserError
from toyworld import world
from toyworld.ahead import Ahead
from toyworld.base import SCHEDULE, BaseSettings, CaptionedUNet, autocast_on, build_modules
from toyworld.captions import PLURAL_PATTERN
from toyworld.dataset import load_or_make_codec
from toyworld.editions import SECOND, telling_masks
from toyworld.latents import LinearCodec, to_pixels
from toyworld.second import picture
from toyworld.second.captions import caption
from toyworld.second.look import HEADS, NUM_EYES, WORN
from toyworld.second.picture import Picture, Thing
from toyworld.second.things import CLASSES
from toyworld.tokenizer import build_tokenizer
from toyworld.training import Plan, fit, load_average, rank_and_world, run_in_processes

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


def draw_pair(rng: random.Random, noun: str | None = None, field: str | None = None) -> CaptionPair:
    """Return a picture of one or two things with both captions, neither of which tells of a held-out thing.

    noun: of one thing alone. field: one of FIELDS, which a thing of that class has; none: any.
    """
    number = 2 if noun is None and rng.random() < P_TWO_THINGS else 1
    weights = [CLASS_WEIGHTS.get(each, 1.0) for each in CLASSES]
    nouns = rng.choices(CLASSES, weights) if number == 1 else picture.random_classes(rng, number)
    specs = [picture.trained_spec(rng, each) for each in ([noun] if noun else nouns)]
    shown = picture.random_picture(rng, specs, picture.possible_relation(rng, specs))
    while True:
        (drawn,) = rng.choices(list(FIELDS), [weight for weight, _ in FIELDS.values()])
        changed = with_false(rng, shown, rng.randrange(number), field or drawn)
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
    return encode(codec, [draw_pair(rng) for _ in range(size)])


def encode(codec: LinearCodec, pairs: Sequence[CaptionPair]) -> Batch:
    """Return pictures as latents, with their captions' tokens."""
    masks = torch.from_numpy(np.stack([telling_masks(each.picture) for each in pairs]))
    masks = F.avg_pool2d(masks, SECOND.latent_patch)
    weights = 1 + (torch.tensor(SECOND.mask_weights)[:, None, None] * masks).sum(1, keepdim=True)
    tokenizer = build_tokenizer(SECOND.vocabulary())
    tokens = [
        torch.tensor(tokenizer(texts, padding="max_length").input_ids)
        for texts in ([each.true for each in pairs], [each.false for each in pairs])
    ]
    latents = codec.encode(to_pixels([picture.render(each.picture) for each in pairs]))
    return Batch(latents, weights / weights.mean((1, 2, 3), keepdim=True), *tokens)


class ContrastTask:
    """Compute the loss of one training step from the errors of the model and of its reference, which stays frozen."""

    def __init__(
        self, modules: nn.ModuleDict, reference: nn.ModuleDict, device: str, batch_at: Callable[[int], Batch]
    ) -> None:
        autocast = autocast_on(device)  # the same for both: a difference in rounding would be multiplied by BETA
        self.predict = CaptionedUNet(modules, autocast)
        self.predict_reference = CaptionedUNet(reference.requires_grad_(False).eval(), autocast)
        self.device, self.batch_at = device, batch_at
        self.noise_schedule = DDPMScheduler(**SCHEDULE)

    def __call__(self, step: int) -> Tensor:
        """Return -log sigmoid(d of the true captions) - log sigmoid(-d of the false), the batch's mean.

        d = BETA * (the reference's error - the model's).
        """
        batch = Batch(*(each.to(self.device) for each in self.batch_at(step)))
        with torch.no_grad():
            reference = self.errors(batch, step, self.predict_reference)
        better_true_B, better_false_B = (BETA * (reference - self.errors(batch, step, self.predict))).chunk(2)
        return -(F.logsigmoid(better_true_B) + F.logsigmoid(-better_false_B)).mean()

    def errors(self, batch: Batch, step: int, predict: CaptionedUNet) -> Tensor:
        """Return the errors of B pictures with their true captions, then with the false ones, [2 B].

        Both have the same noise and timestep, which follow from the step and the process.
        """
        rank, world_size = rank_and_world()
        generator = torch.Generator().manual_seed(7919 * (step * world_size + rank))
        noise = torch.randn(batch.latents_BChw.shape, generator=generator).to(self.device)
        normal_B = torch.randn(len(noise), generator=generator)
        t_B = (torch.sigmoid(normal_B + TIMESTEP_SHIFT) * self.noise_schedule.config["num_train_timesteps"]).long()
        t_B = t_B.to(self.device)
        noisy = self.noise_schedule.add_noise(batch.latents_BChw, noise, t_B).repeat(2, 1, 1, 1)
        target = self.noise_schedule.get_velocity(batch.latents_BChw, noise, t_B).repeat(2, 1, 1, 1)
        predicted = predict(noisy, t_B.repeat(2), torch.cat([batch.true_BL, batch.false_BL])).float()
        return ((predicted - target) ** 2 * batch.weights_B1hw.repeat(2, 1, 1, 1)).mean((1, 2, 3))


def state_path(folder: Path, begun: nn.Module) -> Path:
    """Return the file of this training's state in a working folder.

    begun: the weights that the training begins with. The file is named after them, so that another base is a new
    beginning.
    """
    digest = hashlib.sha256()
    for parameter in begun.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return folder / f"contrast-{digest.hexdigest()[:8]}.pt"


def train_contrast(settings: BaseSettings) -> None:
    """Train the base of `settings.folder` on, or resume. Raises UserError where there is no base.pt."""
    if not (settings.folder / "base.pt").is_file():
        raise UserError(f"no base to train on in {settings.folder}: base.pt is missing; the stage base makes it")
    load_or_make_codec(settings.folder, SECOND)
    run_in_processes(settings.num_processes if settings.device == "cpu" else 1, _train, settings)


def _train(settings: BaseSettings) -> None:
    modules, reference = (build_modules(settings) for _ in range(2))
    for each in (modules, reference):
        load_average(each, settings.folder / "base.pt")
    path = state_path(settings.folder, reference)
    rank, world_size = rank_and_world()
    codec = load_or_make_codec(settings.folder, SECOND)
    make = partial(make_batch, codec, settings.batch_size // world_size, rank, world_size)
    plan = Plan("contrast", settings.budget, peak_lr=3e-5, decay_fraction=0.5, ema_decay=0.998, weight_decay=0.0)
    with Ahead(make, settings.device) as batch_at:
        task = ContrastTask(modules.to(settings.device), reference.to(settings.device), settings.device, batch_at)
        fit(modules, task, plan, path)
