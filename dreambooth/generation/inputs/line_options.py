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
from dreambooth.generation.inputs.control import ControlRef, make_controls, parse_networks
from dreambooth.generation.inputs.found_mask import is_words
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.inputs.init_image import init_image, parse_margins
from dreambooth.generation.inputs.style import make_styles
from dreambooth.generation.options import IMAGE_OPTIONS, ImageOptions, with_options

PICTURE = (str | Path | Image.Image, "an image's file")
KINDS: dict[str, tuple[Any, str]] = {
    "init_image": PICTURE,
    "strength": (float | int, "a number"),
    "mask": PICTURE,
    "expand": (str | int, "LEFT,TOP,RIGHT,BOTTOM"),
    "feather": (int, "a whole number"),
    "only_masked": (bool, "true or false"),
    "control": (str | ControlRef, "KIND=IMAGE"),
    "control_model": (str, "KIND=MODEL"),
    "style": PICTURE,
    "ip_adapter": (str, "a file"),
}
SEVERAL = ("expand", "control", "control_model", "style")  # may be lists
OF_START = ("init_image", "strength", "mask", "expand", "feather", "only_masked")


def with_all_options(options: ImageOptions, changes: Mapping[str, Any]) -> ImageOptions:
    """Return options with some replaced, by name, those that name images too. Raises UserError for what is none."""
    named = {name.replace("-", "_"): value for name, value in changes.items()}
    found = with_options(options, {name: value for name, value in named.items() if name not in IMAGE_OPTIONS})
    own = {name: value for name, value in named.items() if name in IMAGE_OPTIONS}
    if not own:
        return found
    for name, value in own.items():
        _check(name, value)
    styles = make_styles(_list(own.get("style")), own.get("ip_adapter"))
    controls = make_controls(_list(own.get("control")), parse_networks(_list(own.get("control_model"))))
    images = FromImages(_start(own), controls, styles.reference)
    return styles.apply(replace(found, images=images))


def _check(name: str, value: Any) -> None:
    """Raise UserError for a value of another type than its option has."""
    kinds, called = KINDS[name]
    several = value if isinstance(value, list | tuple) and name in SEVERAL else [value]
    if not all(isinstance(each, kinds) and isinstance(each, bool) == (kinds is bool) for each in several):
        raise UserError(f"{name}={value!r}: must be {called}{', or a list of them' if name in SEVERAL else ''}")


def _start(own: Mapping[str, Any]) -> Any:
    """Return the image to start from, None where none is named."""
    start = {name: own[name] for name in OF_START if name in own}
    if is_words(start.get("mask")):
        raise UserError(f"mask={start['mask']}: one prompt's mask is a file; words are read by --mask, for all prompts")
    if "expand" in start:
        start["expand"] = parse_margins(",".join(map(str, _list(start["expand"]))))
    return init_image(start.pop("init_image", None), **start)


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
