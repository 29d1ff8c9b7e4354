"""`new`: the config that it writes for a folder of photos is one that a run can be started from."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.data.image_folder import list_images
from dreambooth.preflight.memory_plan import GIB


@pytest.fixture
def photos(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos in a folder of an otherwise empty working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, tmp_path / "data" / "my-dog")
    return Path("data", "my-dog")


NOT_HERE = "someone/sdxl-of-theirs"  # costs nothing: what a run takes is not found out for it


def new(photos: Path, base: Path | str, *options: str) -> int:
    return main(["new", str(photos), "--class", "dog", "--base", str(base), *options])


def test_the_config_names_what_was_found_and_check_has_no_error(photos, tiny_base, capsys):
    assert new(photos, tiny_base) == 0
    said = capsys.readouterr().out
    assert said.startswith("configs/my-dog.yaml: 3 photos; the crops that training will see: outputs/my-dog-crops.png")
    assert re.search(r"takes \d+ \w+ of memory, \d+ MiB of disk; time: about \d+ \w+ on this CPU", said)
    assert "python -m dreambooth train configs/my-dog.yaml" in said
    config = load_config("configs/my-dog.yaml")
    assert (config.run.name, config.subjects[0].images, config.data.resolution) == ("my-dog", "data/my-dog", 64)
    assert Image.open("outputs/my-dog-crops.png").size == (3 * 66 + 2, 66 + 2)
    assert main(["check", "configs/my-dog.yaml"]) == 0


@pytest.mark.parametrize(
    ("pipeline", "guidance"), [("FluxPipeline", 3.5), ("Krea2Pipeline", 4.5), ("ZImagePipeline", 4.0)]
)
def test_a_base_of_flow_matching_gets_settings_of_its_kind(photos, tmp_path, pipeline, guidance):
    """It is known by its index; the rest of it is not there, which costs only the figures."""
    (tmp_path / "base" / "vae").mkdir(parents=True)
    (tmp_path / "base" / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (tmp_path / "base" / "vae" / "config.json").write_text(json.dumps({"sample_size": 1024}))
    assert new(photos, tmp_path / "base") == 0
    config = load_config("configs/my-dog.yaml")
    assert (config.validate.guidance_scale, config.validate.scheduler) == (guidance, "euler")
    assert config.data.resolution == 1024


def test_captions_and_cut_outs_are_found(photos):
    for path in list_images(photos):
        path.with_suffix(".txt").write_text("a photo of {subject} asleep")
        image = Image.open(path).convert("RGBA")
        image.putalpha(Image.new("L", image.size, 255))
        image.paste((0, 0, 0, 0), (0, 0, 8, 8))
        image.save(path)
    assert new(photos, NOT_HERE) == 0
    data = load_config("configs/my-dog.yaml").data
    assert (data.captions, data.mask) == (True, "alpha")


def test_captions_that_a_run_would_refuse_are_left_out_with_the_reason(photos, capsys):
    for path in list_images(photos):
        path.with_suffix(".txt").write_text("a photo of something else")
    assert new(photos, NOT_HERE) == 0
    assert "warning: data.captions left out: 0.png: its caption" in capsys.readouterr().err
    assert not load_config("configs/my-dog.yaml").data.captions


def test_one_photo_is_warned_about(photos, capsys):
    for path in list_images(photos)[1:]:
        path.unlink()
    assert new(photos, NOT_HERE) == 0
    assert "warning: one photo: its place and light are learned with the subject" in capsys.readouterr().err


def test_a_config_that_is_there_is_not_overwritten(photos, tiny_base, capsys):
    Path("configs").mkdir()
    Path("configs/my-dog.yaml").write_text("mine")
    assert new(photos, tiny_base) == 2
    assert "configs/my-dog.yaml: is there already" in capsys.readouterr().err
    assert Path("configs/my-dog.yaml").read_text() == "mine"


def test_a_base_that_is_not_at_hand_costs_only_the_figures(photos, capsys):
    assert new(photos, NOT_HERE) == 0
    assert "memory, disk and time are not known" in capsys.readouterr().err
    config = load_config("configs/my-dog.yaml")
    assert (config.data.resolution, config.method.name) == (1024, "lora")


@pytest.mark.slow
def test_little_memory_is_met_by_savings_that_say_so(photos, tiny_base):
    memory = (GIB + 3_300_000) / 0.9  # the config takes 4.0 MB, with gradient checkpointing 2.7
    assert new(photos, tiny_base, "--memory", str(memory / GIB)) == 0
    lines = Path("configs/my-dog.yaml").read_text().splitlines()
    (saving,) = (line for line in lines if line.endswith("# so that it fits into 1.11 GiB"))
    assert saving.strip().startswith("gradient_checkpointing: true")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--identifier", "dog"], "configs/my-dog.yaml: subject.identifier: 'dog' is the class noun itself"),
        (["--memory", "-1"], "--memory: -1.0 is too small"),
        (["--out", "data/my-dog/0.png/a.yaml"], "is a file; name a folder"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(photos, tiny_base, capsys, options, told):
    before = sorted(Path().rglob("*"))
    assert new(photos, tiny_base, *options) == 2
    assert told in capsys.readouterr().err
    assert [path for path in sorted(Path().rglob("*")) if path.is_file()] == [path for path in before if path.is_file()]
