"""Draw the README's row: a learned subject put into a photo, held in a pose, and drawn in another image's style."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

import dreambooth
from dreambooth.generation.inputs.canny import canny
from dreambooth.generation.inputs.control_ref import control_of_image
from toyworld import world
from toyworld.canvas import OVERSAMPLE
from toyworld.editions import SECOND
from toyworld.scenes import backdrop

PHOTO = ("city", 0, 0.62)  # place, arrangement and horizon of a photo without any object
BOX = (10, 8, 54, 62)  # left, top, right, bottom of what is redrawn in it, pixels
NUM_STEPS, GUIDANCE_SCALE = 25, 4.0


def row(model: dreambooth.Model, class_noun: str, controlnet: Path, seed: int) -> Image.Image:
    """Return three pairs, in each what was given and what was made of it: a photo, edges, and a style."""
    photo, edges, style = empty_photo(), pose(class_noun, seed), style_image(seed)
    prompt = "a photo of {subject}"
    control = control_of_image("canny", edges, is_map=True)

    def made(text: str, **inputs: Any) -> Image.Image:
        return model.generate(text, 1, seed, steps=NUM_STEPS, guidance_scale=GUIDANCE_SCALE, **inputs)[0]

    results = (
        made(f"{prompt} in the city", init_image=photo, mask=box(), strength=1.0),
        made(prompt, controls=[control], control_models={"canny": controlnet}),
        made(prompt, styles=[style]),
    )
    pairs = zip((photo, edges, style), results, strict=True)
    return world.contact_sheet([image for pair in pairs for image in pair], columns=6)


def empty_photo() -> Image.Image:
    """Return a scene that no object stands in."""
    return backdrop(*PHOTO).reduce(OVERSAMPLE)


def box() -> Image.Image:
    """Return the mask of where the subject is to stand in the photo."""
    mask = Image.new("L", (world.SIZE, world.SIZE))
    ImageDraw.Draw(mask).rectangle(BOX, fill=255)
    return mask


def pose(class_noun: str, seed: int) -> Image.Image:
    """Return the edges of another object of a class, in a pose of its own."""
    rng = random.Random(f"pose {seed}")
    return canny(SECOND.show(rng, SECOND.random_spec(rng, class_noun)))


def style_image(seed: int) -> Image.Image:
    """Return a rendering at night of another class."""
    rng = random.Random(f"style {seed}")
    return SECOND.show(rng, SECOND.random_spec(rng, "flower"), "night")
