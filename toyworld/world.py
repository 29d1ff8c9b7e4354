"""The toy world: an object's identity (`Spec`), its scene (`Scene`), and the image of both.

Everything is a pure function of its arguments: the same seed gives the same image on every machine. A spec is the
same object in any scene, which is what a DreamBooth subject is.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from dreambooth.errors import UserError
from toyworld import captions
from toyworld.canvas import DRAWN_SIZE, OVERSAMPLE, SIZE, Canvas, Placement
from toyworld.classes import CLASSES, DRAW, NUM_ACCESSORIES, NUM_PROPORTIONS, Look
from toyworld.palette import COLOURS, MIN_CONTRAST, contrast, shade
from toyworld.scenes import HORIZONS, NUM_LAYOUTS, PLACES, backdrop

__all__ = ["CLASSES", "COLOUR_NAMES", "PATTERNS", "PLACES", "SIZE", "Scene", "Spec", "caption", "contact_sheet"]
__all__ += ["is_held_out", "object_mask", "random_scene", "random_spec", "render", "sample", "subject"]

PATTERNS = ("plain", "striped", "spotted")
COLOUR_NAMES = tuple(COLOURS)
# One colour pair of a class in eight never appears in training; every `subject` is drawn from those.
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Spec:
    """Hold an object's identity, the same in every scene. Stripes and spots have the accent colour."""

    class_noun: str
    main: str  # names of `COLOURS`
    second: str
    accent: str
    pattern: str
    proportions: tuple[float, ...]  # each in 0..1
    accessories: tuple[int, ...]  # each in 0..2


@dataclass(frozen=True)
class Scene:
    """Hold a scene and an object's pose in it. Positions are fractions of the image, relative to the usual ones."""

    place: str
    layout: int  # one of NUM_LAYOUTS fixed arrangements of the place
    horizon: float  # fraction of the height, from the top
    shift_x: float
    shift_y: float
    scale: float  # the object's box as a fraction of the image
    tilt: float  # radians
    mirrored: bool
    pose: tuple[float, float]  # limbs, tails, fins; each in 0..1


def is_held_out(spec: Spec) -> bool:
    """Return whether training must not see this class in these two colours (decided by a hash, one pair in eight)."""
    return is_held_out_pair(spec.class_noun, spec.main, spec.second)


