"""The photos of a subject that DreamBooth learns from."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image

from toyworld import world

PLACES = ("grass", "studio", "city", "snow", "forest")  # none of them in `outcome.UNSEEN_PLACES`


def photos(class_noun: str, seed: int, count: int = 5, places: Sequence[str] = PLACES) -> list[Image.Image]:
    """Return `count` images of the subject `seed` of its class, cycling through `places`.

    Fewer photos are the first of more.
    """
    spec = world.subject(class_noun, seed)
    rng = random.Random(f"pictures of {class_noun} {seed}")
    return [world.render(spec, world.random_scene(rng, places[i % len(places)])) for i in range(count)]
