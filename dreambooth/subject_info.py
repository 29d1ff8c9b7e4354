"""The card of a model, which names its subjects: `dreambooth.json` in its folder, or metadata of its file."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dreambooth.errors import ModelError, UserError, escaped, first_line
from dreambooth.files import read_text, write_text

CARD = "dreambooth.json"
MAX_HEADER = 100 * 2**20  # bytes, as in safetensors' own reader


@dataclass(frozen=True)
class LearnedSubject:
    """Hold one subject's identifier and class noun, and the prompts that it was trained with."""

    identifier: str
    class_noun: str
    prompt: str
    class_prompt: str


@dataclass(frozen=True)
class SubjectInfo:
    """Hold what the model has learned, so that nobody has to remember the token. resolution: pixels.

    num_inference_steps, guidance_scale and scheduler are those of the run's own sample grids: what sampling starts
    from. step: of these weights, the best of a run that was trained to last_step. method: by name. base,
    base_config, base_revision, base_variant, base_vae: model.base, model.config and so on of the run, to load an
    adapter's base from. base_fingerprint: `families.fingerprint`.
    scores: those of the last validation of these weights, by log name.
    """

    subjects: tuple[LearnedSubject, ...]
    resolution: int
    num_inference_steps: int
    guidance_scale: float
    step: int
    scheduler: str = "ddim"
    last_step: int | None = None
    method: str = "full"
    base: str | None = None
    base_config: str | None = None
    base_revision: str | None = None
    base_variant: str | None = None
    base_vae: str | None = None
    base_fingerprint: str | None = None
    scores: dict[str, float] | None = None

    def is_of_run_at(self, step: int) -> bool:
        """Return whether these are the result of a run that has come to this step: none has been taken since."""
        return (self.last_step or self.step) >= step


@dataclass(frozen=True)
class ExportCard(SubjectInfo):
    """Hold the same for an exported result, which has no run folder around it.

    settings: what decided the weights, by key of the config. extracted_rank: the result is a LoRA of that rank out of
    fully trained weights, and `scores` are those of the latter.
    """

    settings: dict[str, Any] | None = None
    extracted_rank: int | None = None


def write_card(card: SubjectInfo, folder: Path) -> None:
    write_text(folder / CARD, json.dumps(asdict(card), indent=1) + "\n")


def card_metadata(card: SubjectInfo) -> dict[str, str]:
    """Return the card as metadata of a .safetensors file."""
    return {"dreambooth": json.dumps(asdict(card))}


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of a .safetensors file: dtype and shape by tensor, and the texts under `__metadata__`.

    It is 8 bytes for its length, then JSON; safetensors' own reader would load torch. Raises ModelError.
    """
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER)))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{escaped(path)}: cannot be read as .safetensors ({first_line(error)})") from error
    if not isinstance(found, dict) or not isinstance(found.get("__metadata__", {}), dict):
        raise ModelError(f"{escaped(path)}: cannot be read as .safetensors (its header is none)")
    return found


def card_in_file(path: Path) -> ExportCard | None:
    """Return the card in a .safetensors file; None for a file of other tools. Raises ModelError."""
    text = read_header(path).get("__metadata__", {}).get("dreambooth")
    try:
        return None if text is None else _card_of(json.loads(text))
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: cannot be read: {first_line(error)}") from error


def read_card(folder: Path) -> ExportCard | None:
    """Return the card in a folder; None where there is none. Raises UserError for a broken card."""
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        return _card_of(json.loads(read_text(path)))
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); write the prompt without {{subject}}, or export again"
        ) from error


def find_card(location: Path) -> ExportCard | None:
    """Return the card of a folder or a .safetensors file; None for results of other tools."""
    return card_in_file(location) if location.is_file() and location.suffix == ".safetensors" else read_card(location)


def _card_of(found: dict[str, Any]) -> ExportCard:
    """Return the card from its JSON.

    One from before there could be several subjects has the keys of the only one beside the others.
    """
    names = [each.name for each in fields(LearnedSubject)]
    subjects = found.pop("subjects") if "subjects" in found else [{name: found.pop(name) for name in names}]
    return ExportCard(tuple(LearnedSubject(**subject) for subject in subjects), **found)
