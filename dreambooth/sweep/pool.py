"""Tasks over several processes, each of which imports once and handles many.

A worker that dies, by an exception, for want of memory or by a kill, takes only its task with it: a fresh one takes its
place. Workers end by themselves when the parent is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Environment = Mapping[str, str]
ONE_THREAD: Environment = {"OMP_NUM_THREADS": "1"}  # cores are shared out among processes
PR_SET_PDEATHSIG = 1
AT_ONCE = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has no kill


@dataclass(frozen=True)
class Done(Generic[Task, Result]):
    """A task that was handled, or why it was not. exit_code: of a worker that died, minus the signal for a kill."""

    task: Task
    result: Result | None
    error: str = ""
    exit_code: int = 0


def run_tasks(
    tasks: Sequence[Task],
    handle: Callable[[Task], Result],
    environments: Sequence[Environment],
    logs: Path,
    may_start: Callable[[], bool] = lambda: True,
    end_signal: int = AT_ONCE,
) -> Generator[Done[Task, Result], None, None]:
    """Handle each task in one of several processes; yield each as it is done.

    handle: a function that can be pickled; what it prints goes to a file in `logs`. environments: the environment
    variables of each process, one entry a process. may_start: asked before each task. end_signal: ends a process that
    is busy when this generator is closed, or when this process dies; SIGTERM lets it save first.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(tasks)
    workers = [
        _Worker(handle, logs / f"worker-{number}.log", environment, end_signal)
        for number, environment in enumerate(environments[: len(waiting)])
    ]
    busy: dict[_Worker, Task] = {}
    try:
        for worker in workers:
            if may_start():
                busy[worker] = _give(worker, waiting)
        while busy:
            for worker in _ready(busy):
                task = busy.pop(worker)
                yield worker.take(task)
                if waiting and may_start():
                    busy[worker] = _give(worker, waiting)
    finally:
        for worker in busy:
            worker.tell_to_end()
        for worker in workers:
            worker.join()


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

    def __init__(self, handle: Callable[[Any], Any], log: Path, environment: Environment, end_signal: int) -> None:
        self.handle = handle
        self.log = log
        self.environment = environment
        self.end_signal = end_signal
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        serve = (self.handle, theirs, self.log, self.end_signal)
        self.process: BaseProcess = context.Process(target=_serve, args=serve, daemon=True)
        with _set(self.environment):
            self.process.start()
        theirs.close()  # so that the worker's end is the only one, and its death is seen here

    def take(self, task: Any) -> Done[Any, Any]:
        """Return the task with its result, or with the error of a worker that died."""
        try:
            return Done(task, self.connection.recv())
        except (EOFError, ConnectionResetError):
            self.process.join()
            lines = self.log.read_text(errors="replace").strip().splitlines()
            code = int(self.process.exitcode or 0)
            self._start()
            return Done(task, None, f"exit code {code}: {lines[-1] if lines else 'no output'} ({self.log})", code)

    def tell_to_end(self) -> None:
        """Send the signal that ends a busy process."""
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, self.end_signal)

    def join(self) -> None:
        """Close the pipe, which ends an idle process, and wait for the end."""
        self.connection.close()
        self.process.join()


@contextlib.contextmanager
def _set(environment: Environment) -> Iterator[None]:
    """Set environment variables for the libraries that a worker loads, and restore them."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(handle: Callable[[Any], Any], connection: Connection, log: Path, end_signal: int) -> None:
    """Handle tasks until the parent closes the pipe.

    The worker has a process group of its own: Ctrl-C in a terminal is for the parent, which then ends its workers.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    _end_with_parent(end_signal)
    with open(log, "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):  # the parent is gone
        while True:
            connection.send(handle(connection.recv()))


def _end_with_parent(end_signal: int) -> None:
    """Ask the system to send this process a signal when its parent dies. Linux only; elsewhere it ends its task."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, end_signal)
