"""Tasks over several processes, each of which imports once and handles many.

A worker that dies, by an exception, for want of memory or by a kill, takes only its task with it: a fresh one takes its
place. Workers end by themselves when the parent is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Task, Result]):
    """A task that was handled, or why it was not."""

    task: Task
    result: Result | None
    error: str = ""


def run_tasks(
    tasks: Sequence[Task],
    handle: Callable[[Task], Result],
    num_workers: int,
    logs: Path,
    may_start: Callable[[], bool] = lambda: True,
) -> Generator[Done[Task, Result], None, None]:
    """Handle each task in one of `num_workers` processes; yield each as it is done.

    handle: a function that can be pickled; what it prints goes to a file in `logs`. may_start: asked before each task.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(tasks)
    workers = [_Worker(handle, logs / f"worker-{number}.log") for number in range(min(num_workers, len(waiting)))]
    busy: dict[_Worker, Task] = {}
    try:
        for worker in workers:
            if may_start():
                busy[worker] = _give(worker, waiting)
        while busy:
            for worker in _ready(busy):
                task = busy.pop(worker)
                yield Done(task, *worker.take())
                if waiting and may_start():
                    busy[worker] = _give(worker, waiting)
    finally:
        for worker in workers:
            worker.end(at_once=worker in busy)


def _give(worker: _Worker, waiting: list[Any]) -> Any:
    task = waiting.pop(0)
    with contextlib.suppress(OSError):  # it died while it had nothing to do; `take` will tell
        worker.connection.send(task)
    return task


def _ready(busy: dict[_Worker, Any]) -> list[_Worker]:
    by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in busy}
    return [by_connection[connection] for connection in wait(list(by_connection))]


class _Worker:
    """A process that takes tasks and returns results over a pipe; started again when it died."""

    def __init__(self, handle: Callable[[Any], Any], log: Path) -> None:
        self.handle = handle
        self.log = log
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(self.handle, theirs, self.log), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()  # so that the worker's end is the only one, and its death is seen here

    def take(self) -> tuple[Any, str]:
        """Return the result and no error, or None and the error of a worker that died."""
        try:
            return self.connection.recv(), ""
        except (EOFError, ConnectionResetError):
            self.process.join()
            lines = self.log.read_text(errors="replace").strip().splitlines()
            error = f"exit code {self.process.exitcode}: {lines[-1] if lines else 'no output'} ({self.log})"
            self._start()
            return None, error

    def end(self, at_once: bool) -> None:
        """End the process: at once by a kill, else by closing its pipe when it is idle."""
        if at_once:
            self.process.kill()
        self.connection.close()
        self.process.join()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Set one thread for the libraries that a worker loads: cores are shared out among processes."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _serve(handle: Callable[[Any], Any], connection: Connection, log: Path) -> None:
    """Handle tasks until the parent closes the pipe.

    The worker has a process group of its own: Ctrl-C in a terminal is for the parent, which then ends its workers.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    with open(log, "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    with contextlib.suppress(EOFError):  # the parent is gone
        while True:
            connection.send(handle(connection.recv()))
