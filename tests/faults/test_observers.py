"""A logger that fails is told of, and training goes on: metrics.csv is what it would be."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from warm import ROOT

from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.run.folder import RunFolder

SHORT = ("train.max_steps=2", "optim.warmup_steps=0", "prior.source=none", "validate.every_steps=2")


@pytest.fixture
def figures(config_file: Path) -> str:
    """metrics.csv of a run without loggers."""
    config = load_config(config_file, [*SHORT, "run.name=plain"])
    train(config)
    return RunFolder(config).metrics.read_text()


def test_tensorboard_that_cannot_make_its_file_is_told(
    config_file: Path, figures: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The name of this machine is a part of the file's: with a / in it there is no such folder."""
    monkeypatch.setattr(socket, "gethostname", lambda: "no/such/folder")
    config = load_config(config_file, [*SHORT, "log.tensorboard=true"])
    assert train(config) == 0
    said = caplog.text
    assert said.count("log.tensorboard: no more of it ([Errno 2] No such file or directory") == 1
    assert RunFolder(config).metrics.read_text() == figures


@pytest.mark.usefixtures("weights_and_biases")
def test_weights_and_biases_with_a_wrong_key_is_told(
    config_file: Path, figures: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "wrong")
    config = load_config(config_file, [*SHORT, "log.wandb=true"])
    assert train(config) == 0
    assert caplog.text.count("log.wandb: no more of it (") == 1
    assert RunFolder(config).metrics.read_text() == figures


@pytest.mark.slow
def test_weights_and_biases_without_a_network_is_told(config_file: Path, figures: str) -> None:
    """In a process of its own: it goes on trying in the background."""
    pytest.importorskip("wandb")
    config = load_config(config_file, SHORT)
    online = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    env = {**os.environ, **online, "WANDB_INIT_TIMEOUT": "2"}
    script = [sys.executable, str(ROOT / "train.py"), str(config_file), *SHORT, "log.wandb=true"]
    done = subprocess.run(script, capture_output=True, text=True, env=env, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("log.wandb: no more of it (") == 1, done.stderr
    assert RunFolder(config).metrics.read_text() == figures
