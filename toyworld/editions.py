"""List what a training has to know of an edition of the world: its images, its words, the size of its networks.

The first edition shows one thing in each image; `checkpoints/toyworld` and `toyworld-flow` were trained on it.
The second shows up to three, with more to tell in the same 64 pixels: hence more latent channels, a wider denoiser.
FLOW is the first edition for the flow base: latents cover fewer pixels, since its transformer joins four to a token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from toyworld import captions, world
from toyworld.second import captions as second_captions
from toyworld.second import picture, truth
from toyworld.second.canvas import PARTS


@dataclass(frozen=True)
class Sample:
    """Hold one training sample of a denoiser."""

    image: Image.Image
    masks: np.ndarray  # float32 [M, 64, 64], 0..1: where the loss counts more, M as in `Edition.mask_weights`
    captions: tuple[str, ...]


class Alone(Protocol):
    """One thing alone in a place."""

    def image(self) -> Image.Image:
        """Return it, RGB, 64 x 64 pixels."""

    def mask(self) -> np.ndarray:
        """Return where the thing is, without its shadow, bool [64, 64]."""

    def caption(self, rng: random.Random) -> str:
        """Return one of its many captions."""


@dataclass(frozen=True, eq=False)
class Edition:
    """Hold an edition's images and the sizes of the networks that are trained on them."""

    name: str
    vocabulary: Callable[[], set[str]]
    sample: Callable[[int], Sample]  # the training sample of a seed
    image: Callable[[int], Image.Image]  # its image alone
    any_image: Callable[[random.Random], Image.Image]  # of any things, held-out ones too
    unseen_image: Callable[[random.Random], Image.Image]  # of a thing that no training sample shows
    classes: tuple[str, ...]
    subject: Callable[[str, int], Any]  # the thing for DreamBooth of a class noun and a seed: a `Spec` of the edition
    random_spec: Callable[[random.Random, str | None], Any]  # any thing, held-out ones too; of a class noun, if given
    alone: Callable[[random.Random, Any, str | None], Alone]  # a `Spec` alone in a place, or in any
    is_held_out: Callable[[Any], bool]  # whether no training sample shows a `Spec`
    photos_seed: str  # a subject's photos are drawn from this, its class noun and its number
    mask_weights: tuple[float, ...]  # added to the loss's weight of 1 where each mask is 1
    num_samples: int  # in the training set
    latent_channels: int
    latent_patch: int = 8  # pixels a latent position covers, each way
    vae_widths: tuple[int, ...] = (24, 48, 64, 96)
    # Of Muon in the autoencoder's training; 0: AdamW alone. In the first two minutes it is 2 dB ahead of AdamW.
    vae_muon_lr: float = 0.0
    unet_widths: tuple[int, int] = (128, 128)
    text_layers: int = 2
    stages: tuple[str, ...] = ("decoder", "encoder", "judge", "base")  # of the training, in its order
    steps: dict[str, int] | None = None  # optimizer steps of each stage; None: minutes decide

    def show(self, rng: random.Random, spec: Any, place: str | None = None) -> Image.Image:
        """Return an image of a `Spec` alone in a place, or in any."""
        return self.alone(rng, spec, place).image()


def _first_sample(seed: int) -> Sample:
    spec, scene, text = world.sample(seed)
    mask = np.asarray(world.object_mask(spec, scene), dtype=np.float32) / 255
    return Sample(world.render(spec, scene), mask[None], (text,))


def _first_image(seed: int) -> Image.Image:
    return world.render(*world.sample(seed)[:2])


def _any_first_image(rng: random.Random) -> Image.Image:
    return world.render(world.random_spec(rng), world.random_scene(rng))


def _unseen_first_image(rng: random.Random) -> Image.Image:
    spec = world.random_spec(rng)
    while not world.is_held_out(spec):
        spec = world.random_spec(rng)
    return world.render(spec, world.random_scene(rng))


