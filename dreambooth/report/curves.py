"""The curves of a run as numbers: what `plots` draws, a panel a question."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreambooth.metrics.estimates import bounds_of, estimate
from dreambooth.metrics.log_names import find_metric, is_read
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord
from dreambooth.report.records import Series

NUM_BINS = 30  # points of a smoothed curve
NUM_DECILES = 10
LOG_FROM = 10  # the largest loss over the smallest, from which a linear axis hides the small ones


@dataclass(frozen=True)
class Curve:
    """Hold y over x, with the ends of a 95 % interval where there is one (nan where not)."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """Hold one small plot. over_steps: the best step can be marked in it; share: y lies between 0 and 1."""

    title: str
    text: str
    curves: Sequence[Curve]
    x_label: str = "step"
    log_y: bool = False
    over_steps: bool = True
    share: bool = False


MEASURES = (
    ("Likeness", "Subject prompts against the photos.", {"dino": "DINO ↑", "clip_i": "CLIP-I ↑"}),
    ("Prompt", "Images against their prompts.", {"clip_t": "CLIP-T ↑"}),
    ("Class", "What leaked into it, and its variety.", {"pres": "PRES ↓", "div": "DIV ↑"}),
    ("Drift", "Distance to the base's images.", {"drift": "class ↓", "drift_other": "other prompts ↓"}),
)
FACTORS = {
    "value": "quality ↑",
    "fidelity": "fidelity",
    "prompt_fidelity": "prompt",
    "prior_preservation": "prior",
}


def panels(validation_log: ValidationLog, metrics: Mapping[str, Series]) -> list[Panel]:
    """Return all panels that have a curve."""
    made = [_quality_panel(validation_log)]
    for title, text, labels in MEASURES:
        made.append(Panel(title, text, [*_measured(validation_log.entries, labels)]))
    made.append(_read_panel(validation_log.entries))
    made += [_training_loss(metrics), _held_out_loss(validation_log.entries)]
    return [panel for panel in made if panel.curves]


def _quality_panel(validation_log: ValidationLog) -> Panel:
    judged = [(entry.step, entry.quality) for entry in validation_log.entries if entry.quality is not None]
    steps = [step for step, _ in judged]
    curves = [Curve(label, steps, [getattr(quality, name) for _, quality in judged]) for name, label in FACTORS.items()]
    return Panel("Quality", "Fidelity × prompt fidelity × prior preservation.", curves if judged else [], share=True)


def _measured(entries: Sequence[ValidationRecord], labels: Mapping[str, str]) -> Iterator[Curve]:
    for name, label in labels.items():
        measured = [
            (entry.step, estimate(entry.scores[name], bounds=bounds_of(name)))
            for entry in entries
            if entry.scores.get(name)
        ]
        if measured:
            steps, estimates = [step for step, _ in measured], [found for _, found in measured]
            yield Curve(
                label, steps, [e.mean for e in estimates], [e.low for e in estimates], [e.high for e in estimates]
            )


def _read_panel(entries: Sequence[ValidationRecord]) -> Panel:
    """Return the curves of the models that read images: match, and the answers to questions."""
    read = dict.fromkeys(name for entry in entries for name in entry.scores if is_read(name))
    labels = {name: f"{find_metric(f'eval/{name}').title} ↑" for name in read}
    return Panel("Read", "Probabilities by models that read the images.", [*_measured(entries, labels)], share=True)


def _training_loss(metrics: Mapping[str, Series]) -> Panel:
    curves, bin_steps = [], 1
    for name, label in (("train/loss_instance", "subject"), ("train/loss_prior", "class")):
        series = metrics.get(name, Series())
        if len(series.steps):
            bin_steps = _bin_steps(series)
            curves.append(_smoothed(label, series, bin_steps))
    text = "Each logged step." if bin_steps == 1 else f"Mean of {bin_steps} steps a point."
    return Panel("Training loss", text, curves)


def _bin_steps(series: Series) -> int:
    return max(1, -(-int(series.steps[-1]) // NUM_BINS))


def _smoothed(label: str, series: Series, bin_steps: int) -> Curve:
    """Return the mean of each `bin_steps` steps: the loss of one step is mostly a matter of its timesteps."""
    bins = (series.steps - 1) // bin_steps
    numbers = np.unique(bins)
    means = [float(series.values[bins == number].mean()) for number in numbers]
    return Curve(label, [float(number) * bin_steps + (bin_steps + 1) / 2 for number in numbers], means)


def _held_out_loss(entries: Sequence[ValidationRecord]) -> Panel:
    curve = Curve("subject", [entry.step for entry in entries], [entry.loss for entry in entries])
    return Panel("Loss at fixed noise", "Always the same noise and timesteps.", [curve] if entries else [])


def decile_panel(metrics: Mapping[str, Series]) -> Panel | None:
    """Return the training loss by tenth of the timesteps, between the first two validations and the last two.

    None where the run has no such columns.
    """
    columns = [metrics.get(f"train/loss_t{decile}", Series()) for decile in range(NUM_DECILES)]
    steps = sorted({int(step) for column in columns for step in column.steps})
    if not steps:
        return None
    curves = [_deciles_at(steps, which, columns) for which in dict.fromkeys((0, len(steps) - 1))]
    losses = [loss for curve in curves for loss in curve.y]
    return Panel(
        "Loss by timestep",
        "Training loss by tenth of the timesteps, from least noise (0) to most (9).",
        curves,
        x_label="tenth of the timesteps",
        log_y=max(losses) > LOG_FROM * min(losses),
        over_steps=False,
    )


def _deciles_at(steps: Sequence[int], which: int, columns: Sequence[Series]) -> Curve:
    before = steps[which - 1] if which else 0
    found = [
        (decile, float(column.values[column.steps == steps[which]][0]))
        for decile, column in enumerate(columns)
        if steps[which] in column.steps
    ]
    return Curve(f"steps {before + 1}–{steps[which]}", [x for x, _ in found], [y for _, y in found])
