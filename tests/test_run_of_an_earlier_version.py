"""A run that version 0.1 began is resumed, sampled, evaluated and exported now, and comes out as it did there.

`data/run-of-0.1/README.md` says how it was made. On a machine like that one every value is the same to the last bit;
elsewhere kernels round otherwise, and every value is near.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.cli import main

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from same_bits import files_in, machine, read, same

ROOT = Path(__file__).parent.parent
RUN = ROOT / "tests" / "data" / "run-of-0.1"
COMMANDS = (
    ("train", "interrupted/config.yaml", "run.dir=."),
    ("sample", "interrupted", "a photo of {subject} on the beach", "--num-images", "1", "--out", "pictures"),
    ("report", "interrupted"),
    (
        "evaluate", "interrupted", "--images", "data/robot", "--prompts", "prompts.txt", "--num-images", "1",
        "--class-prompt-images", "1", "--dino", "checkpoints/toyworld-encoders/vit", "--clip", "none",
        "--out", "evaluation",
    ),
    ("export", "interrupted", "--format", "lora", "--out", "exports/lora"),
    ("export", "interrupted", "--format", "kohya", "--out", "exports/kohya"),
    ("export", "interrupted", "--format", "embedding", "--out", "exports/embedding"),
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands now make of the run; its paths are those that the earlier version saw."""
    folder = tmp_path_factory.mktemp("earlier")
    shutil.copytree(RUN / "interrupted", folder / "interrupted")
    for name in ("checkpoints", "data"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "prompts.txt").write_text("{subject} in the snow\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS:
            assert main(command) == 0, command
    return folder


@pytest.mark.slow
def test_it_goes_on_from_its_last_step(finished: Path) -> None:
    lines = (finished / "interrupted" / "logs" / "sessions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(each["first_step"], each["last_step"]) for each in map(json.loads, lines)] == [(0, 5), (5, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(map(str, files_in(RUN / "expected"))))
def test_what_comes_of_it_is_what_came_of_it_there(finished: Path, path: str) -> None:
    expected, found = values(RUN / "expected" / path), values(finished / path)
    is_same_machine = machine() == json.loads((RUN / "machine.json").read_text(encoding="utf-8"))
    assert expected.keys() <= found.keys()
    if path.startswith("exports") and path.endswith("learned_embeds.safetensors"):  # a row has one dimension by now
        found = {name: row[None] for name, row in found.items()}
    alike = same if is_same_machine else near
    different = {name: (value, found[name]) for name, value in expected.items() if not alike(value, found[name])}
    assert not different


def test_the_result_that_it_had_there_is_sampled_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for state in ("interrupted", "expected/interrupted"):
        shutil.copytree(RUN / state, tmp_path / "interrupted", dirs_exist_ok=True)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    assert main(COMMANDS[1]) == 0
    expected, found = (values(folder / "pictures" / "00000.png") for folder in (RUN / "expected", tmp_path))
    assert near(expected["pixels"], found["pixels"])


def values(path: Path) -> dict[str, Any]:
    """Return what a file holds. An image's name has its prompt by now, and the metadata of adapters has changed."""
    path = next(path.parent.glob(f"{path.stem}*{path.suffix}"))
    return {name: value for name, value in read(path).items() if not name.startswith("metadata/")}


def near(expected: Any, found: Any) -> bool:
    """Whether two numbers or tensors agree to a few percent; of texts, which may name versions, only that both are."""
    numbers = [number(value) for value in (expected, found)]
    if numbers[0] is None or numbers[1] is None:
        return type(expected) is type(found)
    difference = torch.linalg.vector_norm(numbers[0] - numbers[1])
    return bool(difference <= 0.05 * torch.linalg.vector_norm(numbers[0]) + 1e-3 * (numbers[0].numel() == 1))


def number(value: Any) -> torch.Tensor | None:
    """A value as float64, also of a number in a table's text; None for other texts."""
    try:
        return torch.as_tensor(float(value) if isinstance(value, str) else value, dtype=torch.float64)
    except (TypeError, ValueError):
        return None
