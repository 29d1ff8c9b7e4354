"""Options of one prompt that name images, in a line of --prompts or a mapping in Python: as those for all prompts.

    {"prompt": "a photo of {subject}", "init_image": "beach.png", "strength": 0.6, "style": ["watercolour"]}

Nothing heavy is imported here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.errors import UserError
from dreambooth.generation.inputs.control_ref import ControlRef, make_controls, parse_networks
from dreambooth.generation.inputs.found_mask import is_words
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.inputs.init_image import InitImage, init_image, parse_margins
from dreambooth.generation.inputs.styles import Styles, make_styles
from dreambooth.generation.options import IMAGE_OPTIONS, ImageOptions, with_options

IMAGE = (str | Path | Image.Image, "an image's file")
TYPES: dict[str, tuple[Any, str]] = {  # of a value in Python or JSON, and what to call it
    "init_image": IMAGE,
    "strength": (float | int, "a number"),
    "mask": IMAGE,
    "expand": (str | int, "LEFT,TOP,RIGHT,BOTTOM"),
    "feather": (int, "a whole number"),
    "only_masked": (bool, "true or false"),
    "control": (str | ControlRef, "KIND=IMAGE"),
    "control_model": (str, "KIND=MODEL"),
    "style": IMAGE,
    "ip_adapter": (str, "a file"),
}
LISTS = ("expand", "control", "control_model", "style")  # whose value may be a list
OF_INIT_IMAGE = ("init_image", "strength", "mask", "expand", "feather", "only_masked")


def with_all_options(options: ImageOptions, changes: Mapping[str, Any]) -> ImageOptions:
    """Return options with some replaced, by name, those that name images too. Raises UserError for what is none."""
    found, styles = with_styles_beside(options, changes)
    return styles.apply(found)


def with_styles_beside(options: ImageOptions, changes: Mapping[str, Any]) -> tuple[ImageOptions, Styles]:
    """Return options as `with_all_options`, but for the named styles, which come beside and are not applied yet."""
    named = {name.replace("-", "_"): value for name, value in changes.items()}
    found = with_options(options, {name: value for name, value in named.items() if name not in IMAGE_OPTIONS})
    own = {name: value for name, value in named.items() if name in IMAGE_OPTIONS}
    if not own:
        return found, Styles()
    for name, value in own.items():
        _check(name, value)
    styles = make_styles(_list(own.get("style")), own.get("ip_adapter"))
    controls = make_controls(_list(own.get("control")), parse_networks(_list(own.get("control_model"))))
    images = FromImages(_init_image(own), controls, styles.reference)
    return replace(found, images=images), styles


def _check(name: str, value: Any) -> None:
    """Raise UserError for a value of another type than its option has."""
    allowed, called = TYPES[name]
    values = value if isinstance(value, list | tuple) and name in LISTS else [value]
    if not all(isinstance(each, allowed) and isinstance(each, bool) == (allowed is bool) for each in values):
        raise UserError(f"{name}={value!r}: must be {called}{', or a list of them' if name in LISTS else ''}")


def _init_image(options: Mapping[str, Any]) -> InitImage | None:
    """Return the image to start from, None where none is named."""
    own = {name: options[name] for name in OF_INIT_IMAGE if name in options}
    if is_words(own.get("mask")):
        raise UserError(f"mask={own['mask']}: one prompt's mask is a file; words are read by --mask, for all prompts")
    if "expand" in own:
        own["expand"] = parse_margins(",".join(map(str, _list(own["expand"]))))
    return init_image(own.pop("init_image", None), **own)


def _list(value: Any) -> Sequence[Any]:
    """Return one or several values as a list."""
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else [value]


def merged(common: FromImages, own: FromImages | None) -> FromImages:
    """Return what one prompt takes from images: its own, and for what it does not name that of all prompts."""
    if own is None:
        return common
    return FromImages(own.init or common.init, own.controls or common.controls, own.style or common.style)
