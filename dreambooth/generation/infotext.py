"""The text that AUTOMATIC1111's webui writes into images, which SD.Next, Civitai and many others read.

    a photo of sks dog
    Negative prompt: people
    Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 3, Size: 512x768, Model: my-dog

Nothing heavy is imported here.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.generation.options import ImageOptions, with_options
from dreambooth.generation.settings import SCHEDULERS
from dreambooth.version import __version__

PARAMETERS = "parameters"  # the PNG's text chunk
USER_COMMENT = 0x9286  # the EXIF tag of JPEG and WebP
NEGATIVE = "Negative prompt: "
SAMPLERS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "euler": "Euler",
    "euler-a": "Euler a",
    "dpm++": "DPM++ 2M",
    "dpm++-sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lms": "LMS",
    "heun": "Heun",
}
KARRAS = "Karras"
USUAL_SCHEDULES = ("", "Automatic", "Normal")  # a sampler's own
PAIR = re.compile(r'\s*([A-Za-z][\w ()/+.-]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
LORA = re.compile(r"\s*<(?:lora|lyco):([^:<>]+)(?::[^<>]*)?>")
OPTIONS = {"Steps": "steps", "CFG scale": "guidance_scale", "Seed": "seed", "Size": "size"}
IGNORED = ("Sampler", "Schedule type", "Model", "Model hash", "Version", "VAE", "VAE hash", "RNG", "Lora hashes")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Infotext:
    """Hold what another program says of its image. model: its name there. not_read: settings without a counterpart."""

    options: ImageOptions
    model: str | None
    not_read: tuple[str, ...]


# -------------------------------------------------------------------------------- written


def write_infotext(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as this text. Brackets of a prompt that is read plainly are escaped, which webui reads so."""
    is_weighted = "text_encoding" in recipe
    prompt, negative = (_as_theirs(str(recipe.get(key, "")), is_weighted) for key in ("prompt", "negative_prompt"))
    loras = [f"<lora:{Path(each['file']).stem}:{each['weight']:g}>" for each in recipe.get("loras") or ()]
    lines = [" ".join([prompt, *loras])]
    if negative:
        lines.append(f"{NEGATIVE}{negative}")
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in _pairs(recipe))])


def _as_theirs(prompt: str, is_weighted: bool) -> str:
    one_line = " ".join(prompt.splitlines())
    return one_line if is_weighted else re.sub(r"([()\[\]\\])", r"\\\1", one_line)


def _pairs(recipe: Mapping[str, Any]) -> list[tuple[str, Any]]:
    name = str(recipe.get("scheduler", ""))
    plain = name.removesuffix("-karras")
    pairs: list[tuple[str, Any]] = [("Steps", recipe.get("num_inference_steps"))]
    pairs.append(("Sampler", SAMPLERS.get(plain, plain)))
    if plain != name:
        pairs.append(("Schedule type", KARRAS))
    pairs += [("CFG scale", recipe.get("guidance_scale")), ("Seed", recipe.get("seed"))]
    pairs.append(("Size", f"{recipe.get('width')}x{recipe.get('height')}"))
    pairs.append(("Model", re.sub(r"[,:\"]", "-", Path(str(recipe.get("model"))).stem)))
    for variation in (recipe.get("variations") or [])[-1:]:
        pairs += [("Variation seed", variation["seed"]), ("Variation seed strength", variation["strength"])]
    return [*pairs, ("Version", f"dreambooth {__version__}")]


# -------------------------------------------------------------------------------- read


def parse_infotext(text: str) -> Infotext | None:
    """Return what a text says of an image; None for one that is no such text.

    Raises UserError for a value that is not allowed here.
    """
    *lines, last = text.strip().splitlines() or [""]
    if not re.match(r"\s*Steps: *\d+", last):
        return None
    pairs = {match[1].strip(): match[2].strip().strip('"') for match in PAIR.finditer(last)}
    numbers = [number for number, line in enumerate(lines) if line.startswith(NEGATIVE.strip())]
    first = numbers[0] if numbers else len(lines)
    prompt = "\n".join(lines[:first])
    negative = "\n".join(lines[first:]).removeprefix(NEGATIVE.strip()).strip()
    changes: dict[str, Any] = {key: pairs[name] for name, key in OPTIONS.items() if name in pairs}
    changes |= {"prompt": _as_template(prompt), "negative_prompt": _as_template(negative)}
    scheduler, schedules = _scheduler(pairs)
    if scheduler is not None:
        changes["scheduler"] = scheduler
    known = {*OPTIONS, *IGNORED}
    not_read = [name for name in pairs if name not in known] + schedules
    not_read += [f"<lora:{name}>" for name in LORA.findall(prompt)]
    return Infotext(with_options(ImageOptions("", num_images=1), changes), pairs.get("Model"), tuple(not_read))


def _as_template(prompt: str) -> str:
    """Return a prompt that stays as it is when fields are filled in, without the LoRAs that it names."""
    return LORA.sub("", prompt).replace("{", "{{").replace("}", "}}").strip()


def _scheduler(pairs: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """Return our name of their sampler, None, with a warning, where there is none, and schedules that are not read."""
    theirs = pairs.get("Sampler", "")
    plain = theirs.removesuffix(f" {KARRAS}")
    schedule = pairs.get("Schedule type", "") if plain == theirs else KARRAS
    own = {name.lower(): own for own, name in SAMPLERS.items()}.get(plain.lower())
    if own is None and theirs:
        logger.warning(f"the sampler {theirs!r} has no counterpart here; the model's usual one is taken")
    if schedule == KARRAS and f"{own}-karras" in SCHEDULERS:
        return f"{own}-karras", []
    return own, [] if schedule in USUAL_SCHEDULES else [f"Schedule type {schedule}"]


def user_comment(data: bytes) -> str:
    """Return the text of an EXIF user comment, whose first 8 bytes name its encoding."""
    code, text = data[:8], data[8:]
    if code.startswith(b"UNICODE"):
        return text.decode("utf-16-be", errors="replace")
    return text.decode("utf-8", errors="replace")
