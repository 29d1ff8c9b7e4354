"""Run a training script and note when each optimizer step ends: `timed.py EVENTS.jsonl SCRIPT [arguments ...]`.

Beside them the process's own CPU seconds; on a GPU also the most memory that torch has held there so far.

The script runs as it lies on disk. Both sides of a comparison are timed by this, at the same place: the end of
`torch.optim.AdamW.step`, from one of which to the next lies a whole training step.
"""

import functools
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

START = time.perf_counter()

import torch  # noqa: E402


def note_steps(events: Path) -> None:
    """Write a line of seconds since the start whenever an AdamW step ends, but for a weight's own within backward."""
    step, under_way = torch.optim.AdamW.step, []

    @functools.wraps(step)
    def timed(*args: Any, **kwargs: Any) -> Any:
        under_way.append(step)
        try:
            result = step(*args, **kwargs)
        finally:
            under_way.pop()
        if under_way:
            return result
        event = {"seconds": 0.0, "cpu_seconds": time.process_time(), "gpu_bytes": 0}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            event["gpu_bytes"] = torch.cuda.max_memory_allocated()
        event["seconds"] = time.perf_counter() - START
        with open(events, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        return result

    torch.optim.AdamW.step = timed  # type: ignore[method-assign]


def let_torchvision_load() -> None:
    """Define two operators that the published torchvision, which is for a CUDA torch, misses beside a CPU torch."""
    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library  # what it defines goes with it


if __name__ == "__main__":
    events, script = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    note_steps(events)
    if script.name.startswith("train_dreambooth"):
        let_torchvision_load()
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
