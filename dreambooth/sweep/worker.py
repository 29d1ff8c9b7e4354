"""Train one cell of a sweep in this process: an ordinary run, with the inputs that cells have in common."""

import functools
import gc
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from dreambooth import report
from dreambooth.build import SharedInputs
from dreambooth.config import Config
from dreambooth.console import command_output
from dreambooth.devices import release_memory
from dreambooth.errors import DreamBoothError, UserError
from dreambooth.run.folder import RunFolder
from dreambooth.sweep.cells import Cell
from dreambooth.sweep.folder import beat, frozen_config, note_failure, running_file
from dreambooth.sweep.reading import Sweep
from dreambooth.sweep.status import has_come_to, status_of
from dreambooth.training.progress import TrainProgress

logger = logging.getLogger(__name__)
WAIT_FOR_LOCK_S = 300  # for a process of an earlier session that still saves
Train = Callable[..., int]  # as `engine.train`, which stands beside this package, not below it
BEAT_S = 10  # seconds between two signs of life


@dataclass(frozen=True)
class Task:
    """Hold a cell to train. until: stop once this step is validated; None: train to the end."""

    cell: Cell
    until: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Hold how a cell's session ended. exit_code: as of `train`; 0 also for one that has come to `until`."""

    exit_code: int
    seconds: float
    error: str = ""


def train_cell(sweep: Sweep, train: Train, task: Task) -> Outcome:
    """Train a cell, or go on training it. A mistake of the user and the like is in the outcome, and on disk.

    train: `engine.train`.
    Raises SystemExit with 128 + signal where a signal stopped it, with its state saved.
    """
    started, cell = time.monotonic(), task.cell
    with command_output():
        logger.info(f"\n{cell.name}")
        outcome = _outcome(sweep, train, task, started)
    note_failure(sweep, cell, outcome.exit_code, outcome.error)
    running_file(sweep, cell).unlink(missing_ok=True)
    gc.collect()
    release_memory()
    return outcome


def _outcome(sweep: Sweep, train: Train, task: Task, started: float) -> Outcome:
    try:
        config = replace(sweep, reported=set()).config_of(task.cell, frozen_config(sweep))  # its log says all of it
        run = RunFolder(config)
        wait_until_free(run)
        is_there = has_come_to(status_of(sweep, task.cell), task.until)
        code = 0 if is_there else _train(sweep, train, task, config)
    except DreamBoothError as error:
        return Outcome(error.exit_code, time.monotonic() - started, str(error))
    if code:
        running_file(sweep, task.cell).unlink(missing_ok=True)
        raise SystemExit(code)
    return Outcome(0, time.monotonic() - started)


def _train(sweep: Sweep, train: Train, task: Task, config: Config) -> int:
    """Train until the step that is asked for. Returns 0, or 128 + signal where a signal came."""
    stopped_here, beat_at = False, 0.0

    def on_progress(progress: TrainProgress) -> bool:
        nonlocal stopped_here, beat_at
        if time.monotonic() - beat_at > BEAT_S:
            beat(sweep, task.cell)
            beat_at = time.monotonic()
        # A run that is told to stop does not validate that step, so it takes one more.
        stopped_here = task.until is not None and progress.step > task.until and progress.step < progress.max_steps
        return not stopped_here

    beat(sweep, task.cell)
    code = train(config, on_progress=on_progress, shared=shared_inputs(sweep.folder))
    if code == 0:
        report.build_or_warn(RunFolder(config).path)
    return 0 if stopped_here and code == 128 + signal.SIGINT else code


@functools.cache
def shared_inputs(folder: Path) -> SharedInputs:
    """Return this process's inputs that the cells of a sweep share."""
    return SharedInputs(folder / "shared")


def wait_until_free(run: RunFolder) -> None:
    """Wait while another process holds the run's lock. Raises UserError if it keeps it."""
    if not run.lock.parent.is_dir():
        return
    try:
        with FileLock(run.lock, timeout=WAIT_FOR_LOCK_S):
            return
    except Timeout as error:
        raise UserError(f"{run.path}: another process trains in this folder; wait for it, or stop it") from error
