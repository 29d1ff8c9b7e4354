"""Pictures of the second edition: one to three things in a place, how they stand to each other, and the image.

Everything is a pure function of its arguments: the same seed gives the same picture and image on every machine. A
`Spec` is the same thing in any picture, which is what a DreamBooth subject is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from dreambooth.errors import UserError
from toyworld import world
from toyworld.palette import COLOURS, MIN_CONTRAST, contrast, shade
from toyworld.scenes import HORIZONS, NUM_LAYOUTS, PLACES, backdrop
from toyworld.second.canvas import DRAWN_SIZE, OVERSAMPLE, SIZE, Box, Canvas
from toyworld.second.look import HEADS, NUM_EYES, WORN, Look
from toyworld.second.things import CLASSES, CREATURES, KINDS, RIDERS, SUPPORTS

__all__ = ["CLASSES", "PLACES", "RELATIONS", "SIZE", "Picture", "Spec", "Thing", "random_picture", "random_spec"]
__all__ += ["any_picture", "picture_of", "possible_relation", "relation_between", "render", "sample", "subject"]

# How the first thing stands to the second. A picture of one thing has none, one of three stands in a row.
RELATIONS = ("left of", "right of", "in front of", "on")
# Of feet: what stands so much lower than another thing is in front of it, what stands so much higher is on it.
IN_FRONT, ON = 0.135, 0.25
P_NUM_THINGS = (0.5, 0.4, 0.1)  # of one, two and three things
P_RELATIONS = (0.3, 0.3, 0.2, 0.2)  # in pictures of two
GROUND = 0.93  # usual height of the feet, a fraction of the image's height
MARGIN = 0.02  # that a row of things keeps to the sides, a fraction of the image's width


@dataclass(frozen=True)
class Spec:
    """Hold a thing's identity. Head, eyes and what is worn are those of creatures, "" and 0 for others."""

    class_noun: str
    main: str  # names of `COLOURS`
    second: str
    accent: str  # of stripes and spots
    pattern: str
    head: str
    num_eyes: int
    worn: str
    worn_colour: str
    proportions: tuple[float, ...]  # each in 0..1
    accessories: tuple[int, ...]  # each in 0..2

    def look(self) -> Look:
        """Return what its drawing function takes."""
        return Look(
            COLOURS[self.main],
            COLOURS[self.second],
            COLOURS[self.accent],
            self.pattern,
            self.head,
            self.num_eyes,
            self.worn,
            COLOURS[self.worn_colour or self.accent],
            self.proportions,
            self.accessories,
        )


@dataclass(frozen=True)
class Thing:
    """Hold a thing and where it stands. Positions and sizes are fractions of the image."""

    spec: Spec
    center_x: float
    ground: float  # of its feet, from the top
    size: float  # of its box
    mirrored: bool  # it faces left
    pose: tuple[float, float]  # limbs, tails, fins; each in 0..1

    @property
    def facing(self) -> str:
        return "left" if self.mirrored else "right"

    def box(self) -> Box:
        """Return its place in the drawn image."""
        return Box(
            self.center_x * DRAWN_SIZE, self.ground * DRAWN_SIZE, self.size * DRAWN_SIZE / 2, self.mirrored
        )  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """Hold a place and its things, in the order in which captions name them."""

    place: str
    layout: int
    horizon: float
    things: tuple[Thing, ...]
    relation: str = ""  # of the first of two things to the second: one of RELATIONS

    def in_drawing_order(self) -> list[int]:
        """Return the things' numbers, the farthest first; what stands on another comes after it."""
        if self.relation == "on":
            return [1, 0]
        return sorted(range(len(self.things)), key=lambda i: self.things[i].ground)


def is_held_out(spec: Spec) -> bool:
    """Return whether training must not see this class in these two colours: one pair in eight, by a hash."""
    return world.is_held_out_pair(spec.class_noun, spec.main, spec.second)


def random_spec(rng: random.Random, class_noun: str | None = None) -> Spec:
    """Return any thing (held-out ones too), of `class_noun` if given. Raises UserError for an unknown class."""
    if class_noun is not None and class_noun not in KINDS:
        raise UserError(f"class {class_noun!r} is not in the toy world; it has {', '.join(CLASSES)}")
    noun = class_noun or rng.choice(CLASSES)
    main, second, accent = world.random_colours(rng)
    pattern, proportions, accessories = world.random_details(rng)
    spec = Spec(noun, main, second, accent, pattern, "", 0, "", "", proportions, accessories)
    return _as_creature(rng, spec) if noun in CREATURES else spec


