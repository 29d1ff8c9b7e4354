"""Results as Markdown: mean, interval over subjects, smallest and largest, and what the paper found.

The interval of a mean over subjects is wide, since subjects differ; so rows are also compared on the same subject and
seed, and what the paper claims is judged by those differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dreambooth.metrics.estimates import Estimate, estimate
from toyworld.lab.experiments import HEADLINE, LABS, Experiment, Hypothesis, Variant
from toyworld.lab.figures import FIGURE_BOUNDS, FIGURES, GOALS, format_figure, format_interval
from toyworld.lab.plan import Workspace, cells_of_row
from toyworld.lab.store import Result, Store

Place = tuple[str, int]  # subject, seed


@dataclass(frozen=True)
class RowResults:
    """Hold what there is of a row so far, by subject and seed."""

    row: Variant
    num_wanted: int
    results: dict[Place, Result]

    def values(self, figure: str) -> list[float]:
        return [result.figures[figure] for result in self.results.values()]

    def estimate(self, figure: str) -> Estimate:
        """Over subjects."""
        return estimate(self.values(figure), [subject for subject, _ in self.results], FIGURE_BOUNDS.get(figure))


def collect(name: str, bench: Workspace, store: Store) -> list[RowResults]:
    """The results of a lab, a row each, also of rows that have none yet."""
    collected = []
    for row in LABS[name].rows:
        cells = cells_of_row(name, row, bench)
        found = {(str(cell.subject), cell.seed): result for cell in cells if (result := store.get(cell)) is not None}
        collected.append(RowResults(row, len(cells), found))
    return collected


def difference(more: RowResults, less: RowResults, figure: str) -> Estimate | None:
    """more - less on the same subjects and seeds, over subjects; None without a cell that both have."""
    shared = [place for place in more.results if place in less.results]
    if not shared:
        return None
    pairs = [more.results[place].figures[figure] - less.results[place].figures[figure] for place in shared]
    return estimate(pairs, [subject for subject, _ in shared])


def lab_text(name: str, rows: Sequence[RowResults]) -> str:
    """All of a lab: caption, table, differences, claims."""
    lab = LABS[name]
    parts = [f"### {lab.title} (`lab {name}`)", lab.caption, main_table(lab, rows)]
    if len([row for row in rows if row.results]) > 1 and not lab.heat:
        parts.append(difference_table(lab, rows))
    parts += [claim_lines(lab, rows)] if lab.claims else []
    return "\n\n".join(parts)


def main_table(lab: Experiment, rows: Sequence[RowResults]) -> str:
    """A line a row: mean ± half the interval, smallest – largest cell, and the paper's figure where it has one."""
    head = ["", "cells", *(FIGURES[figure] for figure in lab.figures)]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        figures = [_cell(row, figure, lab.paper.get(row.row.name, {}).get(figure)) for figure in lab.figures]
        lines.append(_line([row.row.name, f"{len(row.results)} of {row.num_wanted}", *figures]))
    if any(figure in GOALS for figure in lab.figures) and any(row.row.grid == HEADLINE for row in rows):
        lines.append(_line(["*wished of the defaults*", "", *(_goal(figure) for figure in lab.figures)]))
    return "\n".join(lines)


def _cell(row: RowResults, figure: str, paper: str | None) -> str:
    parts = []
    if row.results:
        found, values = row.estimate(figure), row.values(figure)
        parts.append(f"**{format_figure(figure, found.mean)}** {format_interval(figure, found)}".rstrip())
        parts.append(f"{format_figure(figure, min(values))} – {format_figure(figure, max(values))}")
    parts += [f"*paper {paper}*"] if paper else []
    return "<br>".join(parts) or "–"


def _goal(figure: str) -> str:
    if figure not in GOALS:
        return ""
    is_more_better, threshold = GOALS[figure]
    return f"*{'≥' if is_more_better else '≤'} {threshold:.2f}*"


def difference_table(lab: Experiment, rows: Sequence[RowResults]) -> str:
    """Each row less the first, on the same subjects and seeds."""
    head = [f"difference to *{rows[0].row.name}*", *(FIGURES[figure] for figure in lab.figures)]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows[1:]:
        found = [(figure, difference(row, rows[0], figure)) for figure in lab.figures]
        lines.append(_line([row.row.name, *("–" if one is None else _signed(figure, one) for figure, one in found)]))
    return "\n".join(lines)


def _signed(figure: str, found: Estimate) -> str:
    sign = "+" if found.mean >= 0 else "−"
    half = f" ± {format_figure(figure, (found.high - found.low) / 2)}" if found.num > 1 else ""
    return f"{sign}{format_figure(figure, abs(found.mean))}{half}"


def claim_lines(lab: Experiment, rows: Sequence[RowResults]) -> str:
    """Say what was found elsewhere, and whether it is so here."""
    by_name = {row.row.name: row for row in rows}
    return "\n".join(f"- {claim.said}. Here: {verdict(claim, by_name)}" for claim in lab.claims)


def verdict(claim: Hypothesis, rows: dict[str, RowResults]) -> str:
    """Agrees or contradicts where the interval of the paired difference leaves 0 out; else not decided."""
    found = difference(rows[claim.more], rows[claim.less], claim.figure)
    if found is None:
        return "not measured yet."
    told = f"{claim.more} less {claim.less} {_signed(claim.figure, found)} {FIGURES[claim.figure]}"
    if found.num < 2 or found.low <= 0 <= found.high:
        leaning = "as there" if found.mean > 0 else "the other way"
        return f"**not decided**, leaning {leaning}: {told}."
    return f"**{'agrees' if found.low > 0 else 'contradicts'}**: {told}."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
