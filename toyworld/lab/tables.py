"""Results as Markdown: mean, interval over subjects, smallest and largest, and what the paper found.

The interval of a mean over subjects is wide, since subjects differ; so variants are also compared on the same subject
and seed, and the paper's findings are judged by those differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dreambooth.metrics.estimates import Estimate, estimate
from toyworld.lab.experiments import EXPERIMENTS, HEADLINE, Experiment, Hypothesis, Variant
from toyworld.lab.metrics import GOALS, METRIC_BOUNDS, METRICS, format_interval, format_metric
from toyworld.lab.plan import Workspace, trials_of
from toyworld.lab.store import Result, Store

SubjectAndSeed = tuple[str, int]


@dataclass(frozen=True)
class VariantResults:
    """Hold a variant's results so far, by subject and seed."""

    variant: Variant
    num_planned: int
    results: dict[SubjectAndSeed, Result]

    def values(self, metric: str) -> list[float]:
        return [result.metrics[metric] for result in self.results.values()]

    def estimate(self, metric: str) -> Estimate:
        """Return a metric's mean and interval over subjects."""
        return estimate(self.values(metric), [subject for subject, _ in self.results], METRIC_BOUNDS.get(metric))


def collect(name: str, workspace: Workspace, store: Store) -> list[VariantResults]:
    """Return an experiment's results by variant, including variants that have none yet."""
    collected = []
    for variant in EXPERIMENTS[name].variants:
        trials = trials_of(name, variant, workspace)
        found = {
            (str(trial.subject), trial.seed): result for trial in trials if (result := store.get(trial)) is not None
        }
        collected.append(VariantResults(variant, len(trials), found))
    return collected


def difference(more: VariantResults, less: VariantResults, metric: str) -> Estimate | None:
    """Return more - less on the same subjects and seeds, over subjects; None where they share no trial."""
    shared = [key for key in more.results if key in less.results]
    if not shared:
        return None
    pairs = [more.results[key].metrics[metric] - less.results[key].metrics[metric] for key in shared]
    return estimate(pairs, [subject for subject, _ in shared])


def experiment_text(name: str, rows: Sequence[VariantResults]) -> str:
    """Return an experiment's section: caption, table, differences, hypotheses."""
    experiment = EXPERIMENTS[name]
    parts = [f"### {experiment.title} (`lab {name}`)", experiment.caption, main_table(experiment, rows)]
    if len([row for row in rows if row.results]) > 1 and not experiment.heat:
        parts.append(difference_table(experiment, rows))
    parts += [hypothesis_lines(experiment, rows)] if experiment.hypotheses else []
    return "\n\n".join(parts)


def main_table(experiment: Experiment, rows: Sequence[VariantResults]) -> str:
    """Return a table with a line for each variant.

    A cell has mean ± half the interval, smallest – largest trial, and the paper's number where there is one.
    """
    head = ["", "trials", *(METRICS[metric] for metric in experiment.metrics)]
    lines = [_table_line(head), _table_line(["---"] * len(head))]
    for row in rows:
        paper = experiment.paper.get(row.variant.name, {})
        cells = [_table_cell(row, metric, paper.get(metric)) for metric in experiment.metrics]
        lines.append(_table_line([row.variant.name, f"{len(row.results)} of {row.num_planned}", *cells]))
    if any(metric in GOALS for metric in experiment.metrics) and any(row.variant.grid == HEADLINE for row in rows):
        lines.append(_table_line(["*goal of the defaults*", "", *(_goal(metric) for metric in experiment.metrics)]))
    return "\n".join(lines)


def _table_cell(row: VariantResults, metric: str, paper: str | None) -> str:
    parts = []
    if row.results:
        found, values = row.estimate(metric), row.values(metric)
        parts.append(f"**{format_metric(metric, found.mean)}** {format_interval(metric, found)}".rstrip())
        parts.append(f"{format_metric(metric, min(values))} – {format_metric(metric, max(values))}")
    parts += [f"*paper {paper}*"] if paper else []
    return "<br>".join(parts) or "–"


def _goal(metric: str) -> str:
    if metric not in GOALS:
        return ""
    is_more_better, threshold = GOALS[metric]
    return f"*{'≥' if is_more_better else '≤'} {threshold:.2f}*"


def difference_table(experiment: Experiment, rows: Sequence[VariantResults]) -> str:
    """Return a table of each variant less the first, on the same subjects and seeds."""
    head = [f"difference to *{rows[0].variant.name}*", *(METRICS[metric] for metric in experiment.metrics)]
    lines = [_table_line(head), _table_line(["---"] * len(head))]
    for row in rows[1:]:
        found = [(metric, difference(row, rows[0], metric)) for metric in experiment.metrics]
        lines.append(
            _table_line([row.variant.name, *("–" if one is None else _signed(metric, one) for metric, one in found)])
        )
    return "\n".join(lines)


def _signed(metric: str, found: Estimate) -> str:
    sign = "+" if found.mean >= 0 else "−"
    half = f" ± {format_metric(metric, (found.high - found.low) / 2)}" if found.num > 1 else ""
    return f"{sign}{format_metric(metric, abs(found.mean))}{half}"


def hypothesis_lines(experiment: Experiment, rows: Sequence[VariantResults]) -> str:
    """Return a line for each hypothesis: what was reported elsewhere, and whether it is so here."""
    by_name = {row.variant.name: row for row in rows}
    return "\n".join(
        f"- {hypothesis.reported}. Here: {verdict(hypothesis, by_name)}" for hypothesis in experiment.hypotheses
    )


def verdict(hypothesis: Hypothesis, rows: dict[str, VariantResults]) -> str:
    """Return "agrees" or "contradicts" where the interval of the paired difference excludes 0; else "not decided"."""
    found = difference(rows[hypothesis.more], rows[hypothesis.less], hypothesis.metric)
    if found is None:
        return "not measured yet."
    measured = (
        f"{hypothesis.more} less {hypothesis.less} {_signed(hypothesis.metric, found)} {METRICS[hypothesis.metric]}"
    )
    if found.num < 2 or found.low <= 0 <= found.high:
        leaning = "as there" if found.mean > 0 else "the other way"
        return f"**not decided**, leaning {leaning}: {measured}."
    return f"**{'agrees' if found.low > 0 else 'contradicts'}**: {measured}."


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
