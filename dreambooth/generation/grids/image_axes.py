"""Axes of a grid that say something of images: which one to start from, what of it is new, controls, a style.

Each function puts a value, as it was typed, into options, whose `images` hold what the whole grid takes from images.
Nothing heavy is imported here.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dreambooth.errors import UserError
from dreambooth.generation.inputs.control_ref import make_controls, parse_control
from dreambooth.generation.inputs.found_mask import is_words
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.inputs.image_refs import image_ref
from dreambooth.generation.inputs.init_image import InitImage, checked, init_image, parse_margins, with_margins
from dreambooth.generation.inputs.style_ref import check_reference
from dreambooth.generation.inputs.styles import make_styles
from dreambooth.generation.options import ImageOptions

NONE = "none"  # the value of `style` and `control` for none


def _with_init_image(options: ImageOptions, value: str) -> ImageOptions:
    init = _images(options).init
    found = init_image(value) if init is None else checked(replace(init, image=image_ref(value)))
    return _with_images(options, init=found)


def _with_strength(options: ImageOptions, value: str) -> ImageOptions:
    return _with_start(options, "strength", value, strength=_number("strength", value))


def _with_mask(options: ImageOptions, value: str) -> ImageOptions:
    if is_words(value):
        raise UserError(f"--grid mask={value}: an axis takes files; words are read by --mask, for all images")
    return _with_start(options, "mask", value, mask=image_ref(value))


def _with_expand(options: ImageOptions, value: str) -> ImageOptions:
    margins = parse_margins(value)
    return _with_images(options, init=checked(with_margins(_start(options, "expand", value), margins)))


def _with_feather(options: ImageOptions, value: str) -> ImageOptions:
    return _with_start(options, "feather", value, feather=int(_number("feather", value, whole=True)))


def _with_start(options: ImageOptions, name: str, value: str, **changes: Any) -> ImageOptions:
    """Return options whose image to start from has changes. Raises UserError where there is none."""
    return _with_images(options, init=checked(replace(_start(options, name, value), **changes)))


def _start(options: ImageOptions, name: str, value: str) -> InitImage:
    """Return the image to start from. Raises UserError where there is none."""
    init = _images(options).init
    if init is None:
        raise UserError(f"--grid {name}={value}: there is no image to start from; name one with --init-image")
    return init


def _with_control(options: ImageOptions, value: str) -> ImageOptions:
    if value == NONE:
        return _with_images(options, controls=())
    control = parse_control(value)
    named = {each.kind: each.network for each in _images(options).controls if each.network is not None}
    networks = {kind: network for kind, network in named.items() if kind == control.kind}
    return _with_images(options, controls=make_controls([control], networks))


def _with_control_weight(options: ImageOptions, value: str) -> ImageOptions:
    controls = _images(options).controls
    if not controls:
        raise UserError(f"--grid control_weight={value}: there is no control; name one with --control KIND=IMAGE")
    weight = _number("control_weight", value)
    return _with_images(options, controls=tuple(replace(each, weight=weight) for each in controls))


def _with_style(options: ImageOptions, value: str) -> ImageOptions:
    if value == NONE:
        return options if options.images is None else _with_images(options, style=None)
    styles, common = make_styles([value]), _images(options).style
    if styles.reference is not None:
        adapter = None if common is None else common.adapter
        options = _with_images(options, style=check_reference(replace(styles.reference, adapter=adapter)))
    return styles.apply(options)


def _number(name: str, value: str, whole: bool = False) -> float:
    try:
        return int(value) if whole else float(value)
    except ValueError:
        raise UserError(f"--grid {name}={value}: must be a {'whole ' if whole else ''}number") from None


def _images(options: ImageOptions) -> FromImages:
    return options.images or FromImages()


def _with_images(options: ImageOptions, **changes: Any) -> ImageOptions:
    return replace(options, images=replace(_images(options), **changes))


# In this order where there are several: what changes an image comes behind the axis that may name it, and strength and
# feather behind `expand`, from which they follow without an axis of their own.
IMAGE_AXES: dict[str, Callable[[ImageOptions, str], ImageOptions]] = {
    "init_image": _with_init_image,
    "mask": _with_mask,
    "expand": _with_expand,
    "strength": _with_strength,
    "feather": _with_feather,
    "control": _with_control,
    "control_weight": _with_control_weight,
    "style": _with_style,
}
