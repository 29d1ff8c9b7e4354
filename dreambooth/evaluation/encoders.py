"""Choose an evaluation's encoders: those named, else those of the models' own runs, else the paper's."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from dreambooth.config import raw_value
from dreambooth.errors import ModelError, UserError
from dreambooth.generation.models.base_path import find_path
from dreambooth.generation.models.location import model_folder
from dreambooth.metrics.encoders import is_available
from dreambooth.metrics.reader_scores import NO_READERS, ReaderNames
from dreambooth.metrics.subject import Encoders, load_encoders
from dreambooth.metrics.validation_log import ValidationLog

AUTO, NONE = "auto", "none"
USUAL = {"dino": "facebook/dino-vits16", "clip": "openai/clip-vit-base-patch32"}  # those of the paper
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MEASURES = {"dino": "dino", "clip": "clip_t"}  # by which a run's log names each

logger = logging.getLogger(__name__)


def find_encoders(
    dino: str, clip: str, models: Iterable[str], device: str, lpips: bool, read_by: ReaderNames = NO_READERS
) -> Encoders:
    """Load the encoders that are named; `auto`: those of the models' runs, else the paper's if they can be had.

    read_by: the models that read images beside them.

    Raises UserError where nothing is left to measure with, ModelError for one that is named and not to be had.
    """
    models = list(models)
    found = {part: _find(part, name, models) for part, name in (("dino", dino), ("clip", clip))}
    if not any(found.values()):
        raise UserError(
            "no encoder to measure with: name a folder or hub id of a DINO (--dino) or a CLIP (--clip); of the toy "
            "world they are checkpoints/toyworld-second-encoders/vit and checkpoints/toyworld-second-encoders/clip"
        )
    encoders = load_encoders(found["dino"], found["clip"], device, lpips, read_by)
    if lpips and encoders.lpips is None:
        raise UserError(
            "--lpips: the package lpips (and torchvision, which it needs) is not installed; or leave it out"
        )
    return encoders


def _find(part: str, name: str, models: list[str]) -> str | None:
    """Return the encoder to load, None for none."""
    if name == NONE:
        return None
    if name != AUTO:
        if not _can_be_had(name):
            raise ModelError(
                f"--{part} {name}: no encoder to measure with: neither a folder here nor in the cache, and the hub "
                "does not have it or cannot be reached; name a folder that has one, or none"
            )
        return name
    own = _of_runs(part, models)
    if len(own) > 1:
        raise UserError(f"--{part}: the models' runs measured with {' and '.join(own)}; name one for all")
    if own or _can_be_had(USUAL[part]):
        return own[0] if own else USUAL[part]
    logger.info(
        f"note: no scores by --{part}: {USUAL[part]} is not in the cache and the hub does not answer; name a folder "
        "that has one"
    )
    return None


def _of_runs(part: str, models: list[str]) -> list[str]:
    """Return the encoders that the models' runs measured with and that are still there, each once."""
    found = []
    for model in models:
        folder = model_folder(model)
        named = _measured_by(part, folder.parent)
        if named is not None and _can_be_had(name := find_path(named, folder)):
            found.append(name)
    return list(dict.fromkeys(found))


def _measured_by(part: str, run: Path) -> str | None:
    """Return the encoder that a run has measured with, or that its config names where it has not; None for none."""
    if entries := ValidationLog(run / "logs" / "scores.jsonl").entries:
        return (entries[0].measured_by or {}).get(MEASURES[part])
    name = raw_value(run / "config.yaml", f"validate.{part}")
    return name if isinstance(name, str) and name != AUTO else None


def _can_be_had(name: str) -> bool:
    """Return whether an encoder is a folder here, in the cache, or on a hub that answers within seconds."""
    return Path(name).is_dir() or (HUB_ID.fullmatch(name) is not None and is_available(name))
