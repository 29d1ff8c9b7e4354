"""Hold what a user asks of the images of one prompt, however it was typed: as options, a line of a file, or in Python.

`make_requests` turns it into requests, with the model's own values for what is not given. Nothing heavy is imported.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from dreambooth.errors import UserError
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.refining.refinement import refinement_of
from dreambooth.generation.settings import problem_of

SETTINGS = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale", "scheduler": "scheduler"}


@dataclass(frozen=True)
class ImageOptions:
    """Hold a prompt, as it was typed, and its options. None: as the run sampled its own images.

    prompt: with {subject} and wildcards. seed: image i is made from seed + i. size: (height, width), pixels. upscale,
    upscale_strength, detail: as `Refinement` has them; None: none. images: what this prompt takes from images, in the
    place of what all take; None: nothing of its own. style_negative: the end of negative_prompt that styles have added,
    which a base without negative prompts leaves out.
    """

    prompt: str
    num_images: int = 4
    seed: int = 0
    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    size: tuple[int, int] | None = None
    upscale: float | None = None
    upscale_strength: float | None = None
    detail: float | None = None
    images: FromImages | None = None
    style_negative: str = ""

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise UserError(f"num_images={self.num_images}: must be at least 1")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must be at least 0")
        for name, field in SETTINGS.items():
            value = getattr(self, name)
            if value is not None and (problem := problem_of(field, value)) is not None:
                raise UserError(f"{name}={value}: {problem}")
        if self.upscale_strength is not None and self.upscale is None:
            raise UserError(f"upscale_strength={self.upscale_strength}: needs upscale, the factor")
        refinement_of(self.upscale, self.upscale_strength, self.detail)


def differences(one: ImageOptions, other: ImageOptions) -> set[str]:
    """Return the names of the options in which two differ."""
    return {each.name for each in fields(ImageOptions) if getattr(one, each.name) != getattr(other, each.name)}


def with_options(options: ImageOptions, changes: Mapping[str, Any]) -> ImageOptions:
    """Return options with some replaced, by name; a value may be text. Raises UserError for what is none."""
    read = {}
    for name, value in changes.items():
        key = name.replace("-", "_")
        if key not in PARSERS:
            known = [*PARSERS, *IMAGE_OPTIONS]
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}? " if near else ". "
            raise UserError(f"{name}: unknown option{hint}Known are {', '.join(known)}")
        try:
            read[key] = PARSERS[key](value)
        except ValueError as error:
            raise UserError(f"{key}={value}: {error}") from error
    return replace(options, **read)


def parse_size(value: Any) -> tuple[int, int]:
    """Return WIDTHxHEIGHT, or [width, height], as (height, width). Raises ValueError for anything else."""
    if isinstance(value, list | tuple) and len(value) == 2:
        value = f"{value[0]}x{value[1]}"
    text = str(value).strip()
    match = re.fullmatch(r"([1-9]\d{0,4})\s*[xX×]\s*([1-9]\d{0,4})", text)
    if match is None:
        hint = f", e.g. {text}x{text}" if text.isdigit() else ", e.g. 512x768"
        raise ValueError(f"not a size; write WIDTHxHEIGHT in pixels{hint}")
    return int(match[2]), int(match[1])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text")
    return value


def _whole(value: Any) -> int:
    number = _number(value)
    if not number.is_integer():
        raise ValueError("must be a whole number")
    return int(number)


def _number(value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("must be a number") from None


PARSERS: dict[str, Callable[[Any], Any]] = {
    "prompt": _text,
    "num_images": _whole,
    "seed": _whole,
    "negative_prompt": _text,
    "steps": _whole,
    "guidance_scale": _number,
    "scheduler": _text,
    "size": parse_size,
    "upscale": _number,
    "upscale_strength": _number,
    "detail": _number,
}
assert {*PARSERS, "images", "style_negative"} == {each.name for each in fields(ImageOptions)}
# Those that name images, which `inputs.line_options` reads.
IMAGE_OPTIONS = (
    "init_image",
    "strength",
    "mask",
    "expand",
    "feather",
    "only_masked",
    "control",
    "control_model",
    "style",
    "ip_adapter",
)
