"""A sweep and runs of two processes on a real SLURM of one node, with jobs and daemons killed; slow.

tests/faults/slurm.sh starts such a SLURM (root, Debian); where none answers, these tests are skipped.
"""

import contextlib
import csv
import importlib.util
import json
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
from dreambooth.sweep.cells import Cell

ROOT = Path(__file__).parents[1]
WAIT_S = 600.0
COSTS = ("seconds", "memory_mib")  # columns of a table that are not the same twice


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


def wait_until(is_there: Callable[[], object], log: Path) -> None:
    """Wait until a function returns something. log: a file that the failure shows."""
    deadline = time.monotonic() + WAIT_S
    while not is_there():
        assert time.monotonic() < deadline, log.read_text() if log.is_file() else "no log"
        time.sleep(0.1)


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


# -------------------------------------------------------------------------------- a sweep


def write_sweep(folder: Path, tiny_base: Path, pictures: Path) -> Sweep:
    """Return a sweep of eight cells of a few seconds each, on one core."""
    from conftest import CONFIG

    folder.mkdir()
    text = CONFIG.format(runs=folder / "runs", base=tiny_base, pictures=pictures)
    text = text.replace("max_steps: 8", "max_steps: 24").replace("every_steps: 4", "every_steps: 12")
    (folder / "config.yaml").write_text(text)
    (folder / "sweep.yaml").write_text(
        f"sweep: {{name: s, dir: {folder}, config: {folder / 'config.yaml'}, seeds: [0, 1]}}\n"
        "settings: {optim.lr: [1e-3, 2e-3], prior.weight: [0.5, 1]}\n"
        "slurm: {minutes: 30, gpus: 0, cpus: 1}\n"
    )
    return load_sweep(folder / "sweep.yaml")


def in_training(sweep: Sweep, cell: Cell) -> dict[str, str]:
    """Return the process and the job that train a cell, once they have saved a step; {} where none does."""
    try:
        found = json.loads((sweep.folder / "running" / f"{cell.name}.json").read_text())
        environment = Path(f"/proc/{found['pid']}/environ").read_bytes()
    except OSError:
        return {}
    done = num_lines(sweep.runs / cell.name / "logs" / "metrics.csv") - 1
    is_job = f"SLURM_JOB_ID={found['job']}\0".encode() in environment
    return {name: str(found[name]) for name in ("pid", "job")} if is_job and 3 <= done < 23 else {}


def disturb(kind: str, pid: str, job: str) -> None:
    """Do one bad thing to a job, or to SLURM while the job runs."""
    if kind == "kill":
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    elif kind == "SIGUSR1":
        subprocess.run(["scancel", "--signal=USR1", job], check=False)
    elif kind == "requeue":
        subprocess.run(["scontrol", "requeue", job], check=False)
    else:
        for daemon in subprocess.run(["pidof", "slurmd"], capture_output=True, text=True).stdout.split():
            os.kill(int(daemon), signal.SIGKILL)
        time.sleep(1)
        while subprocess.run(["pidof", "slurmd"], capture_output=True).returncode:
            subprocess.run(["slurmd"], check=False)
            time.sleep(1)


def disturb_all(sweep: Sweep, is_over: Callable[[], bool]) -> list[str]:
    """Kill and requeue jobs of a sweep while they train. Returns what was done before the sweep was over.

    Each cell is disturbed once: one whose process dies three times counts as failed.
    """
    from dreambooth.sweep.search import cells_of

    rng, left, done = random.Random(1), ["kill", "SIGUSR1", "requeue", "slurmd", "kill"], []
    cells = cells_of(sweep)
    while left and not is_over():
        rng.shuffle(cells)
        cell, trained = next(((each, found) for each in cells if (found := in_training(sweep, each))), (None, {}))
        if cell is not None:
            cells.remove(cell)
            done.append(left.pop())
            disturb(done[-1], **trained)
        time.sleep(0.1)
    return done


def table(sweep: Sweep) -> list[dict[str, str]]:
    """Return the lines of a sweep's table, but for what they cost."""
    with open(sweep.folder / "table.csv", newline="") as file:
        return [{name: text for name, text in row.items() if name not in COSTS} for row in csv.DictReader(file)]


