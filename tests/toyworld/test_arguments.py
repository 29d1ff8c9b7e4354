"""Mistakes in the arguments of `toyworld`'s commands: one line, exit code 2, and no work done before."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dreambooth.cli import main

ROOT = Path(__file__).parents[2]
JUDGE = ROOT / "checkpoints" / "toyworld" / "judge"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command reports as it ends with exit code 2."""
    capsys.readouterr()
    try:
        code = main(["toyworld", *arguments])
    except SystemExit as stopped:  # of the parser
        code = stopped.code
    out, message = capsys.readouterr()
    assert (code, out) == (2, "")
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("flow --base {none}", "no judge in {none}"),
        ("flow --processes 0", "--processes: 0: must be at least 1"),
        ("flow --steps 0 0 0", "--steps: 0: must be at least 1"),
        ("flow --steps 5 -1 5", "--steps: -1: must be at least 1"),
        ("controlnet --steps -1", "--steps: -1"),
        ("segmenter --steps 0", "--steps: 0"),
        ("blip2 --steps 1 1 1 1 0", "--steps: 0"),
        ("blip2 --clip {none}", "--clip {none}: config.json is missing"),
        ("kosmos2 --steps 1 -3 1", "--steps: -3"),
        ("kosmos2 --steps 1 x 1", "--steps: 'x' is no whole number"),
        ("kosmos2 --clip {none}", "--clip {none}: config.json is missing"),
        ("train --init-from {none}", "--init-from {none}: unet/config.json is missing"),
        ("train --processes 0", "--processes: 0"),
        ("train --processes 3 --batch-size 2", "--batch-size 2: at least 1 for each of the 3 processes"),
        ("train --num-samples 0", "--num-samples: 0"),
        (
            "train --stages base contrast",
            "--stages contrast: the first edition has decoder, encoder, judge, base",
        ),
        ("train --minutes 0", "--minutes: 0: must be above 0"),
        ("train --minutes nan", "--minutes: nan: must be above 0"),
        ("encoders --minutes -1", "--minutes: -1: must be above 0"),
    ],
)
def test_a_training_that_cannot_come_to_its_end_does_not_begin(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    none, work, out = tmp_path / "none", tmp_path / "work", tmp_path / "out"
    given = [each.format(none=none) for each in arguments.split()]
    assert message.format(none=none) in refused([*given, "--work", str(work), "--out", str(out)], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["train", "flow"])
def test_a_missing_gpu_is_told_before_training(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert "--device cuda: PyTorch finds no GPU; use cpu" in refused([command, "--device", "cuda", *folders], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_base_or_a_judge_is_not_evaluated(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    none, unjudged = str(tmp_path / "none"), str(tmp_path / "unjudged")
    shutil.copytree(tiny_base, unjudged)
    assert f"--model {none}: model_index.json is missing" in refused(["evaluate", "--model", none], capsys)
    assert f"no judge in {unjudged}" in refused(["evaluate", "--model", unjudged, "--per-class", "3"], capsys)


def test_one_encoder_cannot_be_measured_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    message = refused(["encoders", "--only", "vit", "--measure-only", "--out", str(tmp_path)], capsys)
    assert "--only vit: --measure-only measures both" in message


def test_render_makes_the_folder_of_its_file_and_at_least_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sheet = tmp_path / "sheets" / "sheet.png"
    assert "--count: 0: must be at least 1" in refused(["render", "--count", "0", "--out", str(sheet)], capsys)
    assert main(["toyworld", "render", "--count", "2", "--out", str(sheet)]) == 0
    assert Image.open(sheet).size[1] == 130


def test_stages_before_the_base_are_trained_without_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work, out = tmp_path / "work", tmp_path / "out"
    command = ["toyworld", "train", "--stages", "decoder", "--minutes", "0.001", "--work", str(work), "--out", str(out)]
    assert main(command) == 0
    assert "no pipeline is written yet" in capsys.readouterr().out
    assert (work / "decoder.pt").is_file()
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments", ["render --out {file}", "row {none} --out {file}", "outcome {none} --poster {file}"]
)
def test_a_file_that_no_image_can_be_written_to_is_told_before_any_work(
    arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file, none = tmp_path / "sheets" / "sheet.pgn", tmp_path / "none"
    message = refused([each.format(file=file, none=none) for each in arguments.split()], capsys)
    assert f"{file}: an image's file ends with .png, .jpg, .jpeg, .webp" in message
    assert list(tmp_path.iterdir()) == []
