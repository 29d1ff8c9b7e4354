"""`--profile`: all of a step's time is told, part by part, and nothing of the training changes."""

import re
from pathlib import Path

import pytest

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.run.folder import RunFolder
from dreambooth.training.profiling import NUM_WARM_UP, PARTS, REST, StepProfiler


def test_a_profiled_run_tells_every_part_and_trains_the_same(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(config_file), "validate.every_steps=0", "train.accumulate=2", "train.max_steps=5"]
    assert main([*command, "run.name=plain"]) == 0
    assert "median" not in capsys.readouterr().err
    assert main([*command, "run.name=profiled", "--profile"]) == 0
    rows = dict(re.findall(r"^\| (.+?) \| ([\d.]+) \|", capsys.readouterr().err, re.MULTILINE))
    assert set(rows) == {*PARTS.values(), REST, "a whole step"}
    assert all(float(rows[part]) > 0 for part in ("forward", "backward", "optimizer", "texts"))
    plain, profiled = (
        RunFolder(load_config(config_file, [f"run.name={name}"])).metrics for name in ("plain", "profiled")
    )
    assert plain.read_bytes() == profiled.read_bytes()


def test_each_moment_is_charged_to_the_innermost_part() -> None:
    profiler = StepProfiler(accumulate=2)
    for _ in range(2 * NUM_WARM_UP + 5):  # the last step is half done
        with profiler.profile("[Loop].train_dataloader_next"):
            pass
        with profiler.profile("run_training_batch"), profiler.profile("optimizer_step"):
            with profiler.profile("[Strategy].training_step"), profiler.profile("texts"):
                spin()
            with profiler.profile("[Strategy].backward"):
                spin()
    steps = profiler.steps()
    assert len(steps) == 2
    for step in steps:
        assert step["texts"] > 10 * step["forward"] > 0, "what lies within a part is not counted twice"
        assert step["backward"] > 10 * step["optimizer"] > 0
        assert step["clip"] == 0


def spin() -> None:
    sum(range(200_000))
