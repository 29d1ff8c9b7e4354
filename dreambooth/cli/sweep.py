"""`sweep SWEEP.yaml`, `sweep status SWEEP.yaml`, `sweep report SWEEP.yaml`: many runs from one file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.cli import loading_libraries
from dreambooth.errors import UserError
from dreambooth.sweep import Sweep, load_sweep
from dreambooth.sweep.reading import describe_sections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.sweep.cells import Cell
    from dreambooth.sweep.session import Execute


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=["run", "status", "report"],
        default="run",
        help="run (default): train the cells that are not finished; status: how far each is; report: write the tables "
        "and the page of what there is now",
    )
    parser.add_argument("sweep", metavar="SWEEP.yaml", type=Path, help="the sweep file, or a sweep's folder")
    parser.add_argument(
        "--on",
        choices=["local", "slurm"],
        default="local",
        help="where to train: on this machine (default), or as jobs of a SLURM cluster (extra 'slurm')",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="cells at a time on this machine (default: one a GPU; on a CPU as many as fit its cores)",
    )
    parser.add_argument("--plan", action="store_true", help="only say what it takes: cells, time, disk")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"keys of a sweep file:\n\n{describe_sections()}"


def run(args: argparse.Namespace) -> int:
    sweep = load_sweep(args.sweep)
    if args.action == "run":
        return train(sweep, args.on, args.workers, args.plan)
    with loading_libraries():
        from dreambooth.sweep import search, session
        from dreambooth.sweep.status import read_status

    if args.action == "report":
        session.write_results(sweep)
        return 0
    for status in read_status(sweep, search.cells_of(sweep)):
        print(session.in_a_line(status))
    return 0


def train(sweep: Sweep, place: str, num_workers: int | None, only_plan: bool) -> int:
    with loading_libraries():
        from dreambooth.cli.sweep_plan import prepare
        from dreambooth.sweep.session import Session, locked

    execute, at_a_time = _executor(sweep, place, num_workers)
    prepare(sweep, at_a_time)
    if only_plan:
        return 0
    with locked(sweep) as frozen:
        return Session(frozen, execute).run()


def _executor(sweep: Sweep, place: str, num_workers: int | None) -> "tuple[Execute, int]":
    """Return what trains cells at a place, and how many at a time."""
    from dreambooth import engine
    from dreambooth.sweep import local, search

    planned = search.planned_cells(sweep)
    train = sweep.config_of(planned[0]).train
    if train.memory == "auto":
        raise UserError("train.memory=auto: is for a run of its own; in a sweep name the settings that `plan` lists")
    if place == "slurm":
        from dreambooth.sweep import slurm  # names signals that Windows has not

        slurm.check(sweep)
        return lambda own, tasks: slurm.run_on_slurm(own, engine.train, tasks), sweep.slurm.parallel
    check_workers(sweep, planned)
    workers = local.environments(num_workers, train.device, train.num_threads)
    return lambda own, tasks: local.run_here(own, engine.train, tasks, workers), len(workers)


def check_workers(sweep: Sweep, cells: "Sequence[Cell]") -> None:
    """Raise UserError where cells that are trained on this machine would start processes, as their own cannot."""
    key = "data.num_workers"
    named = [cell.point.settings[key] for cell in cells if key in cell.point.settings]
    unnamed = [cell for cell in cells if key not in cell.point.settings]
    numbers = [*named, *(sweep.config_of(cell).data.num_workers for cell in unnamed[:1])]
    if more := [number for number in numbers if number]:
        raise UserError(f"{key}={more[0]}: a cell on this machine starts no processes; set it to 0")
