"""Pull the plug at any moment, run the same command again: weights and logged figures of a run that never stopped.

Real processes and real signals. The runs accumulate, stop in mid-epoch (3 pictures of two shapes, 4 a step), load
data with a worker, and are killed while the class prior is half made.
"""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from warm import Warm

from dreambooth.checkpointing import find_state
from dreambooth.config import load_config
from dreambooth.run.folder import RunFolder

SETTINGS = (
    "train.max_steps=10",
    "train.accumulate=2",
    "train.save_every_steps=3",
    "data.flip=true",
    "data.buckets=true",
    "data.bucket_step=16",
    "prior.num_images=32",
    "validate.every_steps=5",
)


def command(config_file: Path, name: str, *more: str) -> list[str]:
    return ["train", str(config_file), f"run.name={name}", *SETTINGS, *more]


def finish(warm: Warm, config_file: Path, name: str, *more: str) -> str:
    """Run to the end; what it said."""
    log = config_file.with_name(f"{name}-finish.log")
    code = warm.run(command(config_file, name, *more), log)
    assert code == 0, log.read_text()
    return log.read_text()


def interrupt(
    warm: Warm, config_file: Path, name: str, number: int, when: Callable[[RunFolder], bool], *more: str
) -> tuple[int, str]:
    """Start a run, send a signal once `when` holds; exit code and what it said."""
    run, log = folder(config_file, name), config_file.with_name(f"{name}.log")
    pid = warm.start(command(config_file, name, *more), log)
    deadline = time.monotonic() + 120
    while not when(run):
        assert Path(f"/proc/{pid}/exe").exists(), f"the run ended before it could be interrupted: {log.read_text()}"
        assert time.monotonic() < deadline, "the moment to interrupt never came"
        time.sleep(0.002)
    os.killpg(pid, number)  # loader workers too, as a terminal and a cluster do
    return warm.wait(pid), log.read_text()


def folder(config_file: Path, name: str) -> RunFolder:
    return RunFolder(load_config(config_file, [f"run.name={name}", *SETTINGS]))


def steps_logged(run: RunFolder) -> int:
    """The last step in metrics.csv, which begins with the header and the step 0 that is validated."""
    path = run.logs / "metrics.csv"
    return max(0, len(path.read_text().splitlines()) - 2) if path.is_file() else 0


def assert_equal_runs(first: RunFolder, second: RunFolder) -> None:
    assert (first.logs / "metrics.csv").read_text() == (second.logs / "metrics.csv").read_text()
    states = [torch.load(run.state, weights_only=True) for run in (first, second)]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), f"{name} differs after resuming"
    for path in first.samples.iterdir():
        assert path.read_bytes() == (second.samples / path.name).read_bytes(), f"{path.name} differs after resuming"
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (first.model / weights).read_bytes() == (second.model / weights).read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path, warm: Warm) -> Path:
    """The config of a run, named `whole`, that was left in peace."""
    from conftest import CONFIG

    folder = tmp_path_factory.mktemp("interruptions")
    config_file = folder / "config.yaml"
    config_file.write_text(CONFIG.format(runs=folder / "runs", base=tiny_base, pictures=pictures))
    finish(warm, config_file, "whole")
    return config_file


def test_killed_twice_and_run_again_equals_a_run_that_was_never_killed(uninterrupted: Path, warm: Warm) -> None:
    """Once before the first save, when the prior is half made, and once between two saves."""
    code, _ = interrupt(warm, uninterrupted, "killed", signal.SIGKILL, lambda run: 1 <= steps_logged(run) < 3)
    assert code == -signal.SIGKILL
    run = folder(uninterrupted, "killed")
    made = len(list(run.prior.glob("*/*.safetensors")))
    assert 0 < made < 16, f"the prior was to be half made, but has {made} of 16 blocks"
    interrupt(warm, uninterrupted, "killed", signal.SIGKILL, lambda run: steps_logged(run) >= 7)
    assert 3 <= find_state(run.state).step < 10
    said = finish(warm, uninterrupted, "killed")
    assert re.search(r"resuming .*killed at step \d of 10", said)
    assert_equal_runs(folder(uninterrupted, "whole"), run)


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow),
        (signal.SIGTERM, 1),
        pytest.param(signal.SIGUSR1, 1, marks=pytest.mark.slow),
    ],
    ids=["SIGINT", "SIGTERM", "SIGUSR1"],
)
def test_told_to_stop_it_saves_after_the_step_and_exits_with_128_plus_the_signal(
    uninterrupted: Path, warm: Warm, number: signal.Signals, workers: int
) -> None:
    name, more = number.name.lower(), f"data.num_workers={workers}"
    code, said = interrupt(warm, uninterrupted, name, number, lambda run: steps_logged(run) >= 4, more)
    assert code == 128 + number, said
    run = folder(uninterrupted, name)
    assert find_state(run.state).step >= 4
    assert f"saved at step {find_state(run.state).step}" in said
    assert "Traceback" not in said
    finish(warm, uninterrupted, name, more)
    assert_equal_runs(folder(uninterrupted, "whole"), run)