def can_be_told(spec: Spec) -> bool:
    """Return whether its colours differ as much as those of every `random_spec`."""
    far = [spec.accent, *([spec.worn_colour] if spec.worn_colour else [])]  # as far from `main` as a pattern has to be
    return (
        len({spec.second, *far}) == 1 + len(far)
        and contrast(spec.second, spec.main) > MIN_CONTRAST / 2
        and all(contrast(name, spec.main) > MIN_CONTRAST for name in far)
    )


def _as_creature(rng: random.Random, spec: Spec) -> Spec:
    """Return the creature with a head, eyes, and something that it wears in a fourth colour."""
    far = [name for name in world.COLOUR_NAMES if contrast(name, spec.main) > MIN_CONTRAST]
    colours = [name for name in far if name not in (spec.second, spec.accent)]
    head, num_eyes, worn = rng.choice(HEADS), rng.choice(NUM_EYES), rng.choice(WORN)
    return replace(spec, head=head, num_eyes=num_eyes, worn=worn, worn_colour=rng.choice(colours))


def subject(class_noun: str, seed: int) -> Spec:
    """Return a patterned thing for DreamBooth, in a pair of colours that no training image shows on its class.

    Of the first edition's classes it has the colours, pattern, proportions and accessories of the subject there.
    """
    if class_noun not in world.CLASSES:
        rng = random.Random(f"subject {class_noun} {seed}")
        while True:
            spec = random_spec(rng, class_noun)
            if is_held_out(spec) and spec.pattern != "plain":
                return spec
    first = world.subject(class_noun, seed)
    spec = Spec(
        class_noun,
        first.main,
        first.second,
        first.accent,
        first.pattern,
        "",
        0,
        "",
        "",
        first.proportions,
        first.accessories,
    )
    rng = random.Random(f"head of {class_noun} {seed}")
    return _as_creature(rng, spec) if class_noun in CREATURES else spec


# --- pictures


def sample(seed: int) -> Picture:
    """Return the training picture of that seed; none of its things is held out."""
    rng = random.Random(f"second {seed}")
    number = rng.choices((1, 2, 3), P_NUM_THINGS)[0]
    relation = rng.choices(RELATIONS, P_RELATIONS)[0] if number == 2 else ""
    return random_picture(rng, [trained_spec(rng, noun) for noun in random_classes(rng, number, relation)], relation)


def any_picture(rng: random.Random, must_be_held_out: bool = False) -> Picture:
    """Return a picture of any things, held-out ones too; or of such alone."""
    number = rng.choices((1, 2, 3), P_NUM_THINGS)[0]
    relation = rng.choices(RELATIONS, P_RELATIONS)[0] if number == 2 else ""
    make = _held_out_spec if must_be_held_out else random_spec
    return random_picture(rng, [make(rng, noun) for noun in random_classes(rng, number, relation)], relation)


def _held_out_spec(rng: random.Random, class_noun: str) -> Spec:
    spec = random_spec(rng, class_noun)
    while not is_held_out(spec):
        spec = random_spec(rng, class_noun)
    return spec


def trained_spec(rng: random.Random, class_noun: str) -> Spec:
    """Return a thing of a class that is not held out."""
    spec = random_spec(rng, class_noun)
    while is_held_out(spec):
        spec = random_spec(rng, class_noun)
    return spec


def relation_between(first: tuple[float, float], second: tuple[float, float]) -> str:
    """Return how a thing stands to another by the middle and the feet of both, (center_x, ground): one of RELATIONS.

    "behind" or "under" where it is the second that is in front or on top.
    """
    lower = first[1] - second[1]
    if lower > ON:
        return "under"
    if lower < -ON:
        return "on"
    if abs(lower) > IN_FRONT:
        return "in front of" if lower > 0 else "behind"
    return "left of" if first[0] < second[0] else "right of"


def possible_relation(rng: random.Random, specs: list[Spec]) -> str:
    """Return a relation that these things can have: none but for two of them."""
    if len(specs) != 2:
        return ""
    can_stand = KINDS[specs[0].class_noun].can_stand and KINDS[specs[1].class_noun].top is not None
    return rng.choice(RELATIONS if can_stand else RELATIONS[:-1])


def random_classes(rng: random.Random, number: int, relation: str = "") -> list[str]:
    """Return that many different classes; of two with the relation "on", such that one can stand on the other."""
    if relation == "on":
        return [rng.choice(RIDERS), rng.choice(SUPPORTS)]
    return rng.sample(CLASSES, number)


