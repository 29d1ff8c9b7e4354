"""The record of who trained when: `logs/sessions.jsonl`, a line a process."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytorch_lightning as pl
import torch

from dreambooth.distributed import is_first
from dreambooth.run.folder import RunFolder
from dreambooth.training.checkpointing import FoundState
from dreambooth.training.validation import Validate


@contextlib.contextmanager
def record_session(run: RunFolder, trainer: pl.Trainer, state: FoundState | None) -> Iterator[None]:
    """Add a line to logs/sessions.jsonl: when this process trained, how long, which steps, in how much memory."""
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        yield
    finally:
        session = {
            "started": started.isoformat(timespec="seconds"),
            "first_step": 0 if state is None else state.step,
            "last_step": trainer.global_step,
            "seconds": round(time.monotonic() - clock, 1),
            **costs(trainer),
        }
        if is_first():
            run.logs.mkdir(parents=True, exist_ok=True)
            with open(run.sessions, "a", encoding="utf-8") as file:
                file.write(json.dumps(session) + "\n")


def costs(trainer: pl.Trainer) -> dict[str, Any]:
    """Return time, memory and device of this process so far, and the number of processes."""
    validations = [each for each in trainer.callbacks if isinstance(each, Validate)]  # type: ignore[attr-defined]
    on_gpu = torch.cuda.is_available() and trainer.strategy.root_device.type == "cuda"
    return {
        "validation_seconds": round(sum(each.seconds for each in validations), 1),
        "peak_memory_mib": (torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()) // 2**20,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "processes": trainer.world_size,
    }


def peak_resident_bytes() -> int:
    """Return the most memory that this process has held so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
