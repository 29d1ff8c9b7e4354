"""The style of an image (`--style NAME_OR_IMAGE[:WEIGHT]`): by a name from a list, or that of another image.

What can be known of either is reported here, before anything heavy is loaded.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dreambooth.errors import UserError, escaped, first_line
from dreambooth.files import read_text
from dreambooth.generation.inputs.image_refs import ImageRef, image_ref
from dreambooth.generation.inputs.style_ref import StyleRef, check_reference, check_weight
from dreambooth.generation.options import SETTINGS, ImageOptions
from dreambooth.generation.prompting.weight_syntax import inside_blend
from dreambooth.generation.settings import problem_of

if TYPE_CHECKING:
    from PIL import Image

SHIPPED = Path(__file__).with_name("styles.yaml")
OWN = "styles.yaml"  # of the user's, in the folder of the command or the one of settings
PROMPT = "{prompt}"
KINDS: dict[str, tuple[type, ...]] = {"steps": (int,), "guidance_scale": (int, float), "scheduler": (str,)}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")


@dataclass(frozen=True)
class NamedStyle:
    """Hold a style of a list. prompt: with {prompt} in it. negative: what to keep away from. Then sampler settings."""

    name: str
    prompt: str = PROMPT
    negative: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None


@dataclass(frozen=True)
class Styles:
    """Hold the styles of a request: of lists, in the order given, and that of an image."""

    named: tuple[NamedStyle, ...] = ()
    reference: StyleRef | None = None

    def apply(self, options: ImageOptions) -> ImageOptions:
        """Return options in the named styles, the first one innermost; a setting that is given stays."""
        return reduce(_in_style, self.named, options)


def _in_style(options: ImageOptions, style: NamedStyle) -> ImageOptions:
    """Return options in a style; of a blend each of its prompts has the style's words."""
    return replace(
        options,
        prompt=inside_blend(options.prompt, lambda text: style.prompt.replace(PROMPT, text)),
        negative_prompt=inside_blend(
            options.negative_prompt, lambda text: ", ".join(filter(None, [text, style.negative]))
        ),
        style_negative=", ".join(filter(None, [options.style_negative, style.negative])),
        steps=style.steps if options.steps is None else options.steps,
        guidance_scale=style.guidance_scale if options.guidance_scale is None else options.guidance_scale,
        scheduler=style.scheduler if options.scheduler is None else options.scheduler,
    )


def make_styles(styles: Sequence["str | Path | Image.Image"], adapter: str | None = None) -> Styles:
    """Return styles as they are typed: NAME[:WEIGHT] or IMAGE[:WEIGHT] each; a program may give a PIL image.

    adapter: an IP-Adapter for the image. Raises UserError for a name that no list has, an image that cannot be read, or
    more than one image.
    """
    named, references = [], []
    known: dict[str, NamedStyle] | None = None
    for each in styles:
        if not isinstance(each, str | Path):
            references.append(StyleRef(image_ref(each), adapter=adapter))
        elif (found := _as_image(str(each))) is not None:
            references.append(replace(found, adapter=adapter))
        else:
            known = read_styles() if known is None else known
            named.append(_find(str(each), known))
    if len(references) > 1:
        raise UserError(f"--style {references[1].image.name}: a second image; the style of one can be taken")
    if adapter is not None and not references:
        raise UserError(f"--ip-adapter {escaped(adapter)}: there is no --style IMAGE to read with it")
    return Styles(tuple(named), check_reference(references[0]) if references else None)


def _as_image(text: str) -> StyleRef | None:
    """Return IMAGE[:WEIGHT]; None for what is a name. Raises UserError for a weight that is no number."""
    if Path(text).expanduser().is_file():
        return StyleRef(ImageRef(text))
    file, colon, weight = text.rpartition(":")
    if colon and _is_image(file):
        return StyleRef(ImageRef(file), _weight(weight, text, f"{file}:0.5"))
    return StyleRef(ImageRef(text)) if _is_image(text) else None


