"""Workers of a sweep and of the laboratory: what a task that fails, a worker that dies and a killed parent come to."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from dreambooth.sweep.pool import ONE_THREAD, run_tasks

ROOT = Path(__file__).parents[1]


def test_a_task_that_fails_is_reported_and_the_others_are_done(tmp_path: Path):
    done = {one.task: one for one in run_tasks([4.0, -1.0, 9.0, -4.0, 16.0], math.sqrt, [ONE_THREAD] * 2, tmp_path)}
    assert {task: one.result for task, one in done.items()} == {4.0: 2.0, -1.0: None, 9.0: 3.0, -4.0: None, 16.0: 4.0}
    assert "ValueError" in done[-1.0].error


def test_a_worker_that_dies_without_a_word_takes_its_task_alone(tmp_path: Path):
    done = list(run_tasks([3, 4], os._exit, [ONE_THREAD], tmp_path))
    assert [one.error.split(":")[0] for one in done] == ["exit code 3", "exit code 4"]


def test_no_task_is_started_when_the_time_is_over(tmp_path: Path):
    answers = iter([True, True, False, False, False])
    done = list(run_tasks([1.0, 4.0, 9.0, 16.0], math.sqrt, [ONE_THREAD], tmp_path, lambda: next(answers)))
    assert [one.result for one in done] == [1.0, 2.0]


ORPHANS = """
import math, multiprocessing, pathlib, sys, time
from dreambooth.sweep.pool import ONE_THREAD, run_tasks
if __name__ == "__main__":
    tasks = run_tasks([1.0, 4.0], math.sqrt, [ONE_THREAD] * 2, pathlib.Path(sys.argv[1]))
    next(tasks)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path):
    (tmp_path / "parent.py").write_text(ORPHANS)
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as parent:
        assert parent.stdout is not None
        workers = [int(number) for number in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(_is_alive(number) for number in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 2
    assert not any(_is_alive(number) for number in workers)


def _is_alive(pid: int) -> bool:
    """Whether it still runs; a zombie that nobody has buried does not."""
    status = Path(f"/proc/{pid}/status")
    try:
        return re.search(r"State:\s+[ZX]", status.read_text()) is None
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_each_worker_has_its_own_environment(tmp_path: Path) -> None:
    environments = [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    done = run_tasks(["CUDA_VISIBLE_DEVICES"] * 2, os.getenv, environments, tmp_path)
    assert {one.result for one in done} == {"3", "5"}