def test_a_sweep_that_is_killed_and_requeued_at_random_gives_the_table_of_an_undisturbed_one(
    tmp_path: Path, tiny_base: Path, pictures: Path, environment: None
) -> None:
    from dreambooth import engine
    from dreambooth.sweep.search import cells_of
    from dreambooth.sweep.session import locked, write_results
    from dreambooth.sweep.worker import Task, train_cell

    disturbed = write_sweep(tmp_path / "slurm", tiny_base, pictures)
    whole = write_sweep(tmp_path / "local", tiny_base, pictures)
    command = [sys.executable, "-m", "dreambooth", "sweep", str(disturbed.path), "--on", "slurm"]
    log = tmp_path / "log"
    with open(log, "w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        done = disturb_all(disturbed, lambda: process.poll() is not None)
        with locked(whole):
            for cell in cells_of(whole):
                assert train_cell(whole, engine.train, Task(cell)).exit_code == 0
            write_results(whole)
        wait_until(lambda: process.poll() is not None, log)
    print(log.read_text(), f"disturbed: {done}")
    assert process.returncode == 0, log.read_text()
    assert {"kill", "slurmd"} <= set(done), "a fast machine is through before all five things are done"
    sessions = [num_lines(disturbed.runs / cell.name / "logs" / "sessions.jsonl") for cell in cells_of(whole)]
    assert max(sessions) > 1, "no cell went on from its state"

    assert table(disturbed) == table(whole)
    for cell in cells_of(whole):
        for name in ("logs/metrics.csv", "logs/scores.jsonl", "model/unet/diffusion_pytorch_model.safetensors"):
            one, other = disturbed.runs / cell.name / name, whole.runs / cell.name / name
            assert one.read_bytes() == other.read_bytes(), f"{cell.name}: {name}"


# -------------------------------------------------------------------------------- two processes, as on two nodes

SRUN = """#!/bin/bash
#SBATCH --ntasks=2 --time=20 --requeue --open-mode=append --output={log}
srun {python} train.py {config} run.name={name} train.devices=2 train.batch_size=1
code=$?
echo "ended with $code"
if [ $code = 138 ]; then scontrol requeue "$SLURM_JOB_ID"; sleep 60; fi
exit $code
"""
# Each task is a node with a torchrun of its own. On SIGUSR1 the processes save; torchrun itself has to ignore it.
TORCHRUN = """#!/bin/bash
#SBATCH --ntasks=2 --time=20 --requeue --open-mode=append --output={log}
trap 'again=yes; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
srun bash -c 'trap "" USR1; exec {python} -m torch.distributed.run --nnodes 2 --nproc-per-node 1 \
    --node-rank $SLURM_PROCID --master-addr $MASTER_ADDR --master-port $MASTER_PORT \
    train.py {config} run.name={name} train.devices=1 train.num_nodes=2 train.batch_size=1' &
wait $! || wait $!
code=$?
echo "ended with $code${{again:+ after SIGUSR1}}"
if [ -n "$again" ]; then scontrol requeue "$SLURM_JOB_ID"; sleep 60; fi
exit $code
"""
PREEMPT = {"srun": ["scancel", "--signal=USR1"], "torchrun": ["scancel", "--batch", "--signal=USR1"]}


@pytest.fixture
def submit(tmp_path: Path, config_file: Path, environment: None) -> Iterator[Callable[[str, str], str]]:
    """Return a function that submits a run of two processes as a job, and cancel what is left of it."""
    jobs: list[str] = []
    text = config_file.read_text().replace("max_steps: 8", "max_steps: 60").replace("every_steps: 4", "every_steps: 60")
    config_file.write_text(text)

    def submitted(name: str, script: str) -> str:
        path = tmp_path / f"{name}.sh"
        path.write_text(
            script.format(log=path.with_suffix(".log"), python=sys.executable, config=config_file, name=name)
        )
        answer = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=True)
        jobs.append(answer.stdout.strip())
        return jobs[-1]

    yield submitted
    for job in jobs:
        subprocess.run(["scancel", job], check=False)


def test_runs_of_two_processes_in_jobs_are_preempted_and_go_on_to_the_same_bits(
    tmp_path: Path, submit: Callable[[str, str], str]
) -> None:
    scripts = {"srun": SRUN, "torchrun": TORCHRUN}
    for name, script in scripts.items():
        run, log = tmp_path / "runs" / name, tmp_path / f"{name}.log"
        job = submit(name, script)
        wait_until(lambda run=run: num_lines(run / "logs" / "metrics.csv") > 5, log)
        subprocess.run([*PREEMPT[name], job], check=True)
        wait_until(lambda log=log: "ended with" in log.read_text(), log)
    submit("whole", SRUN)
    whole = tmp_path / "runs" / "whole"
    for name in ("whole", *scripts):
        log = tmp_path / f"{name}.log"
        wait_until((tmp_path / "runs" / name / "model" / "dreambooth.json").is_file, log)
        print(f"{name}:\n{log.read_text()}")
    for name in scripts:
        run, said = tmp_path / "runs" / name, (tmp_path / f"{name}.log").read_text()
        assert num_lines(run / "logs" / "sessions.jsonl") == 2, said
        for path in ("logs/metrics.csv", "model/unet/diffusion_pytorch_model.safetensors"):
            assert (whole / path).read_bytes() == (run / path).read_bytes(), f"{name}: {path}\n{said}"
