"""The photos of a subject that DreamBooth learns from, and their captions."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image

from toyworld import world
from toyworld.scenes import PHRASES
from toyworld.second import picture

PLACES = ("grass", "studio", "city", "snow", "forest")  # none of them in `outcome.UNSEEN_PLACES`


def photos(class_noun: str, seed: int, count: int = 5, places: Sequence[str] = PLACES) -> list[Image.Image]:
    """Return `count` images of the subject `seed` of its class, cycling through `places`.

    Fewer photos are the first of more.
    """
    spec = world.subject(class_noun, seed)
    rng = random.Random(f"pictures of {class_noun} {seed}")
    return [world.render(spec, world.random_scene(rng, places[i % len(places)])) for i in range(count)]


def second_photos(class_noun: str, seed: int, count: int = 5, places: Sequence[str] = PLACES) -> list[Image.Image]:
    """Return `count` images of the second edition's subject `seed` of its class, alone, cycling through `places`."""
    spec = picture.subject(class_noun, seed)
    rng = random.Random(f"second pictures of {class_noun} {seed}")
    return [picture.render(picture.picture_of(rng, spec, places[i % len(places)])) for i in range(count)]


def captions(count: int = 5, places: Sequence[str] = PLACES) -> list[str]:
    """Return the captions of a subject's photos, which name their places: "a photo of {subject} on the grass"."""
    return [f"a photo of {{subject}} {PHRASES[places[i % len(places)]][0]}" for i in range(count)]
