"""Masks that a model finds in the photos: data.mask=auto."""

import csv
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from dreambooth import build
from dreambooth.config import Config, load_config
from dreambooth.data.image_folder import list_images
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.preflight.inputs import check_inputs
from dreambooth.run.folder import RunFolder
from toyworld import world

ROOT = Path(__file__).parent.parent
AUTO = ["data.mask=auto", f"data.mask_model={ROOT / 'checkpoints' / 'toyworld-segmenter'}"]
ROBOT = ROOT / "data" / "robot"


def config_of(config_file: Path, *overrides: str) -> Config:
    return load_config(config_file, [*AUTO, f"subject.images={ROBOT}", "subject.class_noun=robot", *overrides])


def test_the_masks_cover_the_subject_of_each_photo(config_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        masks = build.load_subject_data(config_of(config_file)).masks
    assert masks is not None
    photos = list_images(ROBOT)
    assert [mask.size for mask in masks] == [Image.open(path).size for path in photos]
    # The photos are of the robot that the demo learns, so its main colour has to be within the masks.
    colour = np.array(world.COLOURS[world.subject("robot", 21).main])
    for path, mask in zip(photos, masks, strict=True):
        of_robot = np.abs(np.asarray(Image.open(path).convert("RGB")).astype(int) - colour).sum(-1) < 40
        assert of_robot.sum() > 50
        assert (np.asarray(mask)[of_robot] == 255).mean() > 0.8
        assert 0.1 < (np.asarray(mask) == 255).mean() < 0.5
    assert "masks of a robot, by" in caplog.text
    assert "% of a photo counts" in caplog.text


def test_a_run_trains_on_them_and_goes_on_with_the_same_only(config_file: Path, tmp_path: Path) -> None:
    quick = ["train.max_steps=2", "optim.warmup_steps=0", "validate.every_steps=0", "data.unmasked_weight=0"]
    config, plain = config_of(config_file, *quick), config_of(config_file, *quick, "data.mask=null", "run.name=plain")
    losses = []
    for one in (config, plain):
        assert train(one) == 0
        with open(RunFolder(one).metrics, newline="") as file:
            losses.append(float(next(csv.DictReader(file))["train/loss_instance"]))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3), "the places behind the robot count nothing"

    again = load_config(RunFolder(config).config, ["train.max_steps=3"])
    assert train(again) == 0
    shutil.copytree(ROOT / "checkpoints" / "toyworld-segmenter", tmp_path / "finder")
    weights = load_file(tmp_path / "finder" / "model.safetensors")
    save_file({name: 0 * value for name, value in weights.items()}, tmp_path / "finder" / "model.safetensors")
    with pytest.raises(UserError, match=r"data\.mask"):
        train(load_config(RunFolder(config).config, [f"data.mask_model={tmp_path / 'finder'}", "train.max_steps=4"]))


def test_crops_around_the_subject_take_the_masks_that_are_found(config_file: Path) -> None:
    crops = ["data.crop=subject", "data.buckets=true", "data.bucket_step=16", "data.resolution=32"]
    quick = ["train.max_steps=1", "optim.warmup_steps=0", "validate.every_steps=0"]
    assert train(config_of(config_file, *crops, *quick)) == 0


def test_each_subject_is_found_by_its_own_noun(config_file: Path, tmp_path: Path) -> None:
    dogs = tmp_path / "dogs"
    dogs.mkdir()
    spec = world.subject("dog", 1)
    for number in range(2):
        world.render(spec, world.random_scene(random.Random(number), "grass")).save(dogs / f"{number}.png")
    two = [
        {"images": str(ROBOT), "class_noun": "robot"},
        {"images": str(dogs), "class_noun": "dog", "identifier": "ohwx"},
    ]
    settings = yaml.safe_load(config_file.read_text())
    del settings["subject"]
    config_file.write_text(yaml.safe_dump({**settings, "subjects": two}))
    masks = build.load_subject_data(load_config(config_file, AUTO)).masks
    assert masks is not None
    assert len(masks) == len(list_images(ROBOT)) + 2


def test_a_photo_without_the_subject_is_named(config_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (64, 64), (120, 160, 90)).save(folder / "grass.png")
    with pytest.raises(UserError, match=r"data\.mask=auto: .*toyworld-segmenter finds no 'robot' in .*grass\.png"):
        build.load_subject_data(config_of(config_file, f"subject.images={folder}"))


def test_a_class_noun_that_the_model_does_not_know_is_named_with_the_key(config_file: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.mask=auto: vase: .* has no label of it; .*name another data\.mask_model"
    ):
        build.load_subject_data(config_of(config_file, "subject.class_noun=vase"))


def test_a_model_that_is_not_there_is_named_before_anything_is_loaded(config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"data\.mask_model:"):
        check_inputs(config_of(config_file, f"data.mask_model={tmp_path / 'none'}"))


def test_a_style_has_nothing_that_a_noun_names(config_file: Path) -> None:
    with pytest.raises(UserError, match=r"data\.mask: auto finds what a class noun names, and a style has none"):
        load_config(config_file, [*AUTO, "subject.kind=style", "subject.class_noun=", "prior.source=none"])
