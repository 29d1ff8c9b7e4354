"""How far sampling is, on stderr."""

import sys
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from dreambooth.status_line import STATUS_LINE, ProgressDisplay

if TYPE_CHECKING:
    from dreambooth.generation.images import Progress


class SamplingBar:
    """Show `generation.images.Progress` on stderr; `print` writes lines to stdout above the bar."""

    def __init__(self) -> None:
        self._displays: dict[str, ProgressDisplay] = {}  # by task

    def __enter__(self) -> "SamplingBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        STATUS_LINE.clear()

    def __call__(self, progress: "Progress") -> None:
        """Show how far sampling is, unless that was done a moment ago."""
        if progress.task not in self._displays:
            self._displays[progress.task] = ProgressDisplay(progress.task, partial(print, file=sys.stderr, flush=True))
        display = self._displays[progress.task]
        if display.is_due(progress.fraction):
            number = min(progress.images + progress.batch_size, progress.num_images)
            step = f"step {progress.step}/{progress.num_steps}" if progress.num_steps else None
            parts = [f"image {number}/{progress.num_images}", step, display.time_left(progress.fraction)]
            display.show(progress.fraction, parts)

    def print(self, line: object) -> None:
        """Print a line where the bar was."""
        STATUS_LINE.clear()
        print(line, flush=True)
