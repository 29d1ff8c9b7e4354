"""Train the cells of a sweep on this machine: one worker a GPU, or a share of the cores each."""

import functools
import os
import signal
from collections.abc import Generator, Sequence

import torch

from dreambooth.errors import UserError
from dreambooth.sweep.pool import Done, Environment, run_tasks
from dreambooth.sweep.reading import Sweep
from dreambooth.sweep.worker import Outcome, Task, Train, train_cell


def environments(num_workers: int | None, device: str, num_threads: int | None) -> list[Environment]:
    """Return the environment of each worker: its GPU or, on a CPU, its number of threads.

    num_workers: None: one a GPU; on a CPU as many as fit beside each other. device, num_threads: of the cells' config.
    Raises UserError for a number that is too small.
    """
    if num_workers is not None and num_workers < 1:
        raise UserError(f"--workers={num_workers}: must be at least 1")
    gpus = visible_gpus() if device != "cpu" else []
    if gpus:
        count = num_workers or len(gpus)
        return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(count)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = num_workers or max(1, cores // (num_threads or cores))
    return [{"OMP_NUM_THREADS": str(num_threads or max(1, cores // count))} for _ in range(count)]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not torch.cuda.is_available():
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def run_here(
    sweep: Sweep, train: Train, tasks: Sequence[Task], workers: Sequence[Environment]
) -> Generator[Done[Task, Outcome], None, None]:
    """Train cells on this machine; yield each as it is done. Closed early, the workers save their states first."""
    handle = functools.partial(train_cell, sweep, train)
    return run_tasks(tasks, handle, workers, sweep.folder / "workers", end_signal=signal.SIGTERM)
