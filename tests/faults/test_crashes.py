"""Killed at any operation on its files, in the middle of a write, by any signal: started again, it comes to the same.

`benchmarks/chaos.py` does more of it, at random.
"""

import os
import signal
from pathlib import Path

import pytest
from crashes import SETTINGS, assert_equal_runs, assert_whole, wait_for
from warm import Warm

from dreambooth.config import load_config
from dreambooth.run.folder import RunFolder


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> Path:
    from conftest import CONFIG

    folder = tmp_path_factory.mktemp("crashes")
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(runs=folder / "runs", base=tiny_base, pictures=pictures))
    return path


@pytest.fixture(scope="module")
def whole(config_file: Path, warm: Warm) -> RunFolder:
    """A run that was left in peace."""
    assert warm.run(command(config_file, "whole"), config_file.with_name("whole.log")) == 0
    return run_of(config_file, "whole")


def command(config_file: Path, name: str, *more: str) -> list[str]:
    return ["train", str(config_file), f"run.name={name}", *SETTINGS, *more]


def run_of(config_file: Path, name: str) -> RunFolder:
    return RunFolder(load_config(config_file, [f"run.name={name}", *SETTINGS]))


@pytest.mark.slow
def test_killed_at_ever_later_operations_on_its_files_until_it_is_done(
    config_file: Path, warm: Warm, whole: RunFolder
) -> None:
    """The first process does not get to its 2nd operation, the next not to its 13th, then 24th ..."""
    run, log, codes = run_of(config_file, "operations"), config_file.with_name("operations.log"), []
    while not codes or codes[-1] != 0:
        dies_at = 2 + 11 * len(codes)
        codes.append(warm.run(command(config_file, "operations"), log, die_at=(dies_at, str(run.path))))
        assert codes[-1] in (0, -signal.SIGKILL), log.read_text()
        assert_whole(run)
    assert len(codes) > 5, "it was to be killed more often"
    assert "Traceback" not in log.read_text()
    assert_equal_runs(whole, run)


def test_killed_within_the_writing_of_states_until_it_is_done(config_file: Path, warm: Warm, whole: RunFolder) -> None:
    run, log, codes = run_of(config_file, "writes"), config_file.with_name("writes.log"), []
    for piece in (1, 500, None):
        order = {} if piece is None else {"die_in_write": piece}
        codes.append(warm.run(command(config_file, "writes"), log, env={"TMPDIR": elsewhere(run)}, **order))
        assert_whole(run)
    assert codes[:2] == [-signal.SIGKILL] * 2, log.read_text()
    assert codes[-1] == 0, log.read_text()
    assert_equal_runs(whole, run)


def elsewhere(run: RunFolder) -> str:
    """Return a folder on another file system: a state must not be renamed from there."""
    here = os.stat(run.path.parent).st_dev
    return next(folder for folder in ("/dev/shm", "/tmp", "/") if os.stat(folder).st_dev != here)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once_and_nothing_is_lost(
    config_file: Path, warm: Warm, whole: RunFolder, number: signal.Signals
) -> None:
    name = f"twice-{number.name}"
    run, log = run_of(config_file, name), config_file.with_name(f"{name}.log")
    pid = warm.start(command(config_file, name), log)
    wait_for(lambda: run.metrics.is_file() and len(run.metrics.read_text().splitlines()) > 2)
    os.kill(pid, number)
    os.kill(pid, number)
    assert warm.wait() in (-number, 128 + number), log.read_text()
    assert warm.run(command(config_file, name), log) == 0, log.read_text()
    assert_equal_runs(whole, run)
