"""The commands as a user types them: help at once, exit codes, one or two lines for a mistake."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.cli import COMMANDS, main
from dreambooth.cli.option_names import with_option
from dreambooth.config import Config, config_fields
from dreambooth.engine import train

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> Path:
    """A finished run, so a model that knows its subject."""
    from conftest import CONFIG

    folder = tmp_path_factory.mktemp("cli")
    (folder / "config.yaml").write_text(CONFIG.format(runs=folder, base=tiny_base, pictures=pictures))
    assert main(["train", str(folder / "config.yaml"), "train.max_steps=3", "validate.every_steps=0"]) == 0
    return folder / "run"


@pytest.mark.parametrize("command", [["-m", "dreambooth"], ["train.py"], ["sample.py"]], ids=" ".join)
def test_help_answers_without_loading_torch(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "usage:" in done.stdout
    for heavy in ("torch", "diffusers", "transformers", "pytorch_lightning", "PIL"):
        assert not re.search(rf"\| +{heavy}\n", done.stderr), f"--help loads {heavy}"


WITHOUT_TORCH = """
import sys
from dreambooth.cli import main

base, photos, config, *mistakes = sys.argv[1:]
for mistake in mistakes:
    assert main(["train", config, mistake]) in (2, 3)
for mistake in (["--size", "60x64"], ["--lora", "no.safetensors"], ["--embedding", "no.pt"], ["--vae", "./no"]):
    assert main(["sample", base, "a dog", *mistake]) in (2, 3)
for mistake in (["a __no__ dog"], ["--prompts", "no.txt"]):
    assert main(["sample", base, "a dog", *mistake]) == 2
