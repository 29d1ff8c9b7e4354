"""What a command writes: it outlasts its reader, every name can be spelled, and the library itself prints nothing."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from tqdm import tqdm

from dreambooth.console import command_output, lasting

FULL = Path("/dev/full")  # every write to it fails as on a full disk


def opened(path: Path | str, encoding: str = "utf-8") -> TextIO:
    return open(path, "w", encoding=encoding)


@pytest.fixture
def pipe_without_reader() -> Iterator[TextIO]:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as stream:
        yield stream


def test_what_nobody_reads_any_more_is_discarded(pipe_without_reader: TextIO) -> None:
    stream = lasting(pipe_without_reader)
    for _ in range(3):
        print("x" * 10_000, file=stream, flush=True)
    assert not stream.isatty()


@pytest.mark.parametrize(("encoding", "written"), [("cp1252", b"\\u72d7 \xe9\n"), ("ascii", b"\\u72d7 \\xe9\n")])
def test_what_a_console_cannot_spell_is_written_as_its_code(tmp_path: Path, encoding: str, written: bytes) -> None:
    own = opened(tmp_path / "out", encoding)
    stream = lasting(own)
    print("\u72d7 \xe9", file=stream, flush=True)
    assert (tmp_path / "out").read_bytes() == written


def test_a_command_without_streams_writes_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is started without a console on Windows, or with both closed."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with command_output():
        print("a result")
        logging.getLogger("dreambooth.training").warning("a warning")
        assert not sys.stderr.isatty()


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_a_result_that_no_disk_took_is_warned_about_and_one_that_nobody_wanted_is_not(
    pipe_without_reader: TextIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stdout, warnings in ((opened(FULL), 1), (pipe_without_reader, 0)):
        monkeypatch.setattr(sys, "stdout", stdout)
        with command_output():
            print("a result")
        assert capsys.readouterr().err.count("warning: the output could not be written (No space left") == warnings


def test_a_command_shows_reports_as_lines_on_stderr_and_warnings_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("dreambooth.run")
    with command_output():
        logger.info("step 1/2")
        logger.warning("no scores: 100 % of them")
        logger.debug("a detail")
    assert capsys.readouterr() == ("", "step 1/2\nwarning: no scores: 100 % of them\n")


def test_nothing_is_printed_twice_where_a_program_has_logging_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handler = logging.StreamHandler(sys.stderr)
    root.addHandler(handler)
    try:
        with command_output():
            logging.getLogger("dreambooth.run").info("resuming")
        logging.getLogger("dreambooth.run").warning("after the command")
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr().err == "resuming\nafter the command\n"


def test_a_line_stands_above_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with command_output(), tqdm(total=2, file=screen) as bar:
        bar.update()
        logging.getLogger("dreambooth.training").info("validation at step 1")
    assert "\nvalidation at step 1" not in screen.getvalue(), "the bar was left standing above it"
    assert "validation at step 1\n" in screen.getvalue()


def test_a_signal_handler_may_write_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """Python's buffered streams raise RuntimeError there, which would end a run that is to save and stop."""
    own = opened(tmp_path / "out")
    stream: Any = lasting(own)
    raw = stream.buffer._raw

    class Interrupted(io.RawIOBase):
        def write(self, data: Any) -> int:
            stream.buffer._raw = raw
            print("SIGTERM: saving", file=stream, flush=True)
            return int(raw.write(data))

    stream.buffer._raw = Interrupted()
    print("step 1", file=stream, flush=True)
    assert "SIGTERM: saving" in (tmp_path / "out").read_text()
