"""Read a run's folder as plain data for the page. What a run does not have is empty here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL.Image import Image

from dreambooth.config import PROVENANCE, Config, SubjectConfig, load_config
from dreambooth.data.image_files import load_image
from dreambooth.data.image_folder import list_images
from dreambooth.data.images import cells
from dreambooth.errors import UserError
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.metrics.verdict import Verdict
from dreambooth.prompts import Prompt, expand, fill_prompt, subject_phrase
from dreambooth.questions import parse_question
from dreambooth.report import bleeding, curves, gallery, records, tables, words
from dreambooth.report.samples import Samples
from dreambooth.subject_info import read_card


@dataclass(frozen=True)
class ShownSubject:
    """Hold a subject, and the photos that the run learned from under `prompt`, or why they cannot be shown."""

    name: str
    prompt: str
    photos: Sequence[Image]
    why_no_photos: str
    best: gallery.Highlight | None = None


@dataclass(frozen=True)
class Content:
    """Hold everything that the page shows; the page decides nothing."""

    name: str
    subjects: Sequence[ShownSubject]
    pairs: Sequence[Image]  # some of the images of two subjects that it trained on
    config: Config
    verdict: Verdict
    choice: words.Choice | None
    best_step: int | None  # the one to keep
    last_step: int
    model_step: int | None  # of the weights in model/; None: no model yet
    comparisons: Sequence[gallery.Comparison]
    film_prompt: str
    film: Sequence[gallery.Frame]
    strange_grids: Sequence[str]
    panels: Sequence[curves.Panel]
    scores: tables.ScoreTable
    bleeding: Sequence[bleeding.BleedRow]  # of several subjects
    spread: float | None  # mean distance between two of the base's class images, measured as drift is
    deciles: curves.Panel | None
    changed_settings: Sequence[tables.Setting]
    default_settings: Sequence[tables.Setting]
    versions: Mapping[str, str]
    sessions: Sequence[records.Session]
    next_steps: Sequence[words.NextStep]


def read(folder: Path) -> Content:
    """Read a run's folder. Raises UserError for one that is no run, and for files that cannot be read."""
    config = _read_config(folder)
    validation_log = ValidationLog(folder / "logs" / "scores.jsonl")
    metrics = records.read_metrics(folder / "logs" / "metrics.csv")
    filled = expand(config.validate.prompts, config.subjects)
    prompts = [
        gallery.ShownPrompt(each.filled, each.kind, each.subjects, _asked_about(each, config)) for each in filled
    ]
    samples = Samples(folder / "samples", len(prompts), config.validate.num_images, config.data.resolution)
    last_step = _last_step(validation_log, metrics, samples)
    best_step = validation_log.best.step if validation_log.best is not None else None
    film_prompt, film = gallery.film(samples, prompts, validation_log)
    changed, default = tables.settings(config)
    card = read_card(folder / "model")
    model_step = card.step if card is not None else None
    shown_step = next(step for step in (model_step, best_step, last_step) if step is not None)
    verdict = validation_log.verdict_on(model_step)
    return Content(
        name=config.run.name,
        subjects=[
            _shown(config, number, gallery.highlight(samples, prompts, validation_log, shown_step, number))
            for number in range(len(config.subjects))
        ],
        pairs=_pairs(folder / "cut-mix.png", config),
        config=config,
        verdict=verdict,
        choice=words.choice(validation_log, last_step),
        best_step=best_step,
        last_step=last_step,
        model_step=model_step,
        comparisons=gallery.comparisons(samples, prompts, _compared(best_step, samples), validation_log),
        film_prompt=film_prompt,
        film=film,
        strange_grids=samples.strange(),
        panels=curves.panels(validation_log, metrics),
        scores=tables.score_table(validation_log),
        bleeding=bleeding.bleed_rows(
            validation_log,
            filled,
            [subject_phrase(each) for each in config.subjects],
            [each.class_noun for each in config.subjects],
            shown_step,
        ),
        spread=_spread(validation_log),
        deciles=curves.decile_panel(metrics),
        changed_settings=changed,
        default_settings=default,
        versions=_versions(folder),
        sessions=records.read_sessions(folder / "logs" / "sessions.jsonl"),
        next_steps=words.next_steps(folder, config, verdict, model_step, last_step),
    )


def _asked_about(prompt: Prompt, config: Config) -> tuple[str, ...]:
    """Return the measures of the questions that are asked of a prompt's images."""
    questions = map(parse_question, config.validate.questions if prompt.kind == "subject" else [])
    return tuple(question.measure for question in questions if question.is_about(prompt.text))


def _read_config(folder: Path) -> Config:
    if not (folder / "config.yaml").is_file():
        why = "it has no config.yaml" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: no run: {why}. Name a run folder, e.g. checkpoints/my-dog")
    return load_config(folder / "config.yaml")


def _versions(folder: Path) -> dict[str, str]:
    """Return what the run wrote beside its settings; older runs may lack it."""
    raw = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    told = {name: value for name, value in (raw.get(PROVENANCE) or {}).items() if name != "folder"}
    return {
        str(name): "; ".join(map(str, each)) if isinstance(each, list) else str(each) for name, each in told.items()
    }


def _last_step(validation_log: ValidationLog, metrics: Mapping[str, records.Series], samples: Samples) -> int:
    """Return the last step that any of the run's files mentions."""
    of_metrics = (int(series.steps[-1]) for series in metrics.values() if len(series.steps))
    return max([0, *(entry.step for entry in validation_log.entries), *of_metrics, *samples.steps()])


def _compared(best_step: int | None, samples: Samples) -> list[int]:
    """Return the steps to compare: the base, the best step, and the last one with images."""
    return [0, *([best_step] if best_step is not None else []), *samples.steps()[-1:]]


def _shown(config: Config, number: int, best: gallery.Highlight | None) -> ShownSubject:
    subject = config.subjects[number]
    prompt = fill_prompt(subject.prompt, config.subjects, number)
    return ShownSubject(subject_phrase(subject), prompt, *_photos(subject), best)


def _photos(subject: SubjectConfig) -> tuple[list[Image], str]:
    """Return the subject's photos, or why they cannot be shown."""
    try:
        return [load_image(path) for path in list_images(subject.images)], ""
    except UserError:
        return [], f"The photos are no longer in {subject.images}, or cannot be read."


def _pairs(path: Path, config: Config) -> list[Image]:
    """Return the images of a grid of two subjects; none where there is no such file, or it is not the run's own."""
    try:
        found = cells(load_image(path), config.data.resolution) if path.is_file() else []
        return found[: config.data.cut_mix]  # a last row may end white
    except UserError:
        return []


def _spread(validation_log: ValidationLog) -> float | None:
    """Return DIV of the base, where it is the same distance that drift is measured in (and not LPIPS)."""
    if validation_log.anchors is None or "cosine" not in (validation_log.entries[0].measured_by or {}).get("div", ""):
        return None
    return validation_log.anchors.div
