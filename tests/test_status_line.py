"""The bar on a terminal's last line, and plain lines where there is none: readable, whole, often enough."""

import io
import itertools
import logging
import sys

import pytest

from dreambooth.cli.progress import SamplingBar
from dreambooth.console import ConsoleHandler, command_output
from dreambooth.generation.images import Progress
from dreambooth.status_line import STATUS_LINE, ProgressDisplay, clock, progress_bar, progress_line, read_progress_line

TRAINING = ["step 1000/12000", "10:02:03 left", "loss 0.1234", "lr 1.0e-04", "12.34 steps/s"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """Return the lines that are seen; a carriage return and ESC [K empty the one that is written."""
        return [line.rpartition("\r\x1b[K")[2] for line in self.getvalue().split("\n")]


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal of 80 columns; within a test, as pytest takes stderr back after a fixture."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    return screen


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved on by a test."""
    now = [100.0]
    monkeypatch.setattr("dreambooth.status_line.monotonic", lambda: now[0])
    return now


def test_at_80_columns_the_bar_of_training_has_step_time_loss_and_rate() -> None:
    line = progress_bar("training", 1 / 2, TRAINING, 79)
    assert line == "training  50% [###    ] step 1000/12000, 10:02:03 left, loss 0.1234, lr 1.0e-04"


def test_at_any_width_a_bar_fits_and_no_part_of_it_is_cut() -> None:
    for columns in range(20, 140):
        line = progress_bar("training", 0.5, TRAINING, columns)
        assert len(line) <= columns
        head, _, rest = line.partition("] ")
        assert head.startswith("training  50%"), columns
        assert [each for each in rest.split(", ") if each] == TRAINING[: rest.count(", ") + bool(rest)], columns


def test_sampling_moves_with_each_step_and_nothing_is_left_where_it_ended(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float]
) -> None:
    terminal, shown = on_terminal(monkeypatch), set()
    with SamplingBar() as bar:
        for step in range(1, 21):
            seconds[0] += 1
            bar(Progress(0, 4, step, 20, 4))
            shown.add(terminal.screen()[-1])
        bar.print("outputs/00000-a-dog.png")
    assert len(shown) == 20
    assert max(map(len, shown)) < 80
    assert sum("image 4/4, step 7/20, 0:13 left" in line for line in shown) == 1
    assert terminal.screen()[-1] == ""


def test_a_report_stands_above_the_bar_and_an_error_below_none(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with command_output(), STATUS_LINE:
        ProgressDisplay("training", print).show(0.5, ["step 1/2"])
        ConsoleHandler().emit(_record("validation at step 1"))
        assert terminal.screen() == ["validation at step 1", terminal.screen()[-1]]
        assert "step 1/2" in terminal.screen()[-1]
    assert terminal.screen()[-1] == ""


def test_without_a_terminal_there_is_a_plain_line_every_few_seconds_and_less_often_in_long_tasks(
    seconds: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[float] = []
    display = ProgressDisplay("training", lambda line: lines.append(seconds[0]))
    for step in range(36_000):
        seconds[0] += 1
        if display.is_due(step / 36_000):
            display.show(step / 36_000, ["step"])
    gaps = [later - earlier for earlier, later in itertools.pairwise([100.0, *lines])]
    assert max(gaps[:40]) <= 6
    assert max(gaps) <= 61
    assert len(lines) < 1000, "a log of ten hours"
    assert capsys.readouterr().err == ""


def test_the_plain_lines_of_sampling_go_to_stderr(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with SamplingBar() as bar:
        for step in range(1, 21):
            seconds[0] += 1
            bar(Progress(0, 4, step, 20, 4))
        bar.print("outputs/00000-a-dog.png")
    told = capsys.readouterr()
    assert told.out == "outputs/00000-a-dog.png\n"
    assert 3 <= len(told.err.splitlines()) <= 5
    assert told.err.splitlines()[0] == "sampling  30% image 4/4, step 6/20, 0:14 left"
    assert "\r" not in told.err


def test_time_left_and_rate_are_of_what_was_done_here(seconds: list[float]) -> None:
    display = ProgressDisplay("training", print)
    display.is_due(0.5)
    assert (display.time_left(0.5), display.rate(0.5, 100, "steps/s")) == (None, None)
    seconds[0] += 10
    assert (display.time_left(0.6), display.rate(0.6, 100, "steps/s")) == ("0:40 left", "1.00 steps/s")
    assert (clock(41), clock(3723)) == ("0:41", "1:02:03")


def _record(text: str) -> logging.LogRecord:
    return logging.LogRecord("dreambooth", logging.INFO, "", 0, text, (), None)


@pytest.mark.parametrize(("seconds", "task"), [(41, "training"), (3723, "class images"), (None, "sampling")])
def test_a_line_of_progress_is_read_back_from_a_log(seconds: int | None, task: str):
    parts = ["step 2/10", *([] if seconds is None else [f"{clock(seconds)} left"]), "loss 0.1234"]
    log = "\n".join(
        ["loading", progress_line(task, 0.1, ["step 1/10"]), progress_line(task, 0.2, parts), "note: 50% more"]
    )
    assert read_progress_line(log) == (task, 0.2, ", ".join(parts), seconds)
    assert read_progress_line("loading\nmodel: checkpoints/x\n") is None
