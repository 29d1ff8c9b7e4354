"""The result of a run as a folder that plain `DiffusionPipeline.from_pretrained` loads.

What a user must know to prompt it travels along in `dreambooth.json`: identifier, class noun, prompts, resolution.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.files import write_text

CARD = "dreambooth.json"


@dataclass(frozen=True)
class SubjectCard:
    """What the model has learned, so that nobody has to remember the token. resolution: pixels.

    num_inference_steps, guidance_scale and scheduler are those of the run's own sample grids: what sampling starts
    from. step: of these weights, the best of a run that was trained to last_step.
    """

    identifier: str
    class_noun: str
    prompt: str
    class_prompt: str
    resolution: int
    num_inference_steps: int
    guidance_scale: float
    step: int
    scheduler: str = "ddim"
    last_step: int | None = None


def export_model(family: Family, card: SubjectCard, folder: Path, dtype: str) -> None:
    """Write the live weights as `dtype` ('float32', 'float16', 'bfloat16') to `folder`, replacing it as a whole.

    The live weights take that dtype too: this is the last thing done with them.
    """
    pipeline = family.pipeline().to(dtype=getattr(torch, dtype))
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        pipeline.save_pretrained(beside, safe_serialization=True)
        write_text(beside / CARD, json.dumps(asdict(card), indent=1) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_card(folder: Path) -> SubjectCard | None:
    """What a model folder says of its subject; None for a model that has none. Raises UserError for a broken card."""
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        return SubjectCard(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); write the prompt without {{subject}}, or export again"
        ) from error
