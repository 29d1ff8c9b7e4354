"""Train the cells of a sweep on a SLURM cluster, as an array of jobs that submitit submits (extra 'slurm').

A job trains its cells one after the other. SLURM sends SIGUSR1 before the time is up, or SIGTERM when it preempts: the
cell saves its state after the step. After SIGUSR1 the job requeues itself, after SIGTERM SLURM does; either way it goes
on where it was. The command here only submits, watches and submits again what has died.
"""

import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from dreambooth.errors import UserError, first_line
from dreambooth.files import write_text
from dreambooth.sweep.fields import SlurmSection
from dreambooth.sweep.folder import note_failure
from dreambooth.sweep.pool import Done
from dreambooth.sweep.reading import Sweep
from dreambooth.sweep.status import has_come_to, status_of
from dreambooth.sweep.worker import Outcome, Task, Train, train_cell

logger = logging.getLogger(__name__)
POLL_S = 5.0  # seconds between two looks at the queue
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED")
REQUEUED_BY_SIGNAL = 128 + signal.SIGUSR1
CANCELLED = "cancelled"


@dataclass(frozen=True)
class Job:
    """Hold one task of an array: its name to SLURM, e.g. 17_3, and the cells that it trains."""

    name: str
    tasks: tuple[Task, ...]

    @property
    def array(self) -> str:
        return self.name.split("_")[0]


class CellJob:
    """Train some cells within a job; what submitit sends to the cluster."""

    def __init__(self, sweep: Sweep, train: Train, tasks: Sequence[Task]) -> None:
        self.sweep = sweep
        self.train = train
        self.tasks = tuple(tasks)

    def __call__(self) -> list[int]:
        """Train the cells in order; returns their exit codes. A job that is to end early saves, and is requeued."""
        signal.signal(signal.SIGUSR1, _leave)  # while libraries load, before training has its own handlers
        signal.signal(signal.SIGTERM, _leave)
        codes = []
        try:
            for task in self.tasks:
                codes.append(train_cell(self.sweep, self.train, task).exit_code)
        except SystemExit as error:
            if error.code == REQUEUED_BY_SIGNAL:
                requeue()
            raise
        return codes


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def requeue() -> None:
    """Put this job back into the queue; SLURM then ends this process."""
    subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
    time.sleep(60)


# -------------------------------------------------------------------------------- the command


def run_on_slurm(sweep: Sweep, train: Train, tasks: Sequence[Task]) -> Generator[Done[Task, Outcome], None, None]:
    """Submit cells that no job has yet, and yield each when its job is over. Closed early, the jobs go on.

    Raises UserError where submitit or SLURM is missing, or SLURM refuses the job.
    """
    there = living_jobs(sweep)
    taken = {task.cell.name for job in there for task in job.tasks}
    jobs = [*there, *submit(sweep, train, [task for task in tasks if task.cell.name not in taken])]
    write_jobs(sweep, jobs)
    try:
        while jobs:
            states = queue_states({job.array for job in jobs})
            for job in [each for each in jobs if is_over(states.get(each.name))]:
                jobs.remove(job)
                write_jobs(sweep, jobs)
                for task in job.tasks:
                    yield done(sweep, task, job, states.get(job.name, "gone from the queue"))
            if jobs:
                time.sleep(POLL_S)
    finally:
        if jobs:
            arrays = " ".join(dict.fromkeys(job.array for job in jobs))
            logger.info(f"{len(jobs)} jobs go on; the same command watches them again, `scancel {arrays}` ends them")


def is_over(state: str | None) -> bool:
    """Return whether a job will not run again. state: None where the queue knows it no more."""
    return state is None or state.startswith(OVER)


def done(sweep: Sweep, task: Task, job: Job, state: str) -> Done[Task, Outcome]:
    """Return how a cell stands after its job. A job that died leaves its cell unfinished: it is submitted again."""
    status = status_of(sweep, task.cell)
    if status.state == "failed":
        return Done(task, Outcome(status.exit_code, 0.0, status.error))
    if has_come_to(status, task.until):
        return Done(task, Outcome(0, 0.0))
    if state.startswith("CANCELLED"):
        return Done(task, Outcome(128 + signal.SIGTERM, 0.0, f"job {job.name} was {CANCELLED}"))
    return Done(task, None, f"job {job.name} ended as {state} ({log_of(sweep, job)})", -signal.SIGKILL)


def log_of(sweep: Sweep, job: Job) -> Path:
    """Return the file that a job's errors go to."""
    return jobs_folder(sweep) / f"{job.name}_0_log.err"


