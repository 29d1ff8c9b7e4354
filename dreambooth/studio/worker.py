"""One worker a device: takes jobs from the queue, starts their processes, and decides what has become of them.

All that it knows stands in the database and in the jobs' folders, so a server that is started again goes on where the
one before was killed: jobs that still run are adopted, those that were killed go on from their last state.
"""

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreambooth.studio import processes
from dreambooth.studio.jobs import Job, JobStore, Kind, State
from dreambooth.studio.processes import RUNNER, JobFolder
from dreambooth.studio.workspace import Workspace

HEAVY: tuple[Kind, ...] = ("train", "generate", "evaluate")  # one at a time on a device
LIGHT: tuple[Kind, ...] = ("prepare", "export")  # one at a time beside them
LIGHT_DEVICE = "light"
ANY_DEVICE = "auto"  # the one that a job finds by itself
PERIOD_S = 0.25  # between two looks at the processes
GRACE_S = 300.0  # that a process gets to save its state, before it is killed
MAX_DEATHS = 3  # processes of one job that may be killed before it counts as failed
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGUSR1)

logger = logging.getLogger(__name__)


def find_devices() -> list[str]:
    """Return the devices to work on: each GPU as CUDA_VISIBLE_DEVICES names it, the CPU where it names none.

    Without it each NVIDIA GPU, else `auto`: a job may find one of another maker, or in WSL. torch is not loaded.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [f"cuda:{each}" for each in named.split(",") if each and each != "-1"] or ["cpu"]
    found = sorted(Path("/dev").glob("nvidia[0-9]*"))
    return [f"cuda:{path.name.removeprefix('nvidia')}" for path in found] or [ANY_DEVICE]


class Worker:
    """Run the queue in a thread of its own. devices: as `find_devices` names them."""

    def __init__(
        self,
        workspace: Workspace,
        store: JobStore,
        devices: Sequence[str] = ("cpu",),
        runner: Sequence[str] = RUNNER,
        grace_s: float = GRACE_S,
    ) -> None:
        self.devices = tuple(devices)
        self._workspace = workspace
        self._store = store
        self._runner = runner
        self._grace_s = grace_s
        self._children: dict[int, subprocess.Popen[bytes]] = {}  # by job; of an adopted job there is none
        self._seen: set[int] = set()  # jobs that this server has seen alive
        self._wake = threading.Event()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def folder(self, job: Job) -> JobFolder:
        """Return the folder of a job's files."""
        return JobFolder(self._workspace.jobs / str(job.id))

    def start(self) -> None:
        """Begin to work."""
        self._thread = threading.Thread(target=self._work, name="studio-worker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop working. Jobs that run go on by themselves, and are adopted by the next server."""
        self._is_closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """Have a look now: something was asked for."""
        self._wake.set()

    def tick(self) -> None:
        """Look at what runs, and start what can."""
        for job in self._store.find(("running",)):
            self._look_after(job)
        busy = {job.device for job in self._store.find(("running",))}
        if ANY_DEVICE in self.devices and busy - {LIGHT_DEVICE}:
            busy.add(ANY_DEVICE)  # one that an earlier server began calls it by name
        for device, kinds in [*((each, HEAVY) for each in self.devices), (LIGHT_DEVICE, LIGHT)]:
            waiting = None if device in busy else self._store.take_next(kinds, device)
            if waiting is not None:
                self._start(waiting)

    def _work(self) -> None:
        while not self._is_closed:
            try:
                self.tick()
            except (OSError, sqlite3.Error) as error:  # a full disk, say: the jobs go on, and this looks again
                logger.warning(f"studio: {error}")
            self._wake.wait(PERIOD_S)
            self._wake.clear()

    def _start(self, job: Job) -> None:
        try:
            self._clear(job)
            self._children[job.id] = processes.start(
                self.folder(job),
                job.attempts,
                job.commands,
                self._workspace.root,
                _environment(self.devices if job.device == LIGHT_DEVICE else (job.device,)),
                self._runner,
            )
            self._seen.add(job.id)
        except BlockingIOError:  # something that it started before is still there
            self._store.change(job.id, ("running",), "queued", attempts=job.attempts - 1, device="")
        except OSError as error:
            self._end(job, "failed", None, f"its process could not be started: {error}")

    def _clear(self, job: Job) -> None:
        """Remove what an attempt before has generated; all other commands go on from what is there."""
        is_grid = any(part.startswith("--grid=") for each in job.commands for part in each.argv)
        if job.kind == "generate" and job.attempts > 1 and not is_grid:
            shutil.rmtree(self._workspace.root / job.output, ignore_errors=True)

    def _look_after(self, job: Job) -> None:
        folder, child = self.folder(job), self._children.get(job.id)
        if child is not None:
            child.poll()  # so that it does not stay as a zombie
        if processes.is_alive(folder):
            self._seen.add(job.id)
            self._stop_if_asked(job, folder)
            return
        self._children.pop(job.id, None)
        self._conclude(job, processes.read_result(folder, job.attempts))

    def _stop_if_asked(self, job: Job, folder: JobFolder) -> None:
        """Send SIGTERM once to a job that is to stop, and SIGKILL to one that has not stopped in time."""
        now = time.time()
        if not job.asked and job.timeout_s is not None and now - (job.started or now) > job.timeout_s:
            job = self._store.set(job.id, asked="timeout")
        if not job.asked:
            return
        if job.asked_at is None:
            if processes.tell(folder, signal.SIGTERM):
                self._store.set(job.id, asked_at=now)
        elif now - job.asked_at > self._grace_s or job.asked == "kill":
            processes.tell(folder, signal.SIGKILL)

    def _conclude(self, job: Job, code: int | None) -> None:
        """Decide what has become of a job whose process is gone. code: its exit code; None: it was killed."""
        if code == 0:
            self._end(job, "done", 0)
        elif job.asked == "timeout":
            saved = ", with its state saved" if job.kind == "train" and code in STOPPED else ""
            self._end(job, "failed", code, f"stopped after {job.timeout_s:g} s (timeout_s){saved}")
        elif job.asked == "pause":
            self._end(job, "paused", code)
        elif job.asked:
            self._end(job, "cancelled", code)
        elif code is None:
            self._conclude_killed(job)
        elif code in STOPPED:
            self._end(job, "paused", code, "stopped by a signal from outside, with its state saved; resume goes on")
        else:
            self._end(job, "failed", code, processes.error_in_log(self.folder(job)))

    def _conclude_killed(self, job: Job) -> None:
        """Queue a job again whose process was killed; one that dies again and again while a server watches fails."""
        deaths = job.deaths + (job.id in self._seen)
        if deaths >= MAX_DEATHS:
            why = f"its process was killed {deaths} times; often the system ran out of memory"
            self._end(job, "failed", None, why, deaths=deaths)
        else:
            self._store.change(job.id, ("running",), "queued", deaths=deaths, device="")

    def _end(self, job: Job, state: State, code: int | None, error: str = "", **values: int) -> None:
        self._store.change(
            job.id,
            ("running",),
            state,
            ended=time.time(),
            exit_code=code,
            error=error,
            **values,
        )


def _environment(devices: Sequence[str]) -> Mapping[str, str]:
    """Return the variables that bind a process to its devices; for the CPU they hide every GPU."""
    if ANY_DEVICE in devices:
        return {}
    gpus = [each.removeprefix("cuda:") for each in devices if each.startswith("cuda:")]
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
