"""The limits of tests/time_limits.py: a run of pytest ends, and what hung is named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HANGS = """
import pathlib, subprocess, sys, threading, pytest

@pytest.fixture
def stuck():
    yield
    threading.Event().wait()

def test_that_hangs_like_its_clean_up(stuck):
    threading.Event().wait()

def test_of_a_process_that_never_ends():
    pathlib.Path("begun").touch()
    subprocess.run([sys.executable, "-c", "import time; time.sleep(1000)"])

def test_that_passes():
    pass
"""
END_ONCE_BEGUN = """
import pathlib, threading, time

def pytest_sessionstart(session):
    limit = session.config.pluginmanager.get_plugin("run_limit")
    if limit is not None:
        threading.Thread(target=end_once_begun, args=(limit,), daemon=True).start()

def end_once_begun(limit):
    while not (pathlib.Path("begun").exists() and limit.started):  # a worker's word of it comes a little later
        time.sleep(0.01)
    limit.end()
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on HANGS with these limits and nothing of this project's."""
    (folder / "test_hangs.py").write_text(HANGS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    plugins = ["-p", "xdist.plugin", "-p", "pytest_timeout", "-p", "time_limits", "-p", "no:cacheprovider"]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", *plugins, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_a_test_whose_clean_up_hangs_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    limits = ["-o", "timeout=1", "-o", "timeout_grace=1"]
    done = run_pytest(tmp_path, "-n", "1", "-k", "clean_up or passes", *limits)
    assert "crashed while running 'test_hangs.py::test_that_hangs_like_its_clean_up'" in done.stdout
    assert "1 passed" in done.stdout
    assert "in stuck" in done.stderr, "the stack names the line that hangs"


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_run_that_lasts_too_long_ends_with_its_processes_and_names_what_was_running(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    (tmp_path / "conftest.py").write_text(END_ONCE_BEGUN)
    done = run_pytest(tmp_path, *workers, "-k", "process")
    assert done.returncode == 1
    assert "Running: test_hangs.py::test_of_a_process_that_never_ends (for " in done.stderr
    assert "in test_of_a_process_that_never_ends" in done.stderr, "the stack names the line that hangs"


def test_the_limit_of_a_run_holds_before_its_first_test_too(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "-k", "process", "-o", "run_limit=0.01")
    assert done.returncode == 1
    assert "run_limit: the run has lasted 0.01 s. Running: no test" in done.stderr
