"""Run a sweep: tell what it takes, train the cells that are not finished, and write what came of them."""

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from dreambooth.errors import UserError, escaped
from dreambooth.files import read_text, write_text
from dreambooth.report.words import duration
from dreambooth.sweep import search
from dreambooth.sweep.folder import frozen_config, note_failure
from dreambooth.sweep.pool import Done
from dreambooth.sweep.reading import Sweep
from dreambooth.sweep.results import read_results, summary
from dreambooth.sweep.status import CellStatus, has_come_to, status_of
from dreambooth.sweep.tables import write
from dreambooth.sweep.worker import Outcome, Task

logger = logging.getLogger(__name__)
A_BUG = 1  # exit code of a process that an exception ended
MAX_DEATHS = 3  # of a cell's process, by a kill or for want of memory, before it counts as failed

Execute = Callable[[Sweep, Sequence[Task]], Generator[Done[Task, Outcome], None, None]]


@dataclass
class Session:
    """One session of a sweep. execute: trains tasks, and yields each as it is done."""

    sweep: Sweep
    execute: Execute
    failed: dict[str, int] = field(default_factory=dict)  # exit codes by cell
    deaths: dict[str, int] = field(default_factory=dict)

    def run(self) -> int:
        """Train until nothing is left. Returns 0, or the highest exit code of a cell that failed."""
        started, done_before = time.monotonic(), 0
        while tasks := self.next_tasks():
            with contextlib.closing(self.execute(self.sweep, tasks)) as running:
                for number, done in enumerate(running, start=1):
                    self.take(done)
                    left = (time.monotonic() - started) / (done_before + number) * (len(tasks) - number)
                    self.report(done, f"[{number}/{len(tasks)}, about {duration(left)} left]")
            done_before += len(tasks)
        write_results(self.sweep)
        return max(self.failed.values(), default=0)

    def next_tasks(self) -> list[Task]:
        """Return what is to be trained now."""
        return search.next_tasks(self.sweep, self.failed)

    def take(self, done: Done[Task, Outcome]) -> None:
        """Note how a task ended. A cell whose process was killed or stopped is tried again, from its state."""
        name, outcome = done.task.cell.name, done.result
        if outcome is not None:
            is_there = has_come_to(status_of(self.sweep, done.task.cell), done.task.until)
            if outcome.exit_code or not is_there:
                self.failed[name] = outcome.exit_code or 1
            return
        self.deaths[name] = self.deaths.get(name, 0) + 1
        if self.deaths[name] >= MAX_DEATHS or done.exit_code == A_BUG:
            self.failed[name] = 1
            note_failure(self.sweep, done.task.cell, 1, done.error)

    def report(self, done: Done[Task, Outcome], head: str) -> None:
        """Print a line about a task that ended."""
        name = done.task.cell.name
        if name in self.failed:
            error = done.error if done.result is None else done.result.error
            told = (error or "it ended, and is not finished").splitlines()[0]
            logger.error(f"{head} FAILED {name}: {told}")
        elif done.result is None:
            logger.warning(f"{head} {name}: {done.error}; it is tried again")
        else:
            print(f"{head} {in_a_line(status_of(self.sweep, done.task.cell))}", flush=True)


def write_results(sweep: Sweep) -> None:
    """Write the sweep's tables and page, and say where they are."""
    results = read_results(sweep, search.cells_of(sweep))
    paths = write(results)
    print("\n".join([summary(results), *map(str, paths)]))


def in_a_line(status: CellStatus) -> str:
    """Return a cell with its state and quality: "robot,lr=0.001: finished at step 240, quality 0.62 (step 160)"."""
    if status.quality is None:
        quality = ""
    else:
        kept = "" if status.kept_step is None else f" (step {status.kept_step})"
        quality = f", quality {status.quality:.2f}{kept}"
    at = f" at step {status.step}" if status.step else ""
    return (
        f"{status.cell.name}: {status.state}{at}{quality}{f': {status.error.splitlines()[0]}' if status.error else ''}"
    )


@contextlib.contextmanager
def locked(sweep: Sweep) -> Generator[Sweep, None, None]:
    """Hold the sweep for this process; yield it with the copy of its config, which nobody edits meanwhile.

    Raises UserError where another process has it.
    """
    sweep.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(sweep.folder / "lock", blocking=False):
            write_text(sweep.folder / "sweep.yaml", read_text(sweep.path))
            write_text(frozen_config(sweep), config_text(sweep))
            yield sweep.with_config(frozen_config(sweep))
    except Timeout as error:
        raise UserError(
            f"{escaped(sweep.folder)}: another process runs this sweep; wait for it, or choose another sweep.name"
        ) from error


def config_text(sweep: Sweep) -> str:
    """Return the text of the config that every cell starts from."""
    return read_text(Path(sweep.options.config))
