"""The loader of training's batches, whose workers, where any are asked for, are started and not forked.

A fork beside other threads, such as those of PyTorch, TensorBoard or a notebook, can hang: it copies locks that nobody
there will open. A started worker imports what it needs, a few seconds, and gets the latents in shared memory.
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from dreambooth.data.latents import LatentDataset, ResumableBatchSampler, Sample

# What ends a run with its state saved: Ctrl-C, the system, and a cluster whose time limit comes near (not on Windows).
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


class BatchLoader(DataLoader[Sample]):
    """Load endless batches, lists of samples, from the batch that `order` begins with.

    num_workers: processes that load; 0: this one. They draw the same samples.
    """

    def __init__(self, samples: LatentDataset, order: ResumableBatchSampler, num_workers: int) -> None:
        super().__init__(
            samples,
            batch_sampler=order,
            collate_fn=list,
            num_workers=num_workers,
            multiprocessing_context="spawn" if num_workers else None,
            worker_init_fn=ignore_interrupts,
        )

    def __iter__(self) -> Any:
        with interrupts_wait():
            return super().__iter__()


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Hold back the signals of INTERRUPTS in this block; the processes that it starts never get them.

    Windows cannot: there a worker ignores them once it has started.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_interrupts(worker: int) -> None:
    """Ignore signals in a loader worker: the step under way still needs its batches.

    A terminal or a cluster signals workers too. They end when the main process closes the loader, or notice by
    themselves that it is gone.
    """
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