assert main(["evaluate", base, "--images", photos]) == 2
assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
"""


def test_a_wrong_name_or_path_is_told_before_the_libraries_are_loaded(
    config_file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """Which takes 7 to 15 seconds, and once was what a newcomer waited for to read of a typing mistake."""
    photos = tmp_path / "torn"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"no image")
    mistakes = {
        f"subject.images={photos}": "1 of 1 files cannot be used as images: a.jpg (not an image)",
        "model.vae=./nowhere": "model.vae: ./nowhere: there is no such folder or file",
        "method.name=lara": "method.name=lara: unknown method; one of full, lora",
        "subject.images=nowhere": "subject.images: nowhere: there is no such folder",
        "validate.images=README.md": "validate.images: README.md: is a file, not a folder",
        "model.base=./nowhere": "model.base: ./nowhere: there is no such folder or file",
        "validate.scheduler=dimm": "scheduler=dimm: unknown sampler; did you mean ddim?",
        "optim.learning_rate=1": "did you mean optim.lr?",
    }
    others = ["--size 60x64", "--lora no.safetensors", "--embedding no.pt", "--vae ./no: there is no"]
    others += ["__no__: there is no file wildcards/no.txt", "--prompts no.txt: there is no such file", "a.jpg (not an"]
    line = [sys.executable, "-c", WITHOUT_TORCH, str(tiny_base), str(photos), str(config_file), *mistakes]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [line_of for line_of in done.stderr.splitlines() if line_of.startswith("error: ")]
    for said, line_of in zip([*mistakes.values(), *others], told, strict=True):
        assert said in line_of


def test_train_alone_asks_for_a_config_and_for_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "check", "plan"):
        with pytest.raises(SystemExit, match="2"):
            main([command])
        assert "error: the following arguments are required: CONFIG.yaml (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["model", "a dog", "--num-images", "two"], "--num-images: invalid int value: 'two'"),
        (["model", "a dog", "--device", "tpu"], "--device: invalid choice: 'tpu' (choose from"),
        (["model"], "the following arguments are required: PROMPT"),
        (["model", "a dog", "--nmu-images", "2"], "unrecognized arguments: --nmu-images 2; did you mean --num-images?"),
        (["model", "a dog", "--zzzz=3"], "unrecognized arguments: --zzzz=3 ("),
    ],
)
def test_an_argument_that_cannot_be_read_gets_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, prog in ((["sample", *arguments], "sample.py"), (["sample", *arguments], None)):
        with pytest.raises(SystemExit, match="2"):
            main(command, prog)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {told}")
        assert "--help lists what there is" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "usage: python -m dreambooth" in capsys.readouterr().out


def test_an_option_of_a_command_in_a_command_is_guessed_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["toyworld", "train", "--minuts", "3"])
    assert "unrecognized arguments: --minuts 3; did you mean --minutes?" in capsys.readouterr().err


def test_train_help_lists_every_config_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"], prog="train.py")
    told = capsys.readouterr().out
    assert [key for key in config_fields() if f"{key} (" not in told] == []


def test_pictures_are_numbered_hold_their_recipe_and_come_with_a_grid(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--num-images", "2", "--steps", "2", "--guidance-scale", "3", "--seed", "5", "--out", str(tmp_path)]
    assert main(["sample", str(run_folder), "a photo of {subject}", "a {class} in the snow", *arguments]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths] == [
        "00000-a-photo-of-sks-dog.png",
        "00001-a-photo-of-sks-dog.png",
        "00002-a-dog-in-the-snow.png",
        "00003-a-dog-in-the-snow.png",
        "grid-00000.png",
    ]
    recipe = json.loads(Image.open(paths[3]).text["dreambooth"])
    expected = {"prompt": "a dog in the snow", "seed": 6, "num_inference_steps": 2, "guidance_scale": 3.0}
    assert expected.items() <= recipe.items()
    assert json.loads(Image.open(paths[0]).text["dreambooth"])["prompt"] == "a photo of sks dog"
    assert Image.open(paths[0]).size == (64, 64)
    grid = Image.open(paths[4])
    assert grid.width == 2 * 64 + 3 * 2
    assert grid.height > 2 * 64 + 3 * 2, "prompts and seeds are written beside the images"


def test_a_recipe_makes_the_same_picture_again_alone(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ["sample", str(run_folder), "a {class}", "--steps", "2", "--num-images", "3", "--out", str(tmp_path / "a")]
    main(first)
    recipe = json.loads(Image.open(tmp_path / "a" / "00002-a-dog.png").text["dreambooth"])
    again = ["sample", str(run_folder), recipe["prompt"], "--steps", "2", "--num-images", "1", "--batch-size", "1"]
    main([*again, "--seed", str(recipe["seed"]), "--out", str(tmp_path / "b")])
    one, other = (Image.open(tmp_path / path) for path in ("a/00002-a-dog.png", "b/00000-a-dog.png"))
    differences = [abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)]
    assert max(differences) <= 1, "the same seed and prompt gave another picture"


def test_steps_and_guidance_that_are_not_given_are_those_of_the_runs_own_grids(
    run_folder: Path, tmp_path: Path
) -> None:
    main(["sample", str(run_folder), "a dog", "--num-images", "1", "--out", str(tmp_path)])
    recipe = json.loads(Image.open(tmp_path / "00000-a-dog.png").text["dreambooth"])
    assert (recipe["num_inference_steps"], recipe["guidance_scale"]) == (2, 7.5)


def test_a_second_call_numbers_on_and_overwrites_nothing(run_folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        main(["sample", str(run_folder), "a dog", "--steps", "1", "--num-images", "1", "--out", str(tmp_path)])
    expected = ["00000-a-dog.png", "00001-a-dog.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


def test_a_picture_is_made_again_from_itself_alone(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "3", "--guidance-scale", "2", "--seed", "5", "--scheduler", "euler-a", "--num-images", "2"]
    assert main(["sample", str(run_folder), *options, "a {class} in the snow", "--out", str(tmp_path / "a")]) == 0
    picture = tmp_path / "a" / "00001-a-dog-in-the-snow.png"
    assert main(["sample", "--from-image", str(picture), "--out", str(tmp_path / "b")]) == 0
    first, again = Image.open(picture), Image.open(tmp_path / "b" / "00000-a-dog-in-the-snow.png")
    assert np.abs(np.asarray(first, dtype=int) - np.asarray(again, dtype=int)).max() <= 1
    assert again.info["dreambooth"] == first.info["dreambooth"]
    capsys.readouterr()
    elsewhere = str(shutil.copytree(run_folder / "model", tmp_path / "elsewhere"))
    assert main(["sample", elsewhere, "--from-image", str(picture), "--out", str(tmp_path)]) == 0
    assert "other weights" not in capsys.readouterr().err


def test_a_picture_without_a_recipe_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert main(["sample", "--from-image", str(tmp_path / "plain.png")]) == 2
    assert (
        "plain.png: an image without a recipe; name one that sample.py or evaluate has made" in capsys.readouterr().err
    )


def test_a_base_model_and_the_model_folder_itself_can_be_sampled(
    run_folder: Path, tiny_base: Path, tmp_path: Path
) -> None:
    short = ["--steps", "1", "--num-images", "1", "--size", "64x48", "--out", str(tmp_path)]
    assert main(["sample", str(run_folder / "model"), "a {class}", *short]) == 0
    assert main(["sample", str(tiny_base), "a dog", *short]) == 0
    assert Image.open(tmp_path / "00001-a-dog.png").size == (64, 48)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("num_inference_steps=9: too many", "--steps 9: too many"),
        ("model.revision: 'x' is one of a hub id", "--revision: 'x' is one of a hub id"),
        ("steps=9, revision=x, seed=1: do not fit", "--steps 9, --revision x, seed=1: do not fit"),
        ("model.quantize=int8: needs torchao", "--quantize int8: needs torchao"),
        ("only_masked=True: needs a mask", "--only-masked: needs a mask"),
        ("seed=-1: must be at least 0", "seed=-1: must be at least 0"),
        ("revision: there is no such folder", "revision: there is no such folder"),
        ("prompts.jsonl, line 1: steps=0: must be", "prompts.jsonl, line 1: steps=0: must be"),
    ],
)
def test_a_field_in_a_message_is_the_option_that_has_set_it(message: str, told: str) -> None:
    parser = argparse.ArgumentParser()
    for name in ("--steps", "--revision", "--quantize", "--seed"):
        parser.add_argument(name)
    parser.add_argument("--only-masked", action="store_true")
    parser.set_defaults(parser=parser)
    given = parser.parse_args(["--steps=9", "--revision=x", "--quantize=int8", "--only-masked"])
    assert with_option(message, given) == told
    assert with_option(message, parser.parse_args([])) == message


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["{run}", "a dog", "--scheduler", "dimm"], 2, "--scheduler dimm: unknown sampler; did you mean ddim?"),
        (["{run}", "a dog", "--size", "big"], 2, "--size big: not a size; write WIDTHxHEIGHT"),
        (
            ["{run}", "a dog", "--size", "60x64"],
            2,
            "--size 60x64: width and height must be multiples of 8 pixels; use 56x64 or 64x64",
        ),
        (["{run}", "a dog", "--num-images", "0"], 2, "--num-images 0: must be at least 1"),
        (["{run}", "a dog", "--seed", "-1"], 2, "--seed -1"),
        (["{run}", "a ({subject}:big)"], 2, "the weight 'big' is no number; write (word:1.3)"),
        (["{base}", "a photo of {subject}"], 2, "has learned no subject"),
        (["{run}", "a dog", "--scheduler", "DPM++ 2M Karras"], 2, "did you mean dpm++-karras?"),
        (["{run}", "a dog", "--size", "512"], 2, "write WIDTHxHEIGHT in pixels, e.g. 512x512"),
        (["{run}", "a dog", "--steps", "1001"], 2, "--steps 1001: must be from 1 to 1000"),
        (["{runs}/rnu", "a dog"], 3, "/run? There are: "),
        (["./nowhere", "a dog"], 3, "./nowhere: there is no such folder or file"),
        (["{unfinished}", "a dog"], 3, "no model yet"),
    ],
)
def test_a_mistake_gets_its_exit_code_and_a_line_that_names_it(
    run_folder: Path,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    named: str,
) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("run: {name: unfinished}\n")
    places = {
        "{run}": run_folder,
        "{base}": tiny_base,
        "{runs}": run_folder.parent,
        "{unfinished}": tmp_path / "unfinished",
    }
    out = tmp_path / "out"
    assert (
        main(
            [
                "sample",
                *[re.sub(r"\{\w+\}", lambda match: str(places.get(match[0], match[0])), word) for word in arguments],
                "--out",
                str(out),
            ]
        )
        == code
    )
    told = capsys.readouterr().err
    assert named in told
    assert len(told.strip().splitlines()) <= 2
    assert not out.exists(), "something was written"


def test_a_config_mistake_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "configs/toyworld.yaml", "train.max_step=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: configs/toyworld.yaml: train.max_step: unknown key; did you mean train.max_steps?\n"


def test_numbers_that_are_not_finite_exit_with_4(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config_file), "optim.lr=1e18", "validate.every_steps=0", "optim.weight_decay=0"]) == 4
    assert "Lower optim.lr" in capsys.readouterr().err


def test_train_through_the_command_equals_train_through_the_engine(config_file: Path, config: Config) -> None:
    assert main(["train", str(config_file), "run.name=command"]) == train(config) == 0
    texts = [(Path(config.run.dir) / name / "logs" / "metrics.csv").read_text() for name in ("command", "run")]
    assert texts[0] == texts[1]


QUICK = ["validate.every_steps=0", "prior.source=none", "optim.warmup_steps=0", "optim.schedule=constant"]


def test_the_report_is_of_the_model_that_was_just_made_whatever_the_clock_said_before(config_file: Path) -> None:
    report = config_file.parent / "runs" / "run" / "report.html"
    assert main(["train", str(config_file), *QUICK, "train.max_steps=2"]) == 0
    first = report.read_text()
    os.utime(report, (time.time() + 1e6,) * 2)
    assert main(["train", str(config_file), *QUICK, "train.max_steps=2"]) == 0
    assert report.read_text() == first
    assert main(["train", str(config_file), *QUICK, "train.max_steps=3"]) == 0
    assert report.read_text() != first


def test_a_finished_run_says_so_and_keeps_its_report_once_its_photos_are_away(
    config_file: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = shutil.copytree(pictures, tmp_path / "photos")
    command = ["train", str(config_file), *QUICK, f"subject.images={photos}", "train.max_steps=2", "optim.lr=auto"]
    assert main(command) == 0
    report = tmp_path / "runs" / "run" / "report.html"
    before = report.read_text()
    shutil.rmtree(photos)
    capsys.readouterr()
    assert main(command) == 0
    assert "run: finished at step 2" in capsys.readouterr().out
    assert report.read_text() == before
    assert main([*command, "train.max_steps=3"]) == 2
    assert f"subject.images: {photos}: " in capsys.readouterr().err
    assert main([*command, "run.resume=never"]) == 2
    assert f"{photos}: " in capsys.readouterr().err
