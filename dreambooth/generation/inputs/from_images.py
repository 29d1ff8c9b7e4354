"""Hold what a request takes from images: one to start from, controls, a style. Nothing heavy is imported here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth.generation.inputs import control_ref, init_image, style_ref
from dreambooth.generation.inputs.control_ref import ControlRef
from dreambooth.generation.inputs.init_image import InitImage
from dreambooth.generation.inputs.style_ref import StyleRef


@dataclass(frozen=True)
class FromImages:
    """Hold an image to start from, what the result is held to, and an image whose style it takes."""

    init: InitImage | None = None
    controls: tuple[ControlRef, ...] = ()
    style: StyleRef | None = None


def checked(images: FromImages) -> FromImages:
    """Return them with the hashes of their files as they are now, after a warning where a recipe recorded others.

    Raises UserError for a file that cannot be read, or does not fit.
    """
    return FromImages(
        None if images.init is None else init_image.checked(images.init),
        control_ref.make_controls(images.controls),
        None if images.style is None else style_ref.check_reference(images.style),
    )


def as_json(images: FromImages) -> dict[str, Any]:
    """Return them as fields of a recipe, which names those alone that there are."""
    fields = {
        "init_image": init_image.as_json(images.init),
        "controls": control_ref.as_json(images.controls),
        "style": style_ref.as_json(images.style),
    }
    return {name: value for name, value in fields.items() if value is not None}


def from_images_of(recipe: Mapping[str, Any]) -> FromImages:
    """Return those of a recipe. Raises KeyError or TypeError for what `as_json` has not written."""
    return FromImages(
        init_image.init_image_of(recipe.get("init_image")),
        control_ref.controls_of(recipe.get("controls")),
        style_ref.style_of(recipe.get("style")),
    )
