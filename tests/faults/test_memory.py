"""Memory that runs out, workers and processes that die: a line, an exit code, and the same bits afterwards."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from crashes import SETTINGS, assert_equal_runs
from warm import Warm, loader_workers

from dreambooth.checkpointing import find_state
from dreambooth.config import Config, load_config
from dreambooth.errors import UserError
from dreambooth.run.failures import translate_errors
from dreambooth.run.folder import RunFolder


@pytest.mark.slow
def test_memory_that_runs_out_is_told_with_what_takes_less(config_file: Path, tmp_path: Path, warm: Warm) -> None:
    """RLIMIT_AS: this process gets no more than that; what it asks for is real."""
    run = RunFolder(load_config(config_file))
    short = ["train", str(config_file), "prior.source=none", "validate.every_steps=0", "optim.warmup_steps=0"]
    assert warm.run([*short, "train.max_steps=2"], tmp_path / "log") == 0
    before = run.state.read_bytes()
    greedy = [*short, "train.batch_size=3000", "--override", "train.batch_size"]
    code = warm.run(greedy, tmp_path / "log2", limits={"RLIMIT_AS": 2**29})
    said = (tmp_path / "log2").read_text()
    assert code == 2, said
    assert "Traceback" not in said
    for part in (
        "error: out of memory: could not allocate",
        "MiB. Settings that take less, one after the other: train.gradient_checkpointing=true, ",
        "train.micro_batch_size=1, ",
        "--override train.gradient_checkpointing",
        "The last state is as it was",
    ):
        assert part in said, said
    assert run.state.read_bytes() == before
    saving = ["train.micro_batch_size=1", "--override", "train.micro_batch_size", "--override", "train.batch_size"]
    assert warm.run([*short, *saving], tmp_path / "log3") == 0, (tmp_path / "log3").read_text()


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total"), "2.50 GiB"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
                      "you tried to allocate 4294967296 bytes. Error code 12"), "4,096 MiB"),
        (MemoryError("Unable to allocate 745. GiB for an array with shape (100000, 1000000)"), "745. GiB"),
        (MemoryError(), "what it needed next"),
        (OSError(12, "Cannot allocate memory"), "what it needed next"),
    ],
)  # fmt: skip
def test_every_librarys_word_for_it_is_understood(config: Config, error: Exception, size: str) -> None:
    with pytest.raises(UserError, match=f"could not allocate {size}"), translate_errors(RunFolder(config), config):
        raise error


def test_what_is_not_known_passes(config: Config) -> None:
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        FileNotFoundError(2, "none", "/elsewhere"),
        ConnectionRefusedError(111, "Connection refused"),
    ):
        with pytest.raises(type(error)), translate_errors(RunFolder(config), config):
            raise error


@pytest.mark.slow
def test_a_loaders_worker_that_is_killed_ends_the_run_by_name_and_it_goes_on_exactly(
    config_file: Path, tmp_path: Path, warm: Warm
) -> None:
    """Within seconds; of Linux' own accord that is what happens where memory runs out."""
    more = [*SETTINGS, "data.num_workers=1", "train.max_steps=8"]
    whole, run = (RunFolder(load_config(config_file, [f"run.name={name}", *more])) for name in ("whole", "run"))
    without = ["run.name=whole", *more, "data.num_workers=0"]
    assert warm.run(["train", str(config_file), *without], tmp_path / "log") == 0
    pid = warm.start(["train", str(config_file), *more], tmp_path / "log2")
    deadline = time.monotonic() + 120
    while not run.state.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    (worker,) = loader_workers(pid)
    os.kill(worker, signal.SIGKILL)
    code, said = warm.wait(timeout=30), (tmp_path / "log2").read_text()
    assert code == 2, said
    assert f"a data loader's worker (process {worker}) has died" in said
    assert "Traceback" not in said
    assert find_state(run.state).step < 8
    assert warm.run(["train", str(config_file), *more], tmp_path / "log3") == 0
    assert_equal_runs(whole, run)
