"""The result of a run as a folder: a pipeline that `DiffusionPipeline.from_pretrained` loads, or an adapter's files.

What a user must know to prompt it travels along in `dreambooth.json`: identifiers, class nouns, prompts, resolution.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerFast

from dreambooth.errors import ModelError, UserError, first_line
from dreambooth.families import Family
from dreambooth.files import atomic_folder, write_text
from dreambooth.methods import find_method
from dreambooth.methods.adapters import cast_trained

CARD = "dreambooth.json"


@dataclass(frozen=True)
class LearnedSubject:
    """One subject, by what it is called and was shown with."""

    identifier: str
    class_noun: str
    prompt: str
    class_prompt: str


@dataclass(frozen=True)
class SubjectCard:
    """What the model has learned, so that nobody has to remember the token. resolution: pixels.

    num_inference_steps, guidance_scale and scheduler are those of the run's own sample grids: what sampling starts
    from. step: of these weights, the best of a run that was trained to last_step. method: by name. base,
    base_config, base_revision, base_variant: model.base, model.config and so on of the run, which an adapter needs
    beneath it. base_fingerprint: `families.fingerprint`.
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
    base_fingerprint: str | None = None
    scores: dict[str, float] | None = None


@dataclass(frozen=True)
class ExportCard(SubjectCard):
    """Of a result that is passed on, which has left its run behind.

    settings: what decided the weights, by key of the config. extracted_rank: the result is a LoRA of that rank out of
    fully trained weights, and `scores` are those of the latter.
    """

    settings: dict[str, Any] | None = None
    extracted_rank: int | None = None


def export_model(family: Family, card: SubjectCard, folder: Path, dtype: str) -> None:
    """Write what was trained as `dtype` ('float32', 'float16', 'bfloat16') to `folder`, replacing it as a whole.

    It is a pipeline or, where card.method is an adapter, that one's own files. The live weights take that dtype too:
    this is the last thing done with them.
    """
    with atomic_folder(folder) as beside:
        _write_weights(family, card.method, beside, getattr(torch, dtype))
        write_card(card, beside)


def _write_weights(family: Family, method: str, folder: Path, dtype: torch.dtype) -> None:
    save = find_method(method).save
    if save is None:
        pipeline = family.pipeline().to(dtype=dtype)
        for tokenizer in (part for part in pipeline.components.values() if isinstance(part, PreTrainedTokenizerFast)):
            # Else it writes how it was called last, and so a run that was interrupted another file.
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        pipeline.save_pretrained(folder, safe_serialization=True)
    else:
        cast_trained(family, dtype)
        save(family, folder)


def write_card(card: SubjectCard, folder: Path) -> None:
    write_text(folder / CARD, json.dumps(asdict(card), indent=1) + "\n")


def card_metadata(card: SubjectCard) -> dict[str, str]:
    """The card for the metadata of a .safetensors file."""
    return {"dreambooth": json.dumps(asdict(card))}


def card_in_file(path: Path) -> ExportCard | None:
    """What a .safetensors file says of its subject; None for one of other tools. Raises ModelError."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("dreambooth")
        return None if text is None else _card_of(json.loads(text))
    except (OSError, SafetensorError, json.JSONDecodeError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: cannot be read: {first_line(error)}") from error


def read_card(folder: Path) -> ExportCard | None:
    """What a model folder says of its subject; None for a model that has none. Raises UserError for a broken card."""
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        return _card_of(json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); write the prompt without {{subject}}, or export again"
        ) from error


def _card_of(found: dict[str, Any]) -> ExportCard:
    """A card that was written before there could be several subjects has the keys of the only one beside the others."""
    names = [each.name for each in fields(LearnedSubject)]
    subjects = found.pop("subjects") if "subjects" in found else [{name: found.pop(name) for name in names}]
    return ExportCard(tuple(LearnedSubject(**subject) for subject in subjects), **found)
