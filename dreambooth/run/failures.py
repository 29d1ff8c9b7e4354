"""Failures of a run that are nobody's bug: no memory, no disk, a process that dies. Each becomes advice in a line."""

import contextlib
import errno
import re
from collections.abc import Iterator

import torch
from safetensors import SafetensorError

from dreambooth.config import Config
from dreambooth.errors import UserError, first_line
from dreambooth.run.folder import RunFolder
from dreambooth.run.resume import ACCEPTABLE_CHANGES
from dreambooth.run.savings import SAVINGS, applies, written

OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|Unable to allocate|bad_alloc|Cannot allocate memory")
ALLOCATION = re.compile(r"(?:tried|Unable) to allocate (\d+ bytes|[\d.]+ ?[KMGT]?i?B)", re.IGNORECASE)
WORKER_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
PEER_DIED = re.compile(
    r"closed by peer|reset by peer|Broken pipe|NCCL|gloo|recvValue failed|process group", re.IGNORECASE
)
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def translate_errors(run: RunFolder, config: Config) -> Iterator[None]:
    """Translate errors within that have a known cause to UserError; others pass."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        text = about_memory(error, config) or about_disk(error, run) or about_processes(error, config)
        if text is None:
            raise
        raise UserError(f"{text}\nThe last state is as it was; the same command goes on from there") from error


def about_memory(error: Exception, config: Config) -> str | None:
    """Return what could not be allocated and which settings take less memory, the most effective first."""
    is_full = isinstance(error, MemoryError | torch.OutOfMemoryError) or getattr(error, "errno", 0) == errno.ENOMEM
    if not is_full and OUT_OF_MEMORY.search(str(error)) is None:
        return None
    found = ALLOCATION.search(str(error))
    size = found[1] if found else "what it needed next"
    if size.endswith(" bytes"):
        size = f"{int(size.removesuffix(' bytes')) / 2**20:,.0f} MiB"
    helpful = [changes for changes, _ in SAVINGS if applies(next(iter(changes)), config)]
    savings = [" ".join(f"{key}={written(value)}" for key, value in changes.items()) for changes in helpful]
    keys = dict.fromkeys(key for changes in helpful for key in changes if ACCEPTABLE_CHANGES.fullmatch(key))
    later = " ".join(f"--override {key}" for key in keys)
    return (
        f"out of memory: could not allocate {size}. Settings that take less, one after the other: "
        f"{', '.join([*savings, 'a smaller train.batch_size', 'a smaller data.resolution', 'method.name=lora'])}; "
        f"`python -m dreambooth plan CONFIG` says how much{f' (when resuming, add {later})' if later else ''}"
    )


def about_disk(error: Exception, run: RunFolder) -> str | None:
    """Return which file could not be written or read, and why; None for another error."""
    number = getattr(error, "errno", None)
    if isinstance(error, SafetensorError):
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else None
    name = str(getattr(error, "filename", None) or "")
    if number in DISK_IS_FULL:
        why = f"the disk is full ({first_line(error)})"
        return f"{name or run.path}: {why}; free some, or move the run to another disk (run.dir)"
    if number is None or not name.startswith(str(run.path)):
        return None
    if not run.config.is_file():
        return f"{run.path}: has vanished while training ({first_line(error)}); bring it back, or start again"
    return f"{name}: cannot be written or read ({first_line(error)}); repair that, or choose another run.dir"


def about_processes(error: Exception, config: Config) -> str | None:
    """Return which process has died; None for another error."""
    if not isinstance(error, RuntimeError):
        return None
    if worker := WORKER_DIED.search(str(error)):
        return (
            f"a data loader's worker (process {worker[1]}) has died; often it is the system that ran out of memory: "
            "data.num_workers=0 needs none"
        )
    if config.train.devices * config.train.num_nodes > 1 and PEER_DIED.search(str(error)):
        return f"another process of this run has died, or cannot be reached ({first_line(error)[:200]})"
    return None
