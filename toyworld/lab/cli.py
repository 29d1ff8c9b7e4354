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
from toyworld.lab.experiments import EXPERIMENTS
from toyworld.lab.metrics import GOALS, format_metric
from toyworld.lab.plan import Trial, Workspace, plan, trials_of

if TYPE_CHECKING:
    from toyworld.lab.store import Store

RESULTS_FILE = Path("benchmarks/RESULTS.md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the parser of `lab`."""
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help=f"experiments: all, or some of {', '.join(EXPERIMENTS)}; none: list them",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=99, help="run at most so many of each variant")
    parser.add_argument("--subjects", type=int, default=99, help="run at most so many of each variant")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="only variants of these names")
    parser.add_argument("--minutes", type=float, help="start no new run after so many minutes")
    parser.add_argument(
        "--work", type=Path, default=Workspace().work, help="photos, images, logs (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only list the runs that are missing")
    parser.add_argument("--table-only", action="store_true", help="only write tables and plots of the results so far")


def run(args: argparse.Namespace) -> int:
    """Run the missing trials, then write tables and plots. Returns the exit code: 1 where a trial failed."""
    from toyworld.lab.store import Store

    for option in ("workers", "seeds", "subjects"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option}={getattr(args, option)}: too few; at least 1")
    names, workspace = names_of(args.names), Workspace(work=args.work)
    store = Store(workspace.results)
    if args.table_only:
        show(workspace, store)
        return 0
    if not names:
        print(overview(workspace, store))
        return 0
    known = variants_of(names)
    if unknown := [name for name in args.only if name not in known]:
        raise UserError(f"--only={unknown[0]}: no such variant in the experiments; one of {', '.join(known)}")
    trials = plan(names, workspace, args.only, args.subjects, args.seeds)
    missing = [trial for trial in trials if store.get(trial) is None]
    if args.dry_run:
        print("\n".join([*map(str, missing), f"{len(missing)} of {len(trials)} trials to run"]))
        return 0
    return run_and_show(workspace.frozen(), store, missing, args.workers, args.minutes)


def run_and_show(
    workspace: Workspace, store: Store, trials: Sequence[Trial], num_workers: int, minutes: float | None
) -> int:
    """Run trials, then write tables and plots of all results. Returns the exit code."""
    try:
        num_failed = run_trials(workspace, store, trials, num_workers, minutes)
    except KeyboardInterrupt:
        print(
            "stopped; run the same command to continue, or with --table-only to see the results so far", file=sys.stderr
        )
        raise
    show(workspace, store)
    return 1 if num_failed else 0


def names_of(chosen: Sequence[str]) -> list[str]:
    """Return the names of the chosen experiments. Raises UserError for one that does not exist."""
    if unknown := [name for name in chosen if name not in (*EXPERIMENTS, "all")]:
        raise UserError(f"NAME={unknown[0]}: no such experiment; one of all, {', '.join(EXPERIMENTS)}")
    return list(EXPERIMENTS) if "all" in chosen else list(dict.fromkeys(chosen))


def variants_of(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(variant.name for name in names for variant in EXPERIMENTS[name].variants))


def overview(workspace: Workspace, store: Store) -> str:
    """Return one line for each experiment: its name, its question, how much of it has been run."""
    lines = []
    for name, experiment in EXPERIMENTS.items():
        variants = " | ".join(variant.name for variant in experiment.variants)
        trials = [trial for variant in experiment.variants for trial in trials_of(name, variant, workspace)]
        done = sum(store.get(trial) is not None for trial in trials)
        lines.append(f"{name:10} {experiment.title}: {variants} ({done} of {len(trials)} trials)")
    return "\n".join(lines)


def run_trials(
    workspace: Workspace, store: Store, trials: Sequence[Trial], num_workers: int, minutes: float | None
) -> int:
    """Run trials and store each as it is done. Returns how many failed."""
    from dreambooth.sweep.pool import ONE_THREAD, run_tasks
    from toyworld.lab.runs import run_trial

    start, failed = time.monotonic(), 0
    all_costs, done_costs = sum(trial.cost for trial in trials), 0.0
    may_start = functools.partial(_is_time_left, start, minutes)
    handle, logs = functools.partial(run_trial, workspace), workspace.work / "logs"
    tasks = run_tasks(trials, handle, [ONE_THREAD] * num_workers, logs, may_start)
    with contextlib.closing(tasks):
        for number, done in enumerate(tasks, start=1):
            done_costs += done.task.cost
            minutes_left = (time.monotonic() - start) / 60 * (all_costs / done_costs - 1)
            if done.result is None:
                failed += 1
                print(f"FAILED {done.task}: {done.error}", file=sys.stderr, flush=True)
            else:
                store.add(done.task, done.result)
                line = f"{done.task}: {summary(done.result)}"
                print(f"[{number}/{len(trials)}, {minutes_left:.0f} min left] {line}", flush=True)
    return failed


def _is_time_left(start: float, minutes: float | None) -> bool:
    return minutes is None or time.monotonic() - start < 60 * minutes


def summary(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {format_metric(name, metrics[name])}" for name in (*GOALS, "seconds_training"))


def show(workspace: Workspace, store: Store) -> None:
    """Write tables and plots of everything that has been measured."""
    from toyworld.lab.report import refresh

    for path in refresh(workspace, store, RESULTS_FILE):
        print(path)
