"""The record of who trained when: `logs/sessions.jsonl`, a line a process."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from dreambooth.devices import device_name, peak_bytes
from dreambooth.distributed import is_first
from dreambooth.training.validation import Validate


@contextlib.contextmanager
def record_session(path: Path, trainer: pl.Trainer, first_step: int) -> Iterator[None]:
    """Add a line to logs/sessions.jsonl: when this process trained, how long, which steps, in how much memory.

    path: of that file. first_step: that the run goes on from; 0 for a new one.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        yield
    finally:
        session = {
            "started": started.isoformat(timespec="seconds"),
            "first_step": first_step,
            "last_step": trainer.global_step,
            "seconds": round(time.monotonic() - clock, 1),
            **costs(trainer),
        }
        if is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(session) + "\n")


def costs(trainer: pl.Trainer) -> dict[str, Any]:
    """Return time, memory and device of this process so far, and the number of processes."""
    validations = [each for each in trainer.callbacks if isinstance(each, Validate)]  # type: ignore[attr-defined]
    device = trainer.strategy.root_device
    peak = peak_bytes(device)
    return {
        "validation_seconds": round(sum(each.seconds for each in validations), 1),
        "peak_memory_mib": (peak_resident_bytes() if peak is None else peak) // 2**20,
        "device": device_name(device),
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
