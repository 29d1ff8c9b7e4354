"""Batches of a training that other processes make some steps ahead, so that a GPU does not wait for a renderer."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import multiprocessing  # passes tensors through shared memory

T = TypeVar("T")
STEPS_AHEAD = 2  # of each process
MAX_PROCESSES = 8
SECONDS_TO_END = 30.0  # at most, that leaving waits for each batch that is being made


class Ahead(Generic[T]):
    """Call `make(step)` for one step after another: for a GPU ahead of time in other processes, for a CPU at once.

    A context manager: leaving it ends the processes.
    """

    def __init__(self, make: Callable[[int], T], device: str) -> None:
        self.make = make
        self.num_processes = 0 if device == "cpu" else min(MAX_PROCESSES, os.cpu_count() or 1)
        self.pool: Any = None
        self.pending: deque[Any] = deque()
        self.next_step = -1

    def __enter__(self) -> Ahead[T]:
        if self.num_processes:
            # Forked beside torch's threads a process may hang, hence "spawn".
            context = multiprocessing.get_context("spawn")
            self.pool = context.Pool(self.num_processes, torch.set_num_threads, (1,))
        return self

    def __exit__(self, *exception: object) -> None:
        if self.pool is not None:
            for result in self.pending:  # `terminate` now and then fails while some are under way
                result.wait(SECONDS_TO_END)
            self.pool.terminate()

    def __call__(self, step: int) -> T:
        """Return make(step). The next call has to be for the next step."""
        if self.pool is None:
            return self.make(step)
        if not self.pending:
            self.next_step = step
        while len(self.pending) < STEPS_AHEAD * self.num_processes:
            self.pending.append(self.pool.apply_async(self.make, (self.next_step,)))
            self.next_step += 1
        made: T = self.pending.popleft().get()
        return made
