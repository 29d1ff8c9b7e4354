"""The photos of a subject that DreamBooth learns from, and their captions."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image

from toyworld.editions import FIRST, Edition
from toyworld.scenes import PHRASES

PLACES = ("grass", "studio", "city", "snow", "forest")  # none of them in `outcome.UNSEEN_PLACES`


def photos(
    class_noun: str, seed: int, count: int = 5, places: Sequence[str] = PLACES, edition: Edition = FIRST
) -> list[Image.Image]:
    """Return `count` images of the subject `seed` of its class, alone, cycling through `places`.

    Fewer photos are the first of more.
    """
    spec = edition.subject(class_noun, seed)
    rng = random.Random(f"{edition.photos_seed} {class_noun} {seed}")
    return [edition.show(rng, spec, places[i % len(places)]) for i in range(count)]


def captions(count: int = 5, places: Sequence[str] = PLACES) -> list[str]:
    """Return the captions of a subject's photos, which name their places: "a photo of {subject} on the grass"."""
    return [f"a photo of {{subject}} {PHRASES[places[i % len(places)]][0]}" for i in range(count)]
