"""A rendering of either edition with what its renderer knows of it: place, things, masks, boxes.

Shapes: N things, H/W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from toyworld import world
from toyworld.second import picture
from toyworld.second.truth import truth

P_SECOND = 0.6  # of the renderings that are of the second edition
# What readers learn from shows several things more often: a thing among others is the harder one to tell.
P_SECOND_LEARNED = 0.8
P_NUM_THINGS_LEARNED = (0.3, 0.5, 0.2)  # of one, two and three things
EMPTY_BOX = (0, 0, 0, 0)


@dataclass(frozen=True)
class KnownThing:
    """Hold what is known of one thing. Head, eyes and what is worn are those of creatures of the second edition."""

    class_noun: str
    main: str
    second: str
    accent: str
    pattern: str
    mask: np.ndarray  # float32 [64, 64]: the fraction of each pixel that the thing covers
    worn: str = ""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom of what is to be seen of it, pixels; right and bottom are outside."""
        covered = self.mask > 0.25
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        if len(rows) == 0:
            return EMPTY_BOX
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class KnownScene:
    """Hold a rendering and what is known of it. relation: of the first of two things to the second."""

    image: Image.Image
    place: str
    things: tuple[KnownThing, ...]
    relation: str = ""


def seen_scene(rng: random.Random) -> KnownScene:
    """Return a rendering of either edition without any thing that is held out of training."""
    return _scene(rng, lambda held_out: not held_out, P_SECOND, picture.P_NUM_THINGS)


def learned_scene(rng: random.Random) -> KnownScene:
    """Return a rendering like those of `seen_scene`, of several things more often."""
    return _scene(rng, lambda held_out: not held_out, P_SECOND_LEARNED, P_NUM_THINGS_LEARNED)


def unseen_scene(rng: random.Random) -> KnownScene:
    """Return a rendering of either edition of things that are all held out of training."""
    return _scene(rng, lambda held_out: held_out, P_SECOND, picture.P_NUM_THINGS)


def _scene(
    rng: random.Random, is_wanted: Callable[[bool], bool], p_second: float, p_num_things: Sequence[float]
) -> KnownScene:
    if rng.random() < p_second:
        return second_scene(_second_picture(rng, is_wanted, p_num_things))
    spec = world.random_spec(rng)
    while not is_wanted(world.is_held_out(spec)):
        spec = world.random_spec(rng)
    return first_scene(spec, world.random_scene(rng))


def _second_picture(
    rng: random.Random, is_wanted: Callable[[bool], bool], p_num_things: Sequence[float]
) -> picture.Picture:
    number = rng.choices((1, 2, 3), p_num_things)[0]
    relation = rng.choices(picture.RELATIONS, picture.P_RELATIONS)[0] if number == 2 else ""
    specs = []
    for noun in picture.random_classes(rng, number, relation):
        spec = picture.random_spec(rng, noun)
        while not is_wanted(picture.is_held_out(spec)):
            spec = picture.random_spec(rng, noun)
        specs.append(spec)
    return picture.random_picture(rng, specs, relation)


def first_scene(spec: world.Spec, scene: world.Scene) -> KnownScene:
    """Return a rendering of the first edition with its truth."""
    mask = np.asarray(world.object_mask(spec, scene), dtype=np.float32) / 255
    thing = KnownThing(spec.class_noun, spec.main, spec.second, spec.accent, spec.pattern, mask)
    return KnownScene(world.render(spec, scene), scene.place, (thing,))


def second_scene(shown: picture.Picture) -> KnownScene:
    """Return a rendering of the second edition with its truth. Things side by side come from left to right.

    So the image alone tells which thing a caption names first. Where both orders were right, a small model mixed the
    colour of one thing with the class of the other.
    """
    masks = truth(shown).masks
    things = []
    for thing, mask in zip(shown.things, masks, strict=True):
        spec = thing.spec
        worn = "" if spec.worn == "nothing" else spec.worn
        things.append(KnownThing(spec.class_noun, spec.main, spec.second, spec.accent, spec.pattern, mask, worn))
    if shown.relation == "right of":
        return KnownScene(picture.render(shown), shown.place, tuple(reversed(things)), "left of")
    return KnownScene(picture.render(shown), shown.place, tuple(things), shown.relation)
