"""Rows of the table: means of scores with their intervals, over subjects where there are several."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dreambooth.evaluation import paper
from dreambooth.evaluation.scoring import Scored, ordered
from dreambooth.metrics.estimates import Estimate, bounds_of, estimate

OURS, PAPER = "ours", "paper (other data, other models)"
ALL = "all"
REAL = "Real images"


@dataclass(frozen=True)
class Row:
    """Hold a row of the table. source: OURS or PAPER. subject: one by name, or ALL."""

    source: str
    model: str
    subject: str
    estimates: dict[str, Estimate]


def our_rows(scored: Sequence[Scored], real: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Return the rows of real images, then of each model: over all subjects and, of several, for each subject.

    real: by subject, then by measure.
    """
    subjects = list(real)
    rows = []
    for subject in [ALL, *subjects] if len(subjects) > 1 else subjects:
        members = subjects if subject == ALL else [subject]
        if found := _real_estimates([real[member] for member in members]):
            rows.append(Row(OURS, REAL, subject, found))
        for model in dict.fromkeys(one.image.row for one in scored):
            own = [one for one in scored if one.image.row == model and one.image.subject in members]
            rows.append(Row(OURS, model, subject, estimates(own)))
    return rows


def estimates(scored: Sequence[Scored]) -> dict[str, Estimate]:
    """Return mean and interval of each measure: over subjects where there are several, else over prompts.

    PRES and drift have one prompt, of independent images: those of a single subject are over images. Diversities
    depend on each other, so a single prompt's has no interval.
    """
    found = {}
    for measure in ordered(name for one in scored for name in one.scores):
        own = [one for one in scored if measure in one.scores]
        if own:
            found[measure] = estimate([one.scores[measure] for one in own], _groups(own, measure), bounds_of(measure))
    return found


def _groups(scored: Sequence[Scored], measure: str) -> list[str] | None:
    subjects, prompts = [one.image.subject for one in scored], [one.image.text for one in scored]
    if len(set(subjects)) > 1:
        return subjects
    return prompts if len(set(prompts)) > 1 or measure.endswith("div") else None


def _real_estimates(of_subjects: Iterable[Mapping[str, float]]) -> dict[str, Estimate]:
    by_measure: dict[str, list[float]] = {}
    for scores in of_subjects:
        for measure, score in scores.items():
            by_measure.setdefault(measure, []).append(score)
    return {measure: estimate(numbers, bounds=bounds_of(measure)) for measure, numbers in by_measure.items()}


def paper_rows() -> list[Row]:
    """Return the paper's rows: means alone, over 0 numbers of our own."""
    nan = float("nan")
    return [
        Row(PAPER, row.name, ALL, {name: Estimate(mean, nan, nan, 0) for name, mean in row.means.items()})
        for row in paper.ROWS
    ]
