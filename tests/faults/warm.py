"""Processes of a command without the seconds that imports take: a parent that has imported everything forks them.

    with Warm() as warm:
        code = warm.run(["train", "config.yaml"], log=tmp_path / "log")

Run as a script this is the parent: it reads orders from its input, a JSON line each, and answers on its output. It has
one thread, so that a fork is safe. A child is a process like that of `train.py`, in a session of its own. It can be
told to die, as by SIGKILL, at the n-th operation on files of a folder (`die_at`) or inside the n-th piece of a state
that is written (`die_in_write`), and to have limits such as RLIMIT_FSIZE.
"""

import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
IMPORTS_S = 280  # seconds; less than the timeout of a test, which names the test as well


class Warm:
    """The parent. It is started with the first child, which most test processes of a suite never need."""

    def __init__(self) -> None:
        self._parent: subprocess.Popen[str] | None = None
        self._children: list[int] = []

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self._children:
            kill_group(pid)
        if self._parent is not None:
            self._parent.communicate(timeout=60)  # the end of its input is its end

    def run(self, arguments: Sequence[str], log: Path, timeout: float = 240, **order: Any) -> int:
        """Run a command to its end; return its exit code, or minus the signal for a child that was killed."""
        return self.wait(self.start(arguments, log, **order), timeout)

    def start(self, arguments: Sequence[str], log: Path, **order: Any) -> int:
        """Start a child that appends what it says to `log`; return its process id.

        order: die_at=(n, folder) or (n, folder, signal), die_in_write=n, limits={"RLIMIT_FSIZE": bytes}, env={...}.
        """
        if self._parent is None:
            self._start_parent()
        pid = int(self._ask({"arguments": list(arguments), "log": str(log), **order}, 240))
        self._children.append(pid)
        return pid

    def start_pair(self, arguments: Sequence[str], logs: Sequence[Path], **order: Any) -> list[int]:
        """Start the processes of one run, a log for each, as torchrun does; return their ids."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(logs)), "GROUP_RANK": "0"}
        own = [{"TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(len(logs))]
        return [
            self.start(arguments, log, env={**place, **ranks}, **order) for ranks, log in zip(own, logs, strict=True)
        ]

    def wait(self, pid: int | None = None, timeout: float = 240) -> int:
        """Wait for a child, by default the one that was started last; return its exit code as `run` does."""
        pid = self._children[-1] if pid is None else pid
        try:
            code = int(self._ask({"wait": pid}, timeout))
        except TimeoutError:
            kill_group(pid)
            self._answer(60)
            raise
        finally:
            self._children.remove(pid)
        kill_group(pid)  # loader workers that would notice only later
        return code

    def _start_parent(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        self._parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        assert self._answer(IMPORTS_S) == "ready"

    def _ask(self, order: Mapping[str, Any], timeout: float) -> str:
        assert self._parent is not None
        assert self._parent.stdin is not None
        print(json.dumps(order), file=self._parent.stdin, flush=True)
        return self._answer(timeout)

    def _answer(self, timeout: float) -> str:
        assert self._parent is not None
        assert self._parent.stdout is not None
        ready, _, _ = select.select([self._parent.stdout], [], [], timeout)
        if not ready:
            raise TimeoutError(f"no answer within {timeout} s")
        return self._parent.stdout.readline().strip()


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def loader_workers(pid: int) -> list[int]:
    """The workers of a training process; a child of another kind keeps track of what they share."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


# -------------------------------------------------------------------------------- the parent, and its children


def serve() -> None:
    import dreambooth.engine
    import dreambooth.generation.images
    import dreambooth.report  # noqa: F401

    gc.collect()
    gc.freeze()  # else each child's collector walks over a million imported objects, and copies their pages
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if "wait" in order:
            status = os.waitpid(order["wait"], 0)[1]
            print(os.waitstatus_to_exitcode(status), flush=True)
        else:
            assert len(os.listdir("/proc/self/task")) == 1, "a fork beside another thread can hang"
            child = os.fork()
            if not child:
                become(order)
            print(child, flush=True)


def become(order: Mapping[str, Any]) -> None:
    """The process of a command, from the fork to its end."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order.get("env", {}))
    import tempfile

    from pytorch_lightning.utilities import rank_zero_only

    rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", "0"))  # Lightning reads it when it is imported

    tempfile.tempdir = None
    for name, value in order.get("limits", {}).items():
        limit = value + address_space() if name == "RLIMIT_AS" else value
        resource.setrlimit(getattr(resource, name), (limit, limit))
    if "die_at" in order:
        sys.addaudithook(Killer(*order["die_at"]).hook)
    if "die_in_write" in order:
        die_in_write(order["die_in_write"])
    from dreambooth.cli import main

    program = f"{order['arguments'][0]}.py"
    sys.argv = [str(ROOT / program), *order["arguments"][1:]]
    code = main(order["arguments"], prog=program)
    sys.exit(code)


def address_space() -> int:
    """Return how much of it this process has already, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


class Killer:
    """Signals the process just before its n-th operation on the files of a folder; 0 only counts them, and says so."""

    def __init__(self, number: int, folder: str, signal_number: int = signal.SIGKILL) -> None:
        self.number, self.folder, self.signal_number = number, folder, signal_number
        self.count, self.pid = 0, os.getpid()

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if os.getpid() != self.pid or not self.concerns(event, arguments):
            return
        self.count += 1
        if self.count == self.number:
            os.write(2, f"signal {self.signal_number} at operation {self.number}: {event} {arguments[0]}\n".encode())
            os.kill(self.pid, self.signal_number)
        if not self.number:
            os.write(2, f"operation {self.count}: {event} {arguments[0]}\n".encode())

    def concerns(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event in CHANGES:
            inside_a_removal = event in ("os.remove", "os.rmdir") and arguments[-1] != -1
            return inside_a_removal or str(arguments[0]).startswith(self.folder)
        return event == "open" and bool((arguments[2] or 0) & WRITES) and str(arguments[0]).startswith(self.folder)


def die_in_write(number: int) -> None:
    """Half of the n-th piece that is written of a state reaches the file."""
    from dreambooth import checkpointing

    write, count = checkpointing._HashingWriter.write, 0

    def half(self: Any, data: Any) -> int:
        nonlocal count
        count += 1
        if count == number:
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            os.write(2, f"dies in piece {number} of a state\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, data)

    checkpointing._HashingWriter.write = half  # type: ignore[method-assign]


if __name__ == "__main__":
    serve()
