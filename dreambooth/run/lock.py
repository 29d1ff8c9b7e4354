"""The lock of a run's folder: one run at a time writes there. It ends with its process, however that dies."""

import contextlib
import os
from types import TracebackType

from filelock import FileLock, Timeout

from dreambooth.distributed import is_first, num_started, this_process
from dreambooth.errors import UserError
from dreambooth.run.folder import RunFolder


class RunLock:
    """Hold a run's folder for this process, as far as there is one already; of several processes the first does."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._lock: FileLock | None = None

    def __enter__(self) -> "RunLock":
        if self.run.lock.parent.is_dir():
            self.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def take(self) -> None:
        """Lock the folder. Raises UserError where another process has it."""
        if not is_first():
            return
        self.release()
        lock = FileLock(self.run.lock, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            owner = self._owner()
            is_one_of_several = num_started(os.environ) > this_process().world_size
            together = "; several processes were started: to train in them together, set train.devices"
            raise UserError(
                f"{self.run.path}: another process{owner and f' ({owner})'} trains in this folder; wait for it, stop "
                f"it, or choose another run.name{together if is_one_of_several else ''}"
            ) from error
        self._lock = lock

    def sign(self) -> None:
        """Write this process's id into the lock, for whoever finds it taken. On Windows nobody may write there."""
        with contextlib.suppress(PermissionError):
            self.run.lock.write_text(f"process {os.getpid()}", encoding="utf-8")

    def _owner(self) -> str:
        """Return which process has signed; empty where that cannot be read."""
        try:
            return self.run.lock.read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def release(self) -> None:
        """Let the folder go."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
