"""Training batches of the metric encoders: objects in scenes, captions and what they claim, softened images.

No subject of `world.subject` is ever among the objects: colour pairs that are held out of the base's training are held
out here too, so metrics on subjects are of objects that the encoders never saw.

Shapes: B images, T texts, Q questions (the judge's heads), H/W pixels.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from toyworld import world
from toyworld.captions import OPENINGS, PLURAL_PATTERN, with_articles
from toyworld.judge import HEADS, NO_ANSWER, half_alike, near_miss
from toyworld.latents import to_pixels
from toyworld.scenes import PHRASES

P_SOFTENED = 0.5  # probability that an image of a batch is softened
MAX_LATENT_NOISE = 0.25  # standard deviation; latents have 1
MAX_PIXEL_NOISE = 0.04  # standard deviation; pixels are in -1..1
P_PLAIN = 0.5  # of a caption with the class and mostly the place alone, as prompts are when measuring
P_PLAIN_PLACE = 0.85  # that a plain caption names the place
PLACE_OF = {phrase: place for place, phrases in PHRASES.items() for phrase in phrases}
PATTERN_OF = {plural: pattern for pattern, plural in PLURAL_PATTERN.items()}
_COLOUR = "|".join(world.COLOUR_NAMES)
CAPTION = re.compile(
    rf"(?:(?P<pattern>striped|spotted) )?(?:(?P<main>{_COLOUR})(?: and (?P<second>{_COLOUR}))? )?"
    rf"\b(?P<class_noun>{'|'.join(world.CLASSES)})\b"
    rf"(?: with (?P<accent>{_COLOUR}) (?P<plural>stripes|spots))?(?: (?P<place>.+))?$"
)


@dataclass(frozen=True)
class Batch:
    """Hold images and their truth; images 2i and 2i + 1 show one object in two scenes."""

    specs: list[world.Spec]  # one an image
    scenes: list[world.Scene]
    pixels_BCHW: Tensor  # crisp, in -1..1

    def truth(self) -> dict[str, Tensor]:
        """Return the true label numbers of every question (head) of the judge, [B]; NO_ANSWER where it is not asked."""
        answers = {name: [getattr(spec, name) for spec in self.specs] for name in HEADS if name != "place"}
        answers["place"] = [scene.place for scene in self.scenes]
        truth = {name: torch.tensor([HEADS[name].index(label) for label in answers[name]]) for name in HEADS}
        # Where there is no pattern the accent shows on small parts only, or nowhere.
        truth["accent"] = truth["accent"].where(truth["pattern"] != world.PATTERNS.index("plain"), NO_ANSWER)
        return truth

    def captions(self, rng: random.Random) -> tuple[list[str], Tensor]:
        """Return one caption an image, and whether a caption is true of an image, bool [B, T].

        Half of them are plain, half name colours and pattern.
        """
        texts = [caption(rng, spec, scene) for spec, scene in zip(self.specs, self.scenes, strict=True)]
        return texts, is_true(claims(texts), self.truth())


def draw(rng: random.Random, num_objects: int) -> Batch:
    """Draw two images each of `num_objects` objects, none of them held out.

    The objects are `half_alike`.
    """
    focus = rng.choice(world.CLASSES)
    specs = half_alike(
        num_objects,
        focus,
        lambda class_noun: _not_held_out(partial(world.random_spec, rng, class_noun)),
        lambda spec: _not_held_out(partial(near_miss, rng, spec)),
    )
    twice = [spec for spec in specs for _ in range(2)]
    scenes = [world.random_scene(rng) for _ in twice]
    images = [world.render(spec, scene) for spec, scene in zip(twice, scenes, strict=True)]
    return Batch(twice, scenes, to_pixels(images))


def _not_held_out(make: Callable[[], world.Spec]) -> world.Spec:
    spec = make()
    while world.is_held_out(spec):
        spec = make()
    return spec


def caption(rng: random.Random, spec: world.Spec, scene: world.Scene) -> str:
    """Return a plain caption ("a photo of a robot on the beach") or one of `world.caption`."""
    if rng.random() >= P_PLAIN:
        return world.caption(rng, spec, scene)
    words = [rng.choice(OPENINGS), spec.class_noun]
    if rng.random() < P_PLAIN_PLACE:
        words.append(rng.choice(PHRASES[scene.place]))
    return with_articles(" ".join(words))


def claims(texts: Sequence[str]) -> Tensor:
    """Return what each caption says, [T, Q]: a label number, or NO_ANSWER, on each question in the order of `HEADS`."""
    return torch.tensor([_claims(text) for text in texts])


def _claims(text: str) -> list[int]:
    found = CAPTION.search(text)
    assert found is not None, f"not a caption of the toy world: {text}"
    said = found.groupdict()
    said["pattern"] = said["pattern"] or PATTERN_OF.get(said["plural"])
    said["place"] = PLACE_OF.get(said["place"])
    return [labels.index(said[name]) if said[name] else NO_ANSWER for name, labels in HEADS.items()]


def is_true(claims_TQ: Tensor, truth: dict[str, Tensor]) -> Tensor:
    """Return whether everything that a text claims holds for an image, bool [B, T]."""
    truth_BQ = torch.stack([truth[name] for name in HEADS], dim=1)
    return ((claims_TQ[None] == truth_BQ[:, None]) | (claims_TQ[None] == NO_ANSWER)).all(-1)


@torch.no_grad()
def noisy_round_trip(vae: Any, pixels_BCHW: Tensor, max_noise: float = MAX_LATENT_NOISE) -> Tensor:
    """Return images as a small diffusion model would draw them: through the autoencoder, with noise on the latents."""
    latents = vae.encode(pixels_BCHW).latent_dist.mean * vae.config.scaling_factor
    latents = latents + max_noise * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
    return vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)


def blur(pixels_BCHW: Tensor, rng: random.Random) -> Tensor:
    """Return the images as a mean over 3 x 3 pixels, or reduced to half their size and enlarged again."""
    if rng.random() < 0.5:
        return F.avg_pool2d(F.pad(pixels_BCHW, (1, 1, 1, 1), "replicate"), 3, 1)
    return F.interpolate(F.avg_pool2d(pixels_BCHW, 2), scale_factor=2, mode="bilinear")


def augment(pixels_BCHW: Tensor, soft_BCHW: Tensor, p_softened: float = P_SOFTENED) -> Tensor:
    """Replace a part of the images by their soft form, and add noise of standard deviation up to 0.04 to all."""
    softened_B111 = torch.rand(len(pixels_BCHW), 1, 1, 1) < p_softened
    pixels = torch.where(softened_B111, soft_BCHW, pixels_BCHW)
    return pixels + MAX_PIXEL_NOISE * torch.rand(len(pixels), 1, 1, 1) * torch.randn_like(pixels)
