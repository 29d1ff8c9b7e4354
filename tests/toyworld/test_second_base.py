"""The second edition's base: several things in one image; and how a GPU trains one."""

import random
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from dreambooth.cli import main
from dreambooth.data.image_files import load_image
from toyworld import ahead, photos
from toyworld.cli import SECOND_BASE, SHIPPED
from toyworld.editions import SECOND, edition_of
from toyworld.evaluate import draw
from toyworld.second import picture
from toyworld.second.evaluate import agreement, questions
from toyworld.second.judge import Judge
from toyworld.second.judge_training import accuracy
from toyworld.vae import fresh_pixels, psnr, round_trip

SHIPPED_SECOND = SHIPPED.parent / SECOND_BASE.name
ROOT = Path(__file__).parents[2]
SUBJECTS = {"robot": 21, "dog": 1}  # of data/second-robot and data/second-dog


def test_the_shipped_judge_is_of_the_second_edition():
    assert edition_of(SHIPPED_SECOND / "judge") is SECOND


def test_the_shipped_autoencoder_returns_images_it_never_saw():
    vae = DiffusionPipeline.from_pretrained(SHIPPED_SECOND, dtype=torch.float32).vae
    pixels = fresh_pixels(20, edition=SECOND)
    assert psnr(pixels, round_trip(vae, pixels)) >= 32.0


def test_the_judge_reads_fresh_renders_of_several_things():
    right = accuracy(Judge.load(SHIPPED_SECOND / "judge"), num_things=55)
    for name in ("class_noun", "place", "main", "pattern", "relation"):
        assert right[name] >= 0.95, name
    for name in ("head", "num_eyes", "worn"):
        assert right[name] >= 0.88, name
    assert right["same thing nearest"] >= 0.8


def test_the_judge_sees_where_a_thing_stands():
    judge = Judge.load(SHIPPED_SECOND / "judge")
    rng = random.Random(0)
    shown = [picture.picture_of(rng, picture.random_spec(rng, "house")) for _ in range(8)]
    true = torch.tensor([[one.things[0].center_x, one.things[0].ground, one.things[0].size] for one in shown])
    assert (judge([picture.render(one) for one in shown]).stand("house") - true).abs().mean() < 0.05


@pytest.mark.slow
def test_the_shipped_base_draws_what_its_prompts_name_two_things_too():
    pipeline = DiffusionPipeline.from_pretrained(SHIPPED_SECOND, dtype=torch.float32)
    asked = questions(4)
    right = agreement(Judge.load(SHIPPED_SECOND / "judge")(draw(pipeline, [one.prompt for one in asked])), asked)
    assert right["class"] >= 94
    assert right["place"] >= 94
    assert right["both"] >= 85


@pytest.mark.parametrize(("class_noun", "seed"), SUBJECTS.items())
def test_the_example_photos_are_what_the_documented_command_makes(class_noun, seed, tmp_path):
    command = ["toyworld", "subject", "--edition", "second", "--class", class_noun, "--seed", str(seed)]
    assert main([*command, "--captions", "--out", str(tmp_path)]) == 0
    shipped = ROOT / "data" / f"second-{class_noun}"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in shipped.iterdir())
    for path in shipped.glob("*.png"):
        assert load_image(path).tobytes() == load_image(tmp_path / path.name).tobytes()
    for path in shipped.glob("*.txt"):
        assert path.read_text() == (tmp_path / path.name).read_text()


def test_photos_show_the_subject_alone_and_fewer_are_the_first_of_more():
    some, more = (photos.photos("cat", 3, count, edition=SECOND) for count in (2, 4))
    assert [image.tobytes() for image in some] == [image.tobytes() for image in more[:2]]


# --- ahead


def squares(step: int) -> torch.Tensor:
    return torch.full((2,), step) ** 2


def test_what_is_made_ahead_in_other_processes_is_the_same_from_any_step(monkeypatch):
    monkeypatch.setattr(ahead, "MAX_PROCESSES", 1)
    with ahead.Ahead(squares, "cpu") as here, ahead.Ahead(squares, "cuda") as elsewhere:
        for step in range(3, 12):
            assert torch.equal(here(step), elsewhere(step))
