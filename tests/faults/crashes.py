"""What a crash may not change: the files of a run, compared with those of one that was left in peace."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from dreambooth.checkpointing import find_state
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.run.folder import RunFolder

# Most of what a run has: a prior that is made on the way, accumulation, shapes, saves, validations.
SETTINGS = (
    "train.max_steps=5",
    "train.accumulate=2",
    "train.save_every_steps=2",
    "data.flip=true",
    "data.buckets=true",
    "data.bucket_step=16",
    "prior.num_images=8",
    "validate.every_steps=3",
    "validate.num_images=1",
)


def assert_equal_runs(whole: RunFolder, run: RunFolder) -> None:
    """Weights, moments, figures, scores, the chosen step, pictures and model: all of it, bit for bit."""
    for name in [path.name for path in whole.state.parent.glob("*.ckpt") if path != whole.previous]:
        states = [torch.load(each.path / "state" / name, weights_only=True) for each in (whole, run)]
        assert_equal(states[0], states[1], name)
    for path in (whole.metrics, whole.scores):
        assert path.read_text() == (run.logs / path.name).read_text(), f"{path.name} differs"
    best = [ValidationLog(each.scores).best for each in (whole, run)]
    assert best[0] == best[1]
    assert names(whole.samples) == names(run.samples)
    assert names(whole.model) == names(run.model)
    for folder in ("samples", "model"):
        for path in (whole.path / folder).rglob("*"):
            if path.is_file():
                other = run.path / path.relative_to(whole.path)
                assert path.read_bytes() == other.read_bytes(), f"{other} differs"
    assert_whole(run)
    assert not leftovers(run), f"left behind: {leftovers(run)}"


def assert_equal(one: Any, two: Any, name: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), f"{name} differs"
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), f"{name} differs"
        for key in one:
            if key != "loops":  # Lightning's own counters, of batches that this process has loaded
                assert_equal(one[key], two[key], f"{name}: {key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), f"{name} differs"
        for number, (mine, other) in enumerate(zip(one, two, strict=True)):
            assert_equal(mine, other, f"{name}[{number}]")
    else:
        assert one == two, f"{name} differs: {one} and {two}"


def assert_whole(run: RunFolder) -> None:
    """Assert that all that a tool could load at this moment is whole: the model, the states, the class pictures."""
    if run.model.exists():
        DiffusionPipeline.from_pretrained(run.model)
        assert (run.model / "dreambooth.json").is_file()
    states = [path for path in (run.state, run.previous) if path.is_file()]
    for path in states:
        find_state(path)
    for path in run.prior.glob("*/*.safetensors"):
        assert path.stat().st_size > 0


def spoil_class_picture(run: RunFolder, number: int) -> None:
    """As a file of an earlier version, which has no digest, with numbers that are none."""
    path = sorted(run.prior.glob("*/*.safetensors"))[number // 2]
    latents = load_file(path)["latents"]
    latents[number % 2] = float("nan")
    save_file({"latents": latents}, path)


def leftovers(run: RunFolder) -> list[str]:
    return [str(path) for path in run.path.rglob("*") if re.fullmatch(r"\..*|.*\.(part|tmp)", path.name)]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.001)