NUM_CAPTIONS = 4  # of one image, of which each step of a training takes one
# Parts that identify a creature and are small.
TELLING_PARTS = ("head", "eye", "face", "ear", "worn")


def telling_masks(shown: picture.Picture) -> np.ndarray:
    """Return where a second edition's picture has things, and where parts that tell a creature, float32 [2, 64, 64]."""
    known = truth.truth(shown)
    telling = np.isin(known.parts, [1 + PARTS.index(name) for name in TELLING_PARTS])
    return np.stack([known.masks.sum(0), telling]).astype(np.float32)


def _second_sample(seed: int) -> Sample:
    shown = picture.sample(seed)
    rng = random.Random(f"captions {seed}")
    texts = tuple(second_captions.caption(rng, shown) for _ in range(NUM_CAPTIONS))
    return Sample(picture.render(shown), telling_masks(shown), texts)


def _second_image(seed: int) -> Image.Image:
    return picture.render(picture.sample(seed))


def _any_second_image(rng: random.Random, must_be_held_out: bool = False) -> Image.Image:
    return picture.render(picture.any_picture(rng, must_be_held_out))


@dataclass(frozen=True)
class _AloneFirst:
    spec: world.Spec
    scene: world.Scene

    def image(self) -> Image.Image:
        return world.render(self.spec, self.scene)

    def mask(self) -> np.ndarray:
        return np.asarray(world.object_mask(self.spec, self.scene)) > 127

    def caption(self, rng: random.Random) -> str:
        return world.caption(rng, self.spec, self.scene)


@dataclass(frozen=True)
class _AloneSecond:
    shown: picture.Picture

    def image(self) -> Image.Image:
        return picture.render(self.shown)

    def mask(self) -> np.ndarray:
        covered: np.ndarray = truth.truth(self.shown).masks[0] > 0.5
        return covered

    def caption(self, rng: random.Random) -> str:
        return second_captions.caption(rng, self.shown)


def _alone_first(rng: random.Random, spec: world.Spec, place: str | None) -> Alone:
    return _AloneFirst(spec, world.random_scene(rng, place))


def _alone_second(rng: random.Random, spec: picture.Spec, place: str | None) -> Alone:
    return _AloneSecond(picture.picture_of(rng, spec, place))


FIRST = Edition(
    "first",
    captions.vocabulary,
    _first_sample,
    _first_image,
    _any_first_image,
    _unseen_first_image,
    tuple(world.CLASSES),
    world.subject,
    world.random_spec,
    _alone_first,
    world.is_held_out,
    "pictures of",
    mask_weights=(3.0,),
    num_samples=100_000,
    latent_channels=32,
)
SECOND = Edition(
    "second",
    second_captions.vocabulary,
    _second_sample,
    _second_image,
    _any_second_image,
    partial(_any_second_image, must_be_held_out=True),
    picture.CLASSES,
    picture.subject,
    picture.random_spec,
    _alone_second,
    picture.is_held_out,
    "second pictures of",
    mask_weights=(3.0, 3.0),
    num_samples=100_000,
    latent_channels=64,
    vae_muon_lr=0.02,
    unet_widths=(144, 144),
    text_layers=3,
    stages=("decoder", "encoder", "judge", "base", "sides", "contrast", "details"),
    steps={
        "decoder": 8_000,
        "encoder": 4_000,
        "judge": 8_000,
        "base": 12_000,
        "sides": 1_000,
        "contrast": 700,
        "details": 1_400,
    },
)
FLOW = replace(FIRST, name="flow", latent_channels=8, latent_patch=4, vae_widths=(24, 48, 96), vae_muon_lr=0.02)
EDITIONS = {edition.name: edition for edition in (FIRST, SECOND, FLOW)}


def edition_of(judge: Path) -> Edition:
    """Return the edition that the judge in this folder was trained on."""
    config = json.loads((judge / "config.json").read_text()) if (judge / "config.json").is_file() else {}
    return SECOND if config.get("edition") == 2 else FIRST
