"""Read a result's history from its run's folder: the settings that made it, its images, and what measured it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dreambooth.config import deciding_settings
from dreambooth.methods import default_lr
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.metrics.verdict import Verdict
from dreambooth.prompts import expand
from dreambooth.subject_info import ExportCard


@dataclass(frozen=True)
class History:
    """Hold what the model card reports of a run; empty where only its result is left.

    name: of the run, or of the result's folder. grid: the images of the kept step, a row for each of `prompts`.
    measured_by: by the name of a score. verdict: on the weights of that step.
    """

    name: str

    settings: dict[str, Any] = field(default_factory=dict)
    grid: Path | None = None
    prompts: list[str] = field(default_factory=list)
    measured_by: dict[str, str] = field(default_factory=dict)
    verdict: Verdict | None = None


def read_history(model: Path, card: ExportCard) -> History:
    """Read the history of a result. model: a run folder, or its model/. card: of its result."""
    whole = model.resolve()
    run = whole.parent if whole.name == "model" else whole
    if not (run / "config.yaml").is_file():
        return History(run.name)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    grid = run / "samples" / f"step-{card.step:06d}.png"
    validation_log = ValidationLog(run / "logs" / "scores.jsonl")
    entries = validation_log.entries
    return History(
        name=run.name,
        settings=deciding_settings(config, default_lr(config["method"]["name"], config["optim"].get("name", "adamw"))),
        grid=grid if grid.is_file() else None,
        prompts=[prompt.filled for prompt in expand(config["validate"]["prompts"], card.subjects)],
        measured_by=(entries[0].measured_by or {}) if entries else {},
        verdict=validation_log.verdict_on(card.step) if entries else None,
    )
