"""The process of a job: started so that it outlives the server, and recognised by its lock when a server comes back.

The process inherits a lock (flock) on its job's folder and holds it for as long as it or one of its children lives,
however it dies. What it has come to it writes to exit-<attempt>.json. So a server can tell a job that still runs from
one that is over and from one that was killed, without having been its parent.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.files import write_text
from dreambooth.studio.jobs import Command

PACKAGE = Path(__file__).parents[2]  # the folder that `import dreambooth` finds it in
ERROR = re.compile(r"^(python -m [\w .]+: )?error: ")  # how a command begins to say what is wrong
RUNNER = (sys.executable, "-m", "dreambooth.cli.studio_job")


@dataclass(frozen=True)
class JobFolder:
    """Name the files of a job: .studio/jobs/<number>/."""

    path: Path

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def pid(self) -> Path:
        return self.path / "pid"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def commands(self) -> Path:
        return self.path / "commands.json"

    def result(self, attempt: int) -> Path:
        return self.path / f"exit-{attempt}.json"


def start(
    folder: JobFolder,
    attempt: int,
    commands: Sequence[Command],
    workspace: Path,
    environment: Mapping[str, str],
    runner: Sequence[str] = RUNNER,
) -> "subprocess.Popen[bytes]":
    """Start the process of a job, and return it. environment: variables beside this process's own.

    Raises BlockingIOError where a process of the job is there already.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.result(attempt).unlink(missing_ok=True)
    write_text(folder.commands, json.dumps([[list(each.argv), each.unless] for each in commands]))
    paths = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with open(folder.lock, "ab") as lock, open(folder.log, "ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if attempt > 1:
            log.write(f"\n--- attempt {attempt}\n".encode())
            log.flush()
        process = subprocess.Popen(
            [*runner, str(folder.path), str(attempt)],
            cwd=workspace,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock.fileno(),),
            start_new_session=True,  # Ctrl-C in the server's terminal is not for it
        )
    write_text(folder.pid, str(process.pid))
    return process


def is_alive(folder: JobFolder) -> bool:
    """Return whether the process of a job, or one that it has started, is there."""
    try:
        with open(folder.lock, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def is_there(pid: int) -> bool:
    """Return whether a process is there and has not ended; one that has may wait for its parent to take note."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's, or this system has no /proc
        return True
    return state != "Z"


def read_result(folder: JobFolder, attempt: int) -> int | None:
    """Return the exit code of an attempt; None where its process was killed, or has not ended."""
    try:
        return int(json.loads(folder.result(attempt).read_bytes())["exit_code"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_result(folder: JobFolder, attempt: int, exit_code: int) -> None:
    """Write what an attempt has come to; its process calls this last."""
    write_text(folder.result(attempt), json.dumps({"exit_code": exit_code}))


def tell(folder: JobFolder, number: signal.Signals) -> bool:
    """Send a signal to the process of a job, SIGKILL to all that it has started; return whether it could be sent."""
    try:
        pid = int(folder.pid.read_text(encoding="utf-8"))
        if os.getpgid(pid) != pid:  # its session is its own, so this is another that has got the number since
            return False
        if number == signal.SIGKILL:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except (OSError, ValueError):  # it is being started, or has just ended
        return False
    return True


def error_in_log(folder: JobFolder) -> str:
    """Return the line by which a job says why it failed: its last error, else its last line."""
    lines = [line for line in tail(folder.log).splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    return ERROR.sub("", (errors or lines or ["it has said nothing"])[-1])[:1000]


def tail(path: Path, num_bytes: int = 8192) -> str:
    """Return the end of a text file; empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - num_bytes))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