def submit(sweep: Sweep, train: Train, tasks: Sequence[Task]) -> list[Job]:
    """Submit an array of jobs for some cells. Raises UserError where that is not possible."""
    if not tasks:
        return []
    executor = make_executor(sweep)
    for task in tasks:
        note_failure(sweep, task.cell, 0)  # an earlier attempt's is not this one's
    size = sweep.slurm.cells_per_job
    parts = [tuple(tasks[first : first + size]) for first in range(0, len(tasks), size)]
    try:
        with executor.batch():
            submitted = [executor.submit(CellJob(sweep, train, part)) for part in parts]
    except (RuntimeError, subprocess.CalledProcessError, OSError) as error:
        raise UserError(f"--on slurm: SLURM refused the jobs: {first_line(error)}") from error
    jobs = [Job(str(job.job_id), part) for job, part in zip(submitted, parts, strict=True)]
    logger.info(f"submitted: {len(jobs)} jobs of array {jobs[0].array}; logs in {jobs_folder(sweep)}")
    return jobs


def make_executor(sweep: Sweep) -> Any:
    """Return submitit's executor with the section `slurm`."""
    import submitit

    executor = submitit.AutoExecutor(folder=jobs_folder(sweep), cluster="slurm")
    executor.update_parameters(**parameters(sweep.options.name, sweep.slurm))
    return executor


def check(sweep: Sweep) -> None:
    """Raise UserError where submitit or SLURM is missing."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--on slurm: the package submitit is not installed; pip install -e '.[slurm]'")
    for program in ("sbatch", "squeue"):
        if shutil.which(program) is None:
            raise UserError(f"--on slurm: there is no {program} here; submit from a machine of the cluster")


def parameters(name: str, section: SlurmSection) -> dict[str, Any]:
    """Return submitit's parameters of a job; what is not set is left to the cluster."""
    named = {
        "slurm_partition": section.partition,
        "slurm_account": section.account,
        "slurm_qos": section.qos,
        "slurm_constraint": section.constraint,
        "mem_gb": section.memory_gib,
        "gpus_per_node": section.gpus or None,
    }
    threads = "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}"
    signals = {"signal": f"USR1@{section.warn_s}"}
    return {
        **{key: value for key, value in named.items() if value is not None},
        "name": name,
        "timeout_min": section.minutes,
        "cpus_per_task": section.cpus,
        "slurm_array_parallelism": section.parallel,
        "slurm_setup": [*section.setup, threads],
        "slurm_additional_parameters": {**signals, ("requeue" if section.requeue else "no-requeue"): True},
    }


# -------------------------------------------------------------------------------- jobs of earlier commands


def jobs_folder(sweep: Sweep) -> Path:
    """Return the folder of submitit's files and the jobs' logs."""
    return sweep.folder / "slurm"


def write_jobs(sweep: Sweep, jobs: Iterable[Job]) -> None:
    """Note which jobs have which cells, for a command that watches them later."""
    found = [{"job": job.name, "cells": [[task.cell.name, task.until] for task in job.tasks]} for job in jobs]
    write_text(jobs_folder(sweep) / "jobs.json", json.dumps(found, indent=1) + "\n")


def living_jobs(sweep: Sweep) -> list[Job]:
    """Return the jobs of an earlier command that are not over."""
    from dreambooth.sweep.search import cells_of

    path = jobs_folder(sweep) / "jobs.json"
    if not path.is_file():
        return []
    cells = {cell.name: cell for cell in cells_of(sweep)}
    jobs = [
        Job(each["job"], tuple(Task(cells[name], until) for name, until in each["cells"] if name in cells))
        for each in json.loads(path.read_text(encoding="utf-8"))
    ]
    states = queue_states({job.array for job in jobs})
    return [job for job in jobs if job.tasks and not is_over(states.get(job.name))]


def queue_states(arrays: Iterable[str]) -> dict[str, str]:
    """Return the state of each job that the queue knows, by name: {"17_3": "RUNNING"}.

    It asks again while SLURM does not answer: a controller that restarts forgets nothing.
    """
    names = sorted(arrays)
    if not names:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={','.join(names)}"]
    for wait in (1, 5, 15, 60, 120):
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            continue
        if answer.returncode == 0:
            return dict(line.split("|", 1) for line in answer.stdout.split() if "|" in line)
        if "Invalid job id" in answer.stderr:
            return _one_by_one(names)
        logger.info(f"SLURM does not answer ({answer.stderr.strip()}); asking again in {wait} s")
        time.sleep(wait)
    raise UserError("--on slurm: SLURM does not answer; its jobs go on, and the same command watches them again")


def _one_by_one(names: Sequence[str]) -> dict[str, str]:
    """Return the states of arrays of which the queue has forgotten some."""
    if len(names) == 1:
        return {}
    return {name: state for each in names for name, state in queue_states([each]).items()}