def _weight(text: str, whole: str, example: str) -> float:
    """Return a weight. Raises UserError for what is no number, or too large."""
    try:
        weight = float(text)
    except ValueError as error:
        raise UserError(f"--style {whole}: the weight {text!r} is no number; write {example}, say") from error
    check_weight(weight, whole)
    return weight


def weighted(style: NamedStyle, weight: float) -> NamedStyle:
    """Return a style whose words have a weight that `weight_syntax` reads; 1 leaves them plain, 0 leaves them out."""
    if weight == 1:
        return style
    if weight == 0:
        return NamedStyle(style.name)
    before, after = (_weighted(text, weight) for text in style.prompt.split(PROMPT))
    return replace(style, prompt=f"{before}{PROMPT}{after}", negative=_weighted(style.negative, weight))


def _weighted(text: str, weight: float) -> str:
    """Return words with a weight, and the blanks around them as they are."""
    words = text.strip()
    return text.replace(words, f"({words}:{weight:g})", 1) if words else text


def _is_image(text: str) -> bool:
    path = Path(text).expanduser()
    return path.is_file() or path.suffix.lower() in IMAGE_SUFFIXES or len(path.parts) > 1


def _find(text: str, known: Mapping[str, NamedStyle]) -> NamedStyle:
    """Return the style of NAME[:WEIGHT]. Raises UserError for a name that no list has, or a weight that is none."""
    name, colon, weight = text.rpartition(":")
    if text not in known and colon and name in known:
        return weighted(known[name], _weight(weight, text, f"{name}:0.5"))
    if text in known:
        return known[text]
    near = difflib.get_close_matches(text.lower(), known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"--style {escaped(text)}: neither an image nor a style; {hint}known are {', '.join(known)}")


# -------------------------------------------------------------------------------- lists


def own_files() -> list[Path]:
    """Return where lists of the user's own may lie, the last one going over the others."""
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
    return [settings / "dreambooth" / OWN, Path(OWN)]


def read_styles() -> dict[str, NamedStyle]:
    """Return all named styles, the user's own over those that ship. Raises UserError for a list that is damaged."""
    found: dict[str, NamedStyle] = {}
    for path in (SHIPPED, *own_files()):
        if path.is_file():
            found |= _read(path)
    return found


def _read(path: Path) -> dict[str, NamedStyle]:
    try:
        listed = yaml.safe_load(read_text(path)) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{escaped(path)}: not YAML ({first_line(error)})") from error
    if not isinstance(listed, dict):
        raise UserError(f"{escaped(path)}: must be names with prompt, negative and settings")
    return {str(name): _style(path, str(name), given) for name, given in listed.items()}


def _style(path: Path, name: str, given: Any) -> NamedStyle:
    """Return one style of a list. Raises UserError for what it does not know, or of another type."""
    where = f"{escaped(path)}: {name}"
    if not isinstance(given, dict):
        raise UserError(f"{where}: must be prompt, negative and settings")
    if unknown := set(given) - {"prompt", "negative", "settings"}:
        raise UserError(f"{where}: unknown key {sorted(map(str, unknown))[0]!r}; use prompt, negative, settings")
    prompt, negative = given.get("prompt", PROMPT), given.get("negative", "")
    if not isinstance(prompt, str) or prompt.count(PROMPT) != 1:
        raise UserError(f"{where}: prompt={prompt!r}: must be a text with one {PROMPT} in it")
    if not isinstance(negative, str):
        raise UserError(f"{where}: negative={negative!r}: must be a text")
    return NamedStyle(name, prompt, negative, **_settings(where, given.get("settings") or {}))


def _settings(where: str, settings: Any) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise UserError(f"{where}: settings={settings!r}: must be names and values")
    for key, value in settings.items():
        if key not in SETTINGS:
            raise UserError(f"{where}: settings.{key}: unknown; use {', '.join(SETTINGS)}")
        if isinstance(value, bool) or not isinstance(value, KINDS[key]):
            problem: str | None = "is of another type"
        else:
            problem = problem_of(SETTINGS[key], value)
        if problem is not None:
            raise UserError(f"{where}: settings.{key}={value}: {problem}")
    return settings
