"""What is reported before anything heavy is loaded or computed, and how progress looks: quick and without a model."""

import errno
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file

from dreambooth.cli import sampling
from dreambooth.disk import check_writable, translate_write_errors
from dreambooth.errors import ModelError, UserError
from dreambooth.generation.models.base_path import find_path
from dreambooth.generation.models.base_source import base_source
from dreambooth.generation.models.location import check_is_there
from dreambooth.hints import command_line, missing_environment
from dreambooth.subject_info import LearnedSubject, SubjectInfo

DOG = LearnedSubject("sks", "dog", "a photo of {subject}", "a photo of a {class}")
CARD = SubjectInfo((DOG,), 64, 2, 3.0, 8, base="bases/sd", base_config="sd1", base_revision="v2", base_variant="fp16")


# models


def make_models(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").touch()


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("checkpoints/my-dg", "did you mean checkpoints/my-dog? There are: checkpoints/my-cat, checkpoints/my-dog"),
        ("my-dog", "did you mean checkpoints/my-dog?"),
        ("./nowhere", "there are: checkpoints/my-cat, checkpoints/my-dog"),
        ("checkpoints/zebra", "checkpoints/zebra: there is no such folder or file; there are: "),
    ],
)
def test_an_unknown_model_gets_the_nearest_name_and_the_runs(
    model: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_models(Path("checkpoints"), "my-dog", "my-cat")
    with pytest.raises(ModelError) as error:
        check_is_there(model)
    assert named in str(error.value)


@pytest.mark.parametrize("model", ["stabilityai/sd-turbo", "checkpoints/my-dog", "someone-elses-model"])
def test_a_hub_id_and_what_is_there_pass(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_models(Path("checkpoints"), "my-dog")
    check_is_there(model)


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a LoRA in kohya's names"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "a LoRA in diffusers' names"),
        ("emb_params", "a learned embedding"),
    ],
)
def test_a_file_that_is_laid_over_a_model_says_how_to_use_it(tensor: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "dog.safetensors"
    save_file({tensor: torch.zeros(1)}, path)
    option = "--embedding" if "embedding" in named else "--lora"
    with pytest.raises(ModelError, match=rf"{named}, not a whole model; lay it over one: .*{option} .*dog.safetensors"):
        check_is_there(str(path))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"x\.safetensors: cannot be read"):
        check_is_there(str(tmp_path / "x.safetensors"))


# the base beneath an adapter


def test_a_relative_base_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "project" / "checkpoints" / "dog" / "model"
    model.mkdir(parents=True)
    (tmp_path / "project" / "bases" / "sd").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_path("bases/sd", model) == str(tmp_path / "project" / "bases" / "sd"), "around the run"
    monkeypatch.chdir(tmp_path / "project")
    assert find_path("bases/sd", model) == "bases/sd", "here"
    assert find_path("someone/sd", model) == "someone/sd", "a hub id stays what it is"


def test_of_a_run_in_another_place_the_folder_counts_that_it_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "disk" / "runs" / "dog" / "model"
    model.mkdir(parents=True)
    (tmp_path / "project" / "bases" / "sd").mkdir(parents=True)
    provenance = {"provenance": {"folder": str(tmp_path / "project")}}
    (model.parent / "config.yaml").write_text(yaml.safe_dump(provenance))
    monkeypatch.chdir(tmp_path / "disk")
    assert find_path("bases/sd", model) == str(tmp_path / "project" / "bases" / "sd")


def test_all_that_a_run_loaded_its_base_with_is_loaded_again(tmp_path: Path) -> None:
    source = base_source(CARD, tmp_path)
    assert (source.base, source.config, source.revision, source.variant) == ("bases/sd", "sd1", "v2", "fp16")
    elsewhere = base_source(CARD, tmp_path, "other")
    assert (elsewhere.base, elsewhere.config, elsewhere.revision, elsewhere.variant) == ("other", "sd1", None, None)


# the disk


def test_a_file_in_the_place_of_a_folder_and_a_disk_without_room_are_reported(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder", "--out")
    assert list(tmp_path.iterdir()) == [], "nothing is made"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*file/sub: .*file is a file; name a folder"):
        check_writable(tmp_path / "file" / "sub", "--out")
    with pytest.raises(UserError, match=r"MiB are to be written, .* MiB are free on this disk"):
        check_writable(tmp_path, "--out", 2**60)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b.png"), "--out a/b.png: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b.png"), "a/b.png: cannot be written to"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "--out out: the disk is full"),
    ],
)
def test_trouble_with_the_disk_while_writing_is_no_bug(error: Exception, named: str) -> None:
    with pytest.raises(UserError) as told, translate_write_errors(Path("out"), "--out"):
        raise error
    assert named in str(told.value)


def test_other_errors_pass() -> None:
    with pytest.raises(ConnectionError), translate_write_errors(Path("out"), "--out"):
        raise ConnectionError(errno.ECONNRESET, "reset")


# options


@pytest.mark.parametrize(("text", "size"), [("512x768", (768, 512)), ("64X48", (48, 64)), (" 64 x 48 ", (48, 64))])
def test_a_size_is_width_times_height(text: str, size: tuple[int, int]) -> None:
    assert sampling.parse_size(text) == size


@pytest.mark.parametrize("text", ["512", "0x64", "64x", "64x-64", "big", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="WIDTHxHEIGHT"):
        sampling.parse_size(text)


# hints


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("train.py", ["python", "sample.py"]),
        ("project/train.py", ["python", "project/sample.py"]),
        ("/x/dreambooth/__main__.py", ["python", "-m", "dreambooth", "sample"]),
    ],
)
def test_a_hint_is_a_command_of_the_kind_that_was_typed(
    program: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    assert shlex.split(command_line("sample", "runs/robot's dog")) == [*expected, "runs/robot's dog"]
    assert command_line("report", "runs/dog") == "python -m dreambooth report runs/dog", "which has no file of its own"


def test_in_the_toolkits_own_environment_a_missing_package_is_a_bug() -> None:
    assert missing_environment(ModuleNotFoundError(name="dreambooth.nothing")) is None
