"""`python -m dreambooth lab NAME ...`: the paper's ablations on the embedded base."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.errors import UserError
from toyworld.lab.experiments import LABS
from toyworld.lab.figures import GOALS, format_figure
from toyworld.lab.plan import Trial, Workspace, cells_of_row, plan

if TYPE_CHECKING:
    from toyworld.lab.store import Store

RESULTS_FILE = Path("benchmarks/RESULTS.md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the parser of `lab`."""
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"all, or of {', '.join(LABS)}; without one, a list")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=99, help="of each row only the first so many")
    parser.add_argument("--subjects", type=int, default=99, help="of each row only the first so many")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="only rows of these names")
    parser.add_argument("--minutes", type=float, help="start no new run after so many minutes")
    parser.add_argument(
        "--work", type=Path, default=Workspace().work, help="photos, pictures, logs (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say which runs there are to make")
    parser.add_argument("--table-only", action="store_true", help="only write tables and plots of what is there")


def run(args: argparse.Namespace) -> int:
    """Run what is not there yet, then write tables and plots. Returns the exit code: 1 where a cell failed."""
    from toyworld.lab.store import Store

    if args.workers < 1:
        raise UserError(f"--workers: {args.workers} is too few; at least 1")
    names, bench = names_of(args.names), Workspace(work=args.work)
    store = Store(bench.results)
    if args.table_only:
        show(bench, store)
        return 0
    if not names:
        print(overview(bench, store))
        return 0
    cells = plan(names, bench, args.only, args.subjects, args.seeds)
    if not cells:
        raise UserError(f"--only: no row of that name; there are {', '.join(rows_of(names))}")
    missing = [cell for cell in cells if store.get(cell) is None]
    if args.dry_run:
        print("\n".join([*map(str, missing), f"{len(missing)} of {len(cells)} cells to run"]))
        return 0
    return run_and_show(bench.frozen(), store, missing, args.workers, args.minutes)


def run_and_show(
    bench: Workspace, store: Store, cells: Sequence[Trial], num_workers: int, minutes: float | None
) -> int:
    """Run cells, then write tables and plots of all there is. Returns the exit code."""
    try:
        num_failed = run_cells(bench, store, cells, num_workers, minutes)
    except KeyboardInterrupt:
        print("the same command goes on from here; --table-only shows what there is", file=sys.stderr)
        raise
    show(bench, store)
    return 1 if num_failed else 0


def names_of(wanted: Sequence[str]) -> list[str]:
    """Raises UserError for a lab that there is not."""
    if unknown := [name for name in wanted if name not in (*LABS, "all")]:
        raise UserError(f"lab {unknown[0]!r} is not known; one of all, {', '.join(LABS)}")
    return list(LABS) if "all" in wanted else list(dict.fromkeys(wanted))


def rows_of(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(row.name for name in names for row in LABS[name].rows))


def overview(bench: Workspace, store: Store) -> str:
    """A line a lab: its name, what is asked, how far it is."""
    lines = []
    for name, lab in LABS.items():
        cells = [cell for row in lab.rows for cell in cells_of_row(name, row, bench)]
        done = sum(store.get(cell) is not None for cell in cells)
        lines.append(
            f"{name:10} {lab.title}: {' | '.join(row.name for row in lab.rows)} ({done} of {len(cells)} cells)"
        )
    return "\n".join(lines)


def run_cells(bench: Workspace, store: Store, cells: Sequence[Trial], num_workers: int, minutes: float | None) -> int:
    """Run cells and store each as it is done. Returns how many failed."""
    from toyworld.lab.pool import run_tasks
    from toyworld.lab.runs import run_cell

    start, failed = time.monotonic(), 0
    all_costs, done_costs = sum(cell.cost for cell in cells), 0.0
    may_start = functools.partial(_is_time_left, start, minutes)
    tasks = run_tasks(cells, functools.partial(run_cell, bench), num_workers, bench.work / "logs", may_start)
    with contextlib.closing(tasks):
        for number, done in enumerate(tasks, start=1):
            done_costs += done.task.cost
            minutes_left = (time.monotonic() - start) / 60 * (all_costs / done_costs - 1)
            if done.result is None:
                failed += 1
                print(f"FAILED {done.task}: {done.error}", file=sys.stderr, flush=True)
            else:
                store.add(done.task, done.result)
                told = f"{done.task}: {summary(done.result)}"
                print(f"[{number}/{len(cells)}, {minutes_left:.0f} min left] {told}", flush=True)
    return failed


def _is_time_left(start: float, minutes: float | None) -> bool:
    return minutes is None or time.monotonic() - start < 60 * minutes


def summary(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {format_figure(name, figures[name])}" for name in (*GOALS, "seconds_training"))


def show(bench: Workspace, store: Store) -> None:
    """Write tables and plots of everything that has been measured."""
    from toyworld.lab.report import refresh

    for path in refresh(bench, store, RESULTS_FILE):
        print(path)
