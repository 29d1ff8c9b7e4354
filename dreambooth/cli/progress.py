"""How far sampling is, on the terminal: a bar that fits 80 columns, or plain lines where there is no terminal."""

import shutil
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreambooth.generation.images import Progress

BAR_WIDTH = 20
COLUMNS = 80
SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_BARS = 0.1


class SamplingBar:
    """Shows `generation.images.Progress` on stderr; `print` writes lines to stdout above the bar."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: float | None = None  # the fraction that was done when the first progress came
        self._shown_at = 0.0 if sys.stderr.isatty() else self._started
        self._is_shown = False

    def __enter__(self) -> "SamplingBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clear()

    def __call__(self, progress: "Progress") -> None:
        """Show how far sampling is, unless that was done a moment ago."""
        now, is_terminal = time.monotonic(), sys.stderr.isatty()
        self._first = progress.fraction if self._first is None else self._first
        if now - self._shown_at < (SECONDS_BETWEEN_BARS if is_terminal else SECONDS_BETWEEN_LINES):
            return
        self._shown_at = now
        line = bar_line(progress, self._seconds_left(progress, now), BAR_WIDTH if is_terminal else 0)
        if is_terminal:
            columns = min(COLUMNS, shutil.get_terminal_size().columns) - 1
            sys.stderr.write("\r\x1b[K" + line[:columns])
            sys.stderr.flush()
            self._is_shown = True
        else:
            print(line, file=sys.stderr, flush=True)

    def _seconds_left(self, progress: "Progress", now: float) -> float | None:
        done = progress.fraction - (self._first or 0.0)
        return (now - self._started) * (1 - progress.fraction) / done if done > 0 else None

    def clear(self) -> None:
        """Take the bar off the terminal; the next progress shows it again."""
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._is_shown = False

    def print(self, line: object) -> None:
        """Print a line where the bar was."""
        self.clear()
        print(line, flush=True)


def bar_line(progress: "Progress", seconds_left: float | None, width: int) -> str:
    """Return progress as one line: 'sampling  42% [########            ] image 5/12, step 7/25, 0:41 left'."""
    filled = int(progress.fraction * width)
    bar = f" [{'#' * filled}{' ' * (width - filled)}]" if width else ""
    step = f", step {progress.step}/{progress.num_steps}" if progress.num_steps else ""
    left = "" if seconds_left is None else f", {clock(seconds_left)} left"
    number = min(progress.images + progress.batch_size, progress.num_images)
    return f"{progress.task} {progress.fraction:4.0%}{bar} image {number}/{progress.num_images}{step}{left}"


def clock(seconds: float) -> str:
    """Return a duration as 0:41 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
