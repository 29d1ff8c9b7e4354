"""Axes of a grid that say something of images: which one to start from, how much of it is new, controls, a style.

Each function puts a value, as it was typed, into options, whose `images` hold what the whole grid takes from images.
Nothing heavy is imported here.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dreambooth.errors import UserError
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.inputs.image_refs import image_ref
from dreambooth.generation.inputs.init_image import checked, init_image
from dreambooth.generation.inputs.style import make_styles
from dreambooth.generation.options import ImageOptions

NONE = "none"  # the value of `style` for no style


def _with_init_image(options: ImageOptions, value: str) -> ImageOptions:
    init = _images(options).init
    found = init_image(value) if init is None else checked(replace(init, image=image_ref(value)))
    return _with_images(options, init=found)


def _with_strength(options: ImageOptions, value: str) -> ImageOptions:
    init = _images(options).init
    if init is None:
        raise UserError(f"--grid strength={value}: there is no image to start from; name one with --init-image")
    return _with_images(options, init=replace(init, strength=_number("strength", value)))


def _with_control_weight(options: ImageOptions, value: str) -> ImageOptions:
    controls = _images(options).controls
    if not controls:
        raise UserError(f"--grid control_weight={value}: there is no control; name one with --control KIND=IMAGE")
    weight = _number("control_weight", value)
    return _with_images(options, controls=tuple(replace(each, weight=weight) for each in controls))


def _with_style(options: ImageOptions, value: str) -> ImageOptions:
    if value == NONE:
        return options
    styles = make_styles([value])
    if styles.reference is not None:
        options = _with_images(options, style=styles.reference)
    return styles.apply(options)


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UserError(f"--grid {name}={value}: must be a number") from None


def _images(options: ImageOptions) -> FromImages:
    return options.images or FromImages()


def _with_images(options: ImageOptions, **changes: Any) -> ImageOptions:
    return replace(options, images=replace(_images(options), **changes))


# In this order where there are several: the strength is of the image that another axis may name.
IMAGE_AXES: dict[str, Callable[[ImageOptions, str], ImageOptions]] = {
    "init_image": _with_init_image,
    "strength": _with_strength,
    "control_weight": _with_control_weight,
    "style": _with_style,
}
