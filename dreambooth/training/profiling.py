"""Profile a step: all of its time is attributed to one part or another (`train.py CONFIG --profile`)."""

import functools
import time
from collections import defaultdict
from collections.abc import Mapping
from statistics import median

from pytorch_lightning.profilers import Profiler

from dreambooth.devices import AUTO, find_device, synchronize

REST = "Lightning"
# Part of an action: the first whose text is in the action's name. Other actions count for the part around them.
PARTS = {
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "class samples": "class samples",
    "texts": "texts",
    "training_step": "forward",
    "backward": "backward",
    "configure_gradient_clipping": "clip",
    "optimizer_step": "optimizer",
    "lr_scheduler_step": "optimizer",
    "on_train_batch_end": "logging, saving",
}
NUM_WARM_UP = 2  # steps that do not count


class StepProfiler(Profiler):
    """Time the parts of a step. Lightning calls it when actions start and stop, which are nested; each part gets the
    time in which no other within it runs. On a GPU it synchronises at each change, so steps take a little longer.

    accumulate: batches a step.
    """

    def __init__(self, accumulate: int) -> None:
        super().__init__()
        self.accumulate = accumulate
        self.seconds: list[Mapping[str, float]] = []  # by part, of each batch
        self._batch: dict[str, float] = {}
        self._parts = [REST]
        self._device = find_device(AUTO)
        self._since = time.perf_counter()

    def start(self, action_name: str) -> None:
        part = _part_of(action_name)
        if part is None:
            return
        self._charge()
        if action_name.endswith("train_dataloader_next"):
            self._batch = defaultdict(float)
            self.seconds.append(self._batch)
        self._parts.append(part)

    def stop(self, action_name: str) -> None:
        if _part_of(action_name) is not None:
            self._charge()
            self._parts.pop()

    def _charge(self) -> None:
        synchronize(self._device)
        now = time.perf_counter()
        self._batch[self._parts[-1]] = self._batch.get(self._parts[-1], 0.0) + now - self._since
        self._since = now

    def steps(self) -> list[dict[str, float]]:
        """Return the seconds by part of each whole optimizer step after the first few."""
        whole = len(self.seconds) - len(self.seconds) % self.accumulate
        batches = [self.seconds[first : first + self.accumulate] for first in range(0, whole, self.accumulate)]
        parts = dict.fromkeys([*PARTS.values(), REST])
        return [{part: sum(each.get(part, 0.0) for each in own) for part in parts} for own in batches][NUM_WARM_UP:]

    def table(self) -> str:
        """Return Markdown: the median of each part in milliseconds, and its fraction of the time of all steps."""
        steps = self.steps()
        if not steps:
            return f"no profile: the first {NUM_WARM_UP} steps do not count, and there were no more"
        total = sum(sum(step.values()) for step in steps)
        rows = [f"| of {len(steps)} steps | median, ms | share of the time |", "|---|---|---|"]
        for part in steps[0]:
            taken = [step[part] for step in steps]
            rows.append(f"| {part} | {1000 * median(taken):.2f} | {sum(taken) / total:.1%} |")
        rows.append(f"| a whole step | {1000 * median(sum(step.values()) for step in steps):.2f} | |")
        return "\n".join(rows)


@functools.cache
def _part_of(action: str) -> str | None:
    return next((part for text, part in PARTS.items() if text in action), None)
