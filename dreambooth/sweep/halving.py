"""Successive halving: train all points for few steps, and only the best of them for more.

Jamieson & Talwalkar 2016 (arXiv 1502.07943). With factor f, n points are trained to the first rung, the best n / f of
them to the next one, and so on up to train.max_steps. A cell that goes on does so from its state, with the settings
and the learning rate curve of the full run: it is the same run, only stopped in between.
"""

import math
from collections.abc import Collection, Sequence

from dreambooth.config import Config
from dreambooth.errors import UserError, escaped
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.sweep.cells import Cell
from dreambooth.sweep.reading import Sweep
from dreambooth.sweep.status import CellStatus, has_come_to, quality_of
from dreambooth.sweep.worker import Task


def next_tasks(sweep: Sweep, statuses: Sequence[CellStatus], given_up: Collection[str]) -> list[Task]:
    """Return the cells to train next, each up to its rung; none where the last rung is reached.

    Raises UserError where no cell of a rung has a quality.
    """
    steps = rungs(sweep.config_of(statuses[0].cell), sweep)
    groups: dict[str, list[CellStatus]] = {}
    for each in statuses:
        groups.setdefault(each.cell.subject_name if sweep.search.per_subject else "", []).append(each)
    return [task for group in groups.values() for task in _of_group(sweep, group, steps, given_up)]


def planned_tasks(sweep: Sweep, cells: Sequence[Cell]) -> list[Task]:
    """Return each cell with the step at which it would stop if the points were ranked as they stand in the list."""
    steps = rungs(sweep.config_of(cells[0]), sweep)
    points = list(dict.fromkeys(cell.point.name for cell in cells))
    until = dict.fromkeys(points, steps[0])
    for step in steps[1:]:
        points = points[: max(1, math.ceil(len(points) / sweep.search.factor))]
        until.update(dict.fromkeys(points, step))
    return [Task(cell, None if until[cell.point.name] == steps[-1] else until[cell.point.name]) for cell in cells]


def rungs(config: Config, sweep: Sweep) -> list[int]:
    """Return the steps at which cells are compared, the last one train.max_steps; all are steps of validations.

    Raises UserError where the config validates nothing, or never before the end.
    """
    every, last = config.validate.every_steps, config.train.max_steps
    if not every:
        raise UserError(f"{escaped(sweep.path)}: search.method=halving compares validations; set validate.every_steps")
    factor = sweep.search.factor
    first = sweep.search.first_steps or max(every, last // factor**2)
    found = []
    step = math.ceil(first / every) * every
    while step < last:
        found.append(step)
        step = math.ceil(step * factor / every) * every
    if not found:
        raise UserError(
            f"{escaped(sweep.path)}: search.first_steps={first}: the first comparison, after {step} steps, is not "
            f"before train.max_steps={last}; set validate.every_steps lower"
        )
    return [*found, last]


def _of_group(
    sweep: Sweep, statuses: Sequence[CellStatus], steps: Sequence[int], given_up: Collection[str]
) -> list[Task]:
    """Return the tasks of the first rung at which a cell is missing. statuses: of points that are compared."""
    points = list(dict.fromkeys(each.cell.point.name for each in statuses))
    for step in steps:
        own = [each for each in statuses if each.cell.point.name in points]
        is_last = step == steps[-1]
        missing = [
            Task(each.cell, None if is_last else step)
            for each in own
            if each.cell.name not in given_up and not has_come_to(each, None if is_last else step)
        ]
        if missing or is_last:
            return missing
        points = best_points(sweep, own, step)
    return []


def best_points(sweep: Sweep, statuses: Sequence[CellStatus], step: int) -> list[str]:
    """Return the names of the points that go on after a rung, the best first: one in `search.factor`."""
    sums: dict[str, list[float]] = {}
    for each in statuses:
        quality, _ = quality_of(ValidationLog(each.folder / "logs" / "scores.jsonl"), step)
        sums.setdefault(each.cell.point.name, []).append(-1.0 if quality is None else quality)
    if all(quality < 0 for own in sums.values() for quality in own):
        raise UserError(
            f"{escaped(sweep.path)}: search.method=halving: no cell has a quality at step {step}; name encoders "
            "(validate.dino, validate.clip)"
        )
    ranked = sorted(sums, key=lambda name: -sum(sums[name]) / len(sums[name]))
    return ranked[: max(1, math.ceil(len(ranked) / sweep.search.factor))]
