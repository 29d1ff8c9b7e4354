"""A sweep and a run of two processes on a real SLURM of one node, with jobs and daemons killed; slow.

tests/faults/slurm.sh starts such a SLURM (root, Debian); where none answers, these tests are skipped.
"""

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dreambooth.sweep import Sweep, load_sweep

ROOT = Path(__file__).parents[1]
WAIT_S = 1200


def slurm_answers() -> bool:
    if shutil.which("sbatch") is None or importlib.util.find_spec("submitit") is None:
        return False
    return "UP" in subprocess.run(["scontrol", "ping"], capture_output=True, text=True).stdout


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * WAIT_S),
    pytest.mark.skipif(not slurm_answers(), reason="needs a SLURM that answers (tests/faults/slurm.sh), and submitit"),
]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)


def write_sweep(folder: Path, tiny_base: Path, pictures: Path) -> Sweep:
    """Return a sweep of eight cells of a few seconds each, on one core."""
    from conftest import CONFIG

    folder.mkdir()
    text = CONFIG.format(runs=folder / "runs", base=tiny_base, pictures=pictures)
    (folder / "config.yaml").write_text(text.replace("max_steps: 8", "max_steps: 40"))
    (folder / "sweep.yaml").write_text(
        f"sweep: {{name: s, dir: {folder}, config: {folder / 'config.yaml'}, seeds: [0, 1]}}\n"
        "settings: {optim.lr: [1e-3, 2e-3], prior.weight: [0.5, 1]}\n"
        "slurm: {minutes: 10, gpus: 0, cpus: 1}\n"
    )
    return load_sweep(folder / "sweep.yaml")


def workers_of(folder: Path) -> list[int]:
    """Return the processes that train a cell of the sweep in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "submitit.core._submit" in words and any(word.startswith(str(folder)) for word in words):
            found.append(int(path.parent.name))
    return found


def jobs_running() -> list[str]:
    command = ["squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def disturb(folder: Path, rng: random.Random) -> str:
    """Do one bad thing to a job or to SLURM; returns what."""
    jobs, workers = jobs_running(), workers_of(folder)
    if not jobs or not workers:
        return "nothing"
    kind = rng.choice(["kill", "SIGUSR1", "requeue", "slurmd"])
    job = rng.choice(jobs)
    if kind == "kill":
        os.kill(rng.choice(workers), signal.SIGKILL)
    elif kind == "SIGUSR1":
        subprocess.run(["scancel", "--signal=USR1", job], check=False)
    elif kind == "requeue":
        subprocess.run(["scontrol", "requeue", job], check=False)
    else:
        for pid in subprocess.run(["pidof", "slurmd"], capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        time.sleep(2)
        subprocess.run(["slurmd"], check=True)
    return kind


def test_a_sweep_that_is_killed_and_requeued_at_random_gives_the_table_of_an_undisturbed_one(
    tmp_path: Path, tiny_base: Path, pictures: Path, environment: None
) -> None:
    from dreambooth import engine
    from dreambooth.sweep.search import cells_of
    from dreambooth.sweep.session import locked
    from dreambooth.sweep.worker import Task, train_cell

    disturbed = write_sweep(tmp_path / "slurm", tiny_base, pictures)
    command = [sys.executable, "-m", "dreambooth", "sweep", str(disturbed.path), "--on", "slurm"]
    rng, done, deadline = random.Random(1), [], time.monotonic() + WAIT_S
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None:
            time.sleep(rng.uniform(8, 16))
            if len(done) < 6:
                done.append(disturb(tmp_path / "slurm", rng))
            if time.monotonic() > deadline:
                process.send_signal(signal.SIGINT)
    told = (tmp_path / "log").read_text()
    print(told, f"disturbed: {done}")
    assert process.returncode == 0, told
    assert set(done) - {"nothing"}, "nothing was disturbed"

    whole = write_sweep(tmp_path / "local", tiny_base, pictures)
    with locked(whole):
        for cell in cells_of(whole):
            assert train_cell(whole, engine.train, Task(cell)).exit_code == 0
    for cell in cells_of(whole):
        for name in ("logs/metrics.csv", "logs/scores.jsonl", "model/unet/diffusion_pytorch_model.safetensors"):
            one, other = disturbed.runs / cell.name / name, whole.runs / cell.name / name
            assert one.read_bytes() == other.read_bytes(), f"{cell.name}: {name}"


SCRIPT = """#!/bin/bash
#SBATCH --ntasks=2 --time=10 --requeue --open-mode=append --output={log}
export OMP_NUM_THREADS=1
srun {python} train.py {config} run.name={name} train.devices=2 train.batch_size=1
code=$?
echo "ended with $code"
if [ $code = 138 ]; then scontrol requeue "$SLURM_JOB_ID"; sleep 60; fi
exit $code
"""


@pytest.fixture
def submit(tmp_path: Path, config_file: Path) -> Iterator[Callable[[str], str]]:
    """Return a function that submits a run of two processes, and cancel what is left of it."""
    jobs: list[str] = []

    def submitted(name: str) -> str:
        script = tmp_path / f"{name}.sh"
        script.write_text(
            SCRIPT.format(log=tmp_path / f"{name}.log", python=sys.executable, config=config_file, name=name)
        )
        answer = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=True)
        jobs.append(answer.stdout.strip())
        return jobs[-1]

    yield submitted
    for job in jobs:
        subprocess.run(["scancel", job], check=False)


def wait_for(path: Path, log: Path, text: str = "", num_lines: int = 0) -> None:
    """Wait until a file is there that holds a text and more than so many lines. log: for the message."""
    deadline = time.monotonic() + WAIT_S / 2
    while True:
        found = path.read_text(errors="replace") if path.is_file() else None
        if found is not None and text in found and len(found.splitlines()) > num_lines:
            return
        assert time.monotonic() < deadline, log.read_text() if log.is_file() else "no log"
        time.sleep(1)


def test_a_run_of_two_processes_in_a_job_is_preempted_and_goes_on_to_the_same_bits(
    tmp_path: Path, config_file: Path, submit: Callable[[str], str], environment: None
) -> None:
    config_file.write_text(config_file.read_text().replace("max_steps: 8", "max_steps: 60"))
    whole, preempted = (tmp_path / "runs" / name for name in ("whole", "preempted"))
    job, log = submit("preempted"), tmp_path / "preempted.log"
    wait_for(preempted / "logs" / "metrics.csv", log, num_lines=5)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    wait_for(log, log, "ended with 138")
    wait_for(preempted / "model" / "dreambooth.json", log)
    submit("whole")
    wait_for(whole / "model" / "dreambooth.json", tmp_path / "whole.log")
    assert len((preempted / "logs" / "sessions.jsonl").read_text().splitlines()) == 2
    for name in ("logs/metrics.csv", "model/unet/diffusion_pytorch_model.safetensors"):
        assert (whole / name).read_bytes() == (preempted / name).read_bytes(), name
