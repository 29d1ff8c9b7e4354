"""How far a task is: a bar on the last line of a terminal, or plain lines every few seconds where there is none.

What is printed meanwhile stands above the bar: `console` takes the line away, prints, and shows it again.
"""

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from time import monotonic

COLUMNS = 120  # at most, of a wider terminal
MIN_BAR, MAX_BAR = 6, 30  # characters of the bar
SECONDS_BETWEEN_BARS = 0.1
SECONDS_BETWEEN_LINES = (5.0, 60.0)  # at first, and of a task that takes hours
LINES = 50  # of a task, once its lines come less often

PROGRESS_LINE = re.compile(r"^(\w[\w ]*?) +(\d{1,3})% (.*)$", re.MULTILINE)  # of `progress_line`
TIME_LEFT = re.compile(r"(?:(\d+):)?(\d+):(\d\d) left")

ERASE = "\r\x1b[K"


class StatusLine:
    """Keep the last line of the terminal on stderr."""

    def __init__(self) -> None:
        self._text = ""

    def __enter__(self) -> "StatusLine":
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Put a text in the place of the one that stands there."""
        self._text = text
        sys.stderr.write(ERASE + text)
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave an empty line."""
        if self._text:
            self._text = ""
            sys.stderr.write(ERASE)
            sys.stderr.flush()

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Make room for lines that are printed within; they stand above the line, which comes back."""
        text = self._text
        self.clear()
        yield
        if text:
            self.show(text)


STATUS_LINE = StatusLine()


class ProgressDisplay:
    """Show how far a task is, as often as one can read it.

    write_line: prints a plain line, where stderr is no terminal. seconds: between two bars.
    """

    def __init__(self, task: str, write_line: Callable[[str], object], seconds: float = SECONDS_BETWEEN_BARS) -> None:
        self._task = task
        self._write_line = write_line
        self._seconds = seconds
        self._is_terminal = sys.stderr.isatty()
        self._started = monotonic()
        self._shown_at = 0.0 if self._is_terminal else self._started
        self.is_shown = False  # whether anything was shown yet
        self._first: tuple[float, float] | None = None  # the fraction that was done when the first one came, and when

    def is_due(self, fraction: float) -> bool:
        """Return whether it is time to show something, with this part of the task done (0 to 1)."""
        now = monotonic()
        self._first = self._first or (fraction, now)
        at_first, at_most = SECONDS_BETWEEN_LINES
        between_lines = min(max(at_first, (now - self._started) / LINES), at_most)
        return now - self._shown_at >= (self._seconds if self._is_terminal else between_lines)

    def time_left(self, fraction: float) -> str | None:
        """Return '0:41 left'; None where it is not known yet."""
        speed = self._speed(fraction)
        return f"{clock((1 - fraction) / speed)} left" if speed else None

    def rate(self, fraction: float, num_units: int, unit: str) -> str | None:
        """Return '2.31 steps/s' of a task of `num_units` steps; None where it is not known yet."""
        speed = self._speed(fraction)
        return f"{speed * num_units:.2f} {unit}" if speed else None

    def _speed(self, fraction: float) -> float:
        """Return the part of the task that was done in a second; 0: not known yet."""
        first, then = self._first or (fraction, 0.0)
        seconds = monotonic() - then
        return (fraction - first) / seconds if seconds else 0.0

    def show(self, fraction: float, parts: Sequence[str | None]) -> None:
        """Show a fraction (0 to 1) with what belongs to it, the most important part first; None is left out."""
        texts = [part for part in parts if part is not None]
        self._shown_at, self.is_shown = monotonic(), True
        if self._is_terminal:
            columns = min(COLUMNS, shutil.get_terminal_size().columns) - 1
            STATUS_LINE.show(progress_bar(self._task, fraction, texts, columns))
        else:
            self._write_line(progress_line(self._task, fraction, texts))


def progress_bar(task: str, fraction: float, parts: Sequence[str], columns: int) -> str:
    """Return 'sampling  42% [########      ] image 5/12, step 7/25, 0:41 left' with as many parts as fit, whole."""
    head = _head(task, fraction)
    for number in range(len(parts), 0, -1):
        text = ", ".join(parts[:number])
        width = min(MAX_BAR, columns - len(head) - len(text) - len(" [] "))
        if width >= MIN_BAR:
            filled = int(fraction * width)
            return f"{head} [{'#' * filled}{' ' * (width - filled)}] {text}"
    return head if len(head) <= columns else ""


def progress_line(task: str, fraction: float, parts: Sequence[str]) -> str:
    """Return 'sampling  42% image 5/12, step 7/25, 0:41 left'."""
    return f"{_head(task, fraction)} {', '.join(parts)}"


def _head(task: str, fraction: float) -> str:
    return f"{task} {int(100 * fraction):3}%"


def read_progress_line(text: str) -> tuple[str, float, str, float | None] | None:
    """Return task, fraction, the rest and the seconds left from the last line of progress in a log; None without one.

    The inverse of `progress_line`, for whoever watches a command by what it has said.
    """
    lines = list(PROGRESS_LINE.finditer(text))
    if not lines:
        return None
    found = lines[-1]
    left = TIME_LEFT.search(found[3])
    seconds = None
    if left is not None:
        hours, minutes, rest = (int(part or 0) for part in left.groups())
        seconds = 3600.0 * hours + 60 * minutes + rest
    return found[1], int(found[2]) / 100, found[3], seconds


def clock(seconds: float) -> str:
    """Return a duration as 0:41 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
