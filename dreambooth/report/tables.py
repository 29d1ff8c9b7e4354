"""Rows of text about a run: scores at a few steps, settings, versions, sessions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dreambooth.config import Config, default_of, flatten, to_dict
from dreambooth.metrics.estimates import bounds_of, estimate
from dreambooth.metrics.log_names import METRICS, Metric, find_metric, is_read
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord

MEASURES = {
    name: METRICS[f"eval/{name}"] for name in ("dino", "clip_i", "clip_t", "pres", "div", "drift", "drift_other")
}
FACTORS = {
    "value": ("Quality", "fidelity × prompt fidelity × prior preservation"),
    "fidelity": ("Fidelity", "is it the subject, or just another of its class?"),
    "prompt_fidelity": ("Prompt fidelity", "does it follow the prompt as the base did?"),
    "prior_preservation": ("Prior preservation", "has the class stayed what it was?"),
}


@dataclass(frozen=True)
class ScoreRow:
    """Hold a measure at the steps of the table, as texts; None where it was not measured."""

    measure: Metric
    cells: Sequence["Cell | None"]


@dataclass(frozen=True)
class Cell:
    """Hold a mean, and its 95 % interval (empty where there is none)."""

    mean: str
    interval: str = ""


@dataclass(frozen=True)
class ScoreTable:
    """Hold measures at a few steps. encoders: which measures each has made; photos: similarity among the photos."""

    steps: Sequence[int]
    rows: Sequence[ScoreRow]
    encoders: Mapping[str, Sequence[str]]
    photos: str


@dataclass(frozen=True)
class Setting:
    """Hold a key of the config with its value, and the default it stands in for."""

    key: str
    value: str
    default: str


def score_table(validation_log: ValidationLog) -> ScoreTable:
    """Return quality and its factors, every measure with its 95 % interval, and the loss.

    The columns are the base, the best step and the last.
    """
    entries = _chosen(validation_log)
    rows = [*_quality_rows(entries), *_measure_rows(entries), *_loss_rows(entries)]
    return ScoreTable([entry.step for entry in entries], rows, _encoders(validation_log), _among_photos(validation_log))


def _chosen(validation_log: ValidationLog) -> list[ValidationRecord]:
    """Return the validations in the table, each once: the base, the best and the last."""
    chosen = [
        *validation_log.entries[:1],
        *([validation_log.best] if validation_log.best is not None else []),
        *validation_log.entries[-1:],
    ]
    return list({entry.step: entry for entry in chosen}.values())


def _quality_rows(entries: Sequence[ValidationRecord]) -> Iterator[ScoreRow]:
    if any(entry.quality is not None for entry in entries):
        for name, (title, meaning) in FACTORS.items():
            qualities = [entry.quality for entry in entries]
            cells = [Cell(f"{getattr(each, name):.2f}") if each is not None else None for each in qualities]
            yield ScoreRow(Metric(title, meaning, "↑"), cells)


def _measure_rows(entries: Sequence[ValidationRecord]) -> Iterator[ScoreRow]:
    read = dict.fromkeys(name for entry in entries for name in entry.scores if is_read(name))
    for name in (*MEASURES, *read):
        if any(entry.scores.get(name) for entry in entries):
            yield ScoreRow(find_metric(f"eval/{name}"), [_cell(name, entry.scores.get(name)) for entry in entries])


def _cell(name: str, numbers: Sequence[float] | None) -> Cell | None:
    if not numbers:
        return None
    found = estimate(numbers, bounds=bounds_of(name))
    return Cell(f"{found.mean:.3f}", found.interval())


def _loss_rows(entries: Sequence[ValidationRecord]) -> Iterator[ScoreRow]:
    if entries:
        yield ScoreRow(METRICS["eval/loss"], [Cell(f"{entry.loss:.4f}") for entry in entries])


def _among_photos(validation_log: ValidationLog) -> str:
    """Return the photos' similarity among themselves, as text: DINO 0.710."""
    if validation_log.anchors is None:
        return ""
    name = "dino" if "dino" in (validation_log.entries[0].measured_by or {}) else "clip_i"
    return f"{MEASURES[name].title} {validation_log.anchors.real:.3f}"


def _encoders(validation_log: ValidationLog) -> dict[str, list[str]]:
    """Return the titles of the measures by the encoder that made them."""
    measured_by = (validation_log.entries[0].measured_by or {}) if validation_log.entries else {}
    by_encoder: dict[str, list[str]] = {}
    for name, encoder in measured_by.items():
        by_encoder.setdefault(encoder, []).append(find_metric(f"eval/{name}").title.removeprefix("eval/"))
    return by_encoder


def settings(config: Config) -> tuple[list[Setting], list[Setting]]:
    """Return the settings that differ from the defaults, and the others."""
    changed: list[Setting] = []
    kept: list[Setting] = []
    for key, value in flatten(to_dict(config)).items():
        default = default_of(key)
        (kept if value == default else changed).append(Setting(key, _shown(value), _shown(default)))
    return changed, kept


def _shown(value: Any) -> str:
    """Return a value as written in YAML; "required" for OmegaConf's `???`."""
    if value == "???":
        return "required"
    if isinstance(value, list):
        return ", ".join(f'"{item}"' for item in value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