def random_picture(rng: random.Random, specs: list[Spec], relation: str = "", place: str | None = None) -> Picture:
    """Return a picture of one to three things, two of them in `relation`; in `place`, or in any.

    Raises UserError for an unknown place or relation.
    """
    if place is not None and place not in PLACES:
        raise UserError(f"place {place!r} is not in the toy world; it has {', '.join(PLACES)}")
    if relation not in ("", *RELATIONS) or (relation != "") != (len(specs) == 2):
        raise UserError(f"relation {relation!r} of {len(specs)} things: two things have one of {', '.join(RELATIONS)}")
    arrange = {"": _in_a_row, "left of": _in_a_row, "right of": _in_a_row, "in front of": _in_front, "on": _on}[
        relation
    ]
    things = arrange(rng, specs)
    if relation == "right of":
        things = [replace(things[i], center_x=1 - things[i].center_x) for i in (0, 1)]
    return Picture(
        place or rng.choice(PLACES), rng.randrange(NUM_LAYOUTS), rng.choice(HORIZONS), tuple(things), relation
    )  # fmt: skip


def picture_of(rng: random.Random, spec: Spec, place: str | None = None) -> Picture:
    """Return a picture of one thing alone."""
    return random_picture(rng, [spec], "", place)


def _thing(rng: random.Random, spec: Spec, center_x: float, ground: float, size: float) -> Thing:
    return Thing(spec, center_x, ground, size, rng.random() < 0.5, (rng.random(), rng.random()))


def _in_a_row(rng: random.Random, specs: list[Spec]) -> list[Thing]:
    """Return one thing somewhere near the middle, or several side by side from left to right."""
    low, high = ((0.58, 0.86), (0.44, 0.6), (0.34, 0.44))[len(specs) - 1]
    sizes = [rng.uniform(low, high) for _ in specs]
    widths = [KINDS[spec.class_noun].reach * size for spec, size in zip(specs, sizes, strict=True)]
    room = 1 - 2 * MARGIN
    if sum(widths) > room:
        shrink = room / sum(widths)
        sizes, widths = [shrink * size for size in sizes], [shrink * width for width in widths]
    free = room - sum(widths)
    cuts = sorted(rng.uniform(0.15, 0.85) if len(specs) == 1 else rng.random() for _ in specs)
    things = []
    left = MARGIN
    for spec, size, width, cut in zip(specs, sizes, widths, cuts, strict=True):
        ground = GROUND + rng.uniform(-0.05 if len(specs) == 1 else -0.07, 0.03)
        things.append(_thing(rng, spec, left + cut * free + width / 2, ground, size))
        left += width
    return things


def _in_front(rng: random.Random, specs: list[Spec]) -> list[Thing]:
    """Return the first thing in front of the second: lower in the image, beside its middle, hiding a part of it."""
    size, back_size = rng.uniform(0.4, 0.5), rng.uniform(0.5, 0.6)
    reach, back_reach = (KINDS[spec.class_noun].reach / 2 for spec in specs)
    side = rng.choice((-1, 1))
    apart = 0.62 * back_reach * back_size + 0.3 * reach * size
    back_x = 0.5 - side * apart / 2 + rng.uniform(-0.04, 0.04)
    front = _thing(rng, specs[0], back_x + side * apart, GROUND + rng.uniform(0.0, 0.04), size)
    return [front, _thing(rng, specs[1], back_x, GROUND - rng.uniform(0.17, 0.21), back_size)]


def _on(rng: random.Random, specs: list[Spec]) -> list[Thing]:
    """Return the first thing on top of the second."""
    below_size = rng.uniform(0.48, 0.56)
    top = KINDS[specs[1].class_noun].top
    assert top is not None
    ground = GROUND + rng.uniform(-0.01, 0.03)
    surface = ground - below_size * (1 - top) / 2 + 0.015
    size = min(rng.uniform(0.38, 0.46), 0.98 * surface / 1.08)
    x = 0.5 + rng.uniform(-0.16, 0.16)
    return [
        _thing(rng, specs[0], x + rng.uniform(-0.05, 0.05), surface, size),
        _thing(rng, specs[1], x, ground, below_size),
    ]


# --- images


def render(picture: Picture) -> Image.Image:
    """Return the image, RGB, 64 x 64 pixels."""
    image = backdrop(picture.place, picture.layout, picture.horizon).copy()
    for i in picture.in_drawing_order():
        thing = picture.things[i]
        if not (picture.relation == "on" and i == 0):
            _drop_shadow(image, thing.box())
        KINDS[thing.spec.class_noun].draw(Canvas(image, thing.box()), thing.spec.look(), thing.pose)
    return image.reduce(OVERSAMPLE)


def _drop_shadow(image: Image.Image, box: Box) -> None:
    x, half = box.center_x, box.half
    inside = (min(DRAWN_SIZE - 1, max(0, int(x))), min(DRAWN_SIZE - 1, int(box.ground)))
    colour = image.getpixel(inside)
    assert isinstance(colour, tuple)
    edges = (x - 0.85 * half, box.ground - 0.1 * half, x + 0.85 * half, box.ground + 0.1 * half)
    ImageDraw.Draw(image).ellipse(edges, fill=shade((colour[0], colour[1], colour[2]), 0.7))