def is_held_out_pair(class_noun: str, main: str, second: str) -> bool:
    """Return whether training must not see this class in these two colours."""
    return hashlib.sha256(f"{class_noun} {main} {second}".encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def random_spec(rng: random.Random, class_noun: str | None = None) -> Spec:
    """Return any object (held-out ones too), of `class_noun` if given. Raises UserError for an unknown class."""
    if class_noun is not None and class_noun not in CLASSES:
        raise UserError(f"class {class_noun!r} is not in the toy world; it has {', '.join(CLASSES)}")
    return Spec(class_noun or rng.choice(CLASSES), *random_colours(rng), *random_details(rng))


def random_colours(rng: random.Random) -> tuple[str, str, str]:
    """Return main, second and accent colour, which can be told apart."""
    main = rng.choice(COLOUR_NAMES)
    second = rng.choice([name for name in COLOUR_NAMES if contrast(name, main) > MIN_CONTRAST / 2])
    accent = rng.choice([name for name in COLOUR_NAMES if contrast(name, main) > MIN_CONTRAST and name != second])
    return main, second, accent


def random_details(rng: random.Random) -> tuple[str, tuple[float, ...], tuple[int, ...]]:
    """Return pattern, proportions and accessories."""
    return (
        rng.choice(PATTERNS),
        tuple(rng.random() for _ in range(NUM_PROPORTIONS)),
        tuple(rng.randrange(3) for _ in range(NUM_ACCESSORIES)),
    )


def random_scene(rng: random.Random, place: str | None = None) -> Scene:
    """Return a scene in `place`, or in any place. Raises UserError for an unknown place."""
    if place is not None and place not in PLACES:
        raise UserError(f"place {place!r} is not in the toy world; it has {', '.join(PLACES)}")
    return Scene(
        place=place or rng.choice(PLACES),
        layout=rng.randrange(NUM_LAYOUTS),
        horizon=rng.choice(HORIZONS),
        shift_x=rng.uniform(-0.04, 0.04),
        shift_y=rng.uniform(-0.03, 0.01),
        scale=rng.uniform(0.74, 0.82),
        tilt=rng.uniform(-0.04, 0.04),
        mirrored=False,  # mirrored ones too, and a tiny model draws dogs with two heads for a long time
        pose=(rng.random(), rng.random()),
    )


def sample(seed: int) -> tuple[Spec, Scene, str]:
    """Return the training sample of that seed: an object that is not held out, a scene and a caption."""
    rng = random.Random(seed)
    spec = random_spec(rng)
    while is_held_out(spec):
        spec = random_spec(rng)
    scene = random_scene(rng)
    return spec, scene, caption(rng, spec, scene)


def caption(rng: random.Random, spec: Spec, scene: Scene) -> str:
    """Return one of the captions of `spec` in `scene`."""
    return captions.caption(rng, spec.class_noun, spec.main, spec.second, spec.accent, spec.pattern, scene.place)


def subject(class_noun: str, seed: int) -> Spec:
    """Return a patterned object for DreamBooth, in a pair of colours that no training image shows on its class."""
    rng = random.Random(f"subject {class_noun} {seed}")
    while True:
        spec = random_spec(rng, class_noun)
        if is_held_out(spec) and spec.pattern != "plain":
            return spec


def _placement(scene: Scene) -> Placement:
    half = scene.scale * DRAWN_SIZE / 2
    ground = (0.93 + scene.shift_y) * DRAWN_SIZE
    return Placement((0.5 + scene.shift_x) * DRAWN_SIZE, ground - half, half, scene.tilt, scene.mirrored)


def _look(spec: Spec) -> Look:
    return Look(
        COLOURS[spec.main],
        COLOURS[spec.second],
        COLOURS[spec.accent],
        spec.pattern,
        spec.proportions,
        spec.accessories,
    )


def render(spec: Spec, scene: Scene) -> Image.Image:
    """Return the image, RGB, 64 x 64 pixels."""
    image = backdrop(scene.place, scene.layout, scene.horizon).copy()
    placement = _placement(scene)
    _drop_shadow(image, placement)
    DRAW[spec.class_noun](Canvas(image, placement), _look(spec), scene.pose)
    return image.reduce(OVERSAMPLE)


def _drop_shadow(image: Image.Image, placement: Placement) -> None:
    x, half = placement.center_x, placement.half_size
    ground = placement.center_y + half
    colour = image.getpixel((int(x), int(min(DRAWN_SIZE - 1, ground))))
    assert isinstance(colour, tuple)
    edges = (x - 0.85 * half, ground - 0.1 * half, x + 0.85 * half, ground + 0.1 * half)
    ImageDraw.Draw(image).ellipse(edges, fill=shade((colour[0], colour[1], colour[2]), 0.7))


def object_mask(spec: Spec, scene: Scene) -> Image.Image:
    """Return where the object is (without its shadow): mode L, 64 x 64 pixels, 255 on the object, 0 elsewhere."""
    mask = Image.new("L", (DRAWN_SIZE, DRAWN_SIZE))
    DRAW[spec.class_noun](Canvas(mask, _placement(scene), silhouette=255), _look(spec), scene.pose)
    return mask.reduce(OVERSAMPLE)


def contact_sheet(images: list[Image.Image], columns: int, zoom: int = 2) -> Image.Image:
    """Return the images side by side, `columns` in a row, each enlarged `zoom` times without smoothing."""
    cell = SIZE * zoom + 2
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell), (255, 255, 255))
    for i, image in enumerate(images):
        enlarged = image.resize((SIZE * zoom, SIZE * zoom), Image.Resampling.NEAREST)
        sheet.paste(enlarged, ((i % columns) * cell, (i // columns) * cell))
    return sheet
