"""The task for spot machines: SkyPilot reads it as its own schema has it, and it runs a command of this program."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from dreambooth import cli
from dreambooth.config import load_config

ROOT = Path(__file__).parents[1]
TASK = ROOT / "configs" / "cloud" / "skypilot.yaml"
CHECK = """
import sys, yaml, jsonschema
from sky.utils import schemas
from sky import Task
task = yaml.safe_load(open(sys.argv[1]))
jsonschema.validate(task, schemas.get_task_schema())
jsonschema.validate(task["resources"], schemas.get_resources_schema())
jsonschema.validate(task["file_mounts"]["/runs"], schemas.get_storage_schema())
print(sorted(task))
"""


def test_the_task_runs_a_command_of_this_program() -> None:
    lines = yaml.safe_load(TASK.read_text())["run"].splitlines()
    words = [shlex.split(line) for line in lines if "dreambooth" in line]
    assert words
    for program, *arguments in words:
        assert re.fullmatch(r".*/dreambooth", program)
        cli._overview().parse_args(arguments)


@pytest.mark.slow
@pytest.mark.skipif("SKYPILOT_PYTHON" not in os.environ, reason="SKYPILOT_PYTHON names no Python that has SkyPilot")
def test_skypilot_reads_the_task_by_its_own_schema() -> None:
    """SkyPilot asks for half a gigabyte and packages of its own, so it lives in an environment beside this one's."""
    python = os.environ["SKYPILOT_PYTHON"]
    done = subprocess.run([python, "-c", CHECK, str(TASK)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "file_mounts" in done.stdout


def test_the_sweep_of_weights_and_biases_starts_runs_that_this_program_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load((ROOT / "configs" / "cloud" / "wandb-sweep.yaml").read_text())
    chosen = {"optim.lr": {"value": 0.002}, "prior.weight": {"value": 0.5}}
    assert set(chosen) == set(sweep["parameters"])
    arguments = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    command = create_sweep_command(sweep["command"])
    assert command.index("${args_no_hyphens}") == len(command) - 1
    _, program, config, *overrides = [*command[:-1], *arguments]
    assert program == "${program}"
    found = load_config(config, overrides)
    assert (found.optim.lr, found.prior.weight, found.run.name) == (0.002, 0.5, "wandb-0.002-0.5")
    assert sweep["metric"]["name"] == "best/quality"
