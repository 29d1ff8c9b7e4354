"""The comparison of two versions' results, benchmarks/same_bits.py, sees one changed bit, and what is not to count."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from same_bits import KINDS, compare

ONE_BIT_MORE = torch.nextafter(torch.ones(3), torch.tensor(2.0))


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same files of every kind."""
    run = tmp_path / "before" / "runs" / "whole"
    for folder in ("state", "model", "logs", "samples"):
        (run / folder).mkdir(parents=True)
    write_state(run, torch.ones(3))
    write_adapter(run, torch.ones(3))
    write_image(run, 0, "a recipe")
    (run / "logs" / "metrics.csv").write_text("step,train/loss\n1,0.25\n")
    write_session(run, seconds=1.5, last_step=4)
    shutil.copytree(tmp_path / "before", tmp_path / "now")
    return tmp_path / "before", tmp_path / "now"


def write_state(run: Path, moments: torch.Tensor) -> None:
    torch.save({"optimizer_states": [{"state": {0: {"exp_avg": moments}}}]}, run / "state" / "last.ckpt")


def write_adapter(run: Path, weights: torch.Tensor) -> None:
    save_file({"lora": weights}, run / "model" / "adapter.safetensors")


def write_image(run: Path, red: int, recipe: str) -> None:
    info = PngInfo()
    info.add_text("dreambooth", json.dumps({"prompt": recipe, "weights": "0" * 64}))
    Image.fromarray(np.full((2, 2, 3), (red, 0, 0), dtype=np.uint8)).save(run / "samples" / "0.png", pnginfo=info)


def write_session(run: Path, seconds: float, last_step: int) -> None:
    (run / "logs" / "sessions.jsonl").write_text(json.dumps({"seconds": seconds, "last_step": last_step}) + "\n")


def test_the_same_files_are_the_same_and_times_and_prose_do_not_count(sides: tuple[Path, Path]) -> None:
    run = sides[1] / "runs" / "whole"
    write_session(run, seconds=9.5, last_step=4)
    (run / "model" / "README.md").write_text("other words")
    findings = compare(*sides)
    assert [findings[kind].num_values for kind in KINDS] == [2, 3, 3, 0]
    assert not any(finding.differences for finding in findings.values())


@pytest.mark.parametrize(
    ("change", "kind", "size"),
    [
        (lambda run: write_state(run, ONE_BIT_MORE), "weights", 2**-23),
        (lambda run: write_adapter(run, ONE_BIT_MORE), "weights", 2**-23),
        (lambda run: (run / "model" / "adapter.safetensors").unlink(), "weights", None),
        (lambda run: (run / "logs" / "metrics.csv").write_text("step,train/loss\n1,0.5\n"), "logs", 0.25),
        (lambda run: write_session(run, seconds=1.5, last_step=5), "logs", 1),
        (lambda run: write_image(run, 2, "a recipe"), "images", 2),
        (lambda run: write_image(run, 0, "another recipe"), "images", None),
    ],
)
def test_one_changed_value_is_found_with_its_size(
    sides: tuple[Path, Path], change: Callable[[Path], object], kind: str, size: float | None
) -> None:
    change(sides[1] / "runs" / "whole")
    findings = compare(*sides)
    assert [distance for _, distance in findings[kind].differences] == [size]
    assert [other for other in KINDS if findings[other].differences] == [kind]
