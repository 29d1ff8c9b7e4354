"""The second edition's training against false words: what its captions say, its loss, and how it goes on."""

import copy
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreambooth.errors import UserError
from toyworld import export
from toyworld.base import BaseSettings, build_modules
from toyworld.dataset import fit_codec
from toyworld.editions import SECOND
from toyworld.latents import to_pixels
from toyworld.second import picture
from toyworld.second.captions import vocabulary
from toyworld.second.contrast import ContrastTask, contrast, make_batch, state_path, train_contrast, with_false
from toyworld.training import Budget, save_atomically

TINY = replace(SECOND, unet_widths=(16, 16), text_layers=1)
SAMPLES = [contrast(random.Random(i)) for i in range(300)]


@pytest.fixture(scope="module")
def codec():
    return fit_codec(to_pixels([picture.render(each.picture) for each in SAMPLES[:60]]), 64, 8)


@pytest.fixture
def work(tmp_path, codec):
    codec.save(tmp_path / "codec.safetensors")
    return tmp_path


def write_base(work, step):
    modules = build_modules(BaseSettings(work, TINY, seed=step))
    state = {"module": modules.state_dict(), "average": [p.detach() for p in modules.parameters()], "step": step}
    save_atomically(state, work / "base.pt")


# --- captions


def test_the_false_caption_differs_in_one_word():
    for each in SAMPLES:
        true, false = (text.replace(" an ", " a ").split() for text in (each.true, each.false))
        true, false = ([word.removesuffix("s") for word in words] for words in (true, false))  # one eye, two eyes
        assert len(true) == len(false)
        assert sum(a != b for a, b in zip(true, false, strict=True)) == 1, (each.true, each.false)
        assert set(each.false.split()) <= vocabulary()


def test_every_kind_of_word_is_contrasted_and_no_thing_is_held_out():
    words = {word for each in SAMPLES for word in set(each.false.split()) - set(each.true.split())}
    assert words >= {"round", "square", "pointed", "left", "right", "one", "two", "three", "striped", "spotted", "hat"}
    assert not any(picture.is_held_out(thing.spec) for each in SAMPLES for thing in each.picture.things)


def test_a_word_that_a_thing_does_not_have_is_left_alone():
    rng = random.Random(0)
    house = picture.picture_of(rng, picture.random_spec(rng, "house"))
    assert with_false(rng, house, 0, "head") == house
    assert with_false(rng, house, 0, "facing") != house


# --- the loss


def test_a_batch_follows_from_step_and_process(codec):
    one, same, other = (make_batch(codec, 3, rank, 2, step=5) for rank in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.latents_BChw, other.latents_BChw)
    assert one.weights_B1hw.mean((1, 2, 3)).allclose(torch.ones(3))
    assert not torch.equal(one.true_BL, one.false_BL)


def random_modules():
    """Text encoder and denoiser none of whose branches is silent, so that words count from the first step."""
    modules = build_modules(BaseSettings(Path(), TINY))
    with torch.no_grad():
        for name, parameter in modules["unet"].named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                torch.nn.init.xavier_uniform_(parameter)
    return modules


def test_the_loss_begins_where_nothing_is_better_and_falls(codec):
    torch.manual_seed(0)
    modules = random_modules()
    before, untouched = copy.deepcopy(modules), copy.deepcopy(modules)
    batch = make_batch(codec, 8, 0, 1, step=0)
    task = ContrastTask(modules, before, "cpu", lambda step: batch)
    assert task(0).item() == pytest.approx(2 * math.log(2), rel=1e-4)
    optimizer = torch.optim.Adam(modules.parameters(), 1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = task(0)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * 2 * math.log(2)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), untouched.parameters(), strict=True))


# --- the stage


def test_the_stage_goes_on_where_it_was_stopped_and_is_what_is_exported(work):
    write_base(work, step=7)
    settings = BaseSettings(work, TINY, Budget(steps=2), num_processes=1)
    begun = export.trained_pipeline(work, TINY).unet.state_dict()
    train_contrast(replace(settings, budget=Budget(steps=1)))
    state = torch.load(state_path(work), weights_only=True)
    assert state["step"] == 1
    train_contrast(settings)
    assert torch.load(work / "contrast-7.pt", weights_only=True)["step"] == 2
    trained = export.trained_pipeline(work, TINY).unet.state_dict()
    assert any(not torch.equal(begun[name], trained[name]) for name in begun)


def test_a_base_that_was_trained_on_is_a_new_beginning(work):
    write_base(work, step=7)
    train_contrast(BaseSettings(work, TINY, Budget(steps=1), num_processes=1))
    write_base(work, step=9)
    assert not state_path(work).exists()
    exported = export.trained_pipeline(work, TINY).unet.state_dict()
    base = build_modules(BaseSettings(work, TINY, seed=9))["unet"].state_dict()
    assert all(torch.equal(exported[name], base[name]) for name in base)


def test_without_a_base_the_stage_says_what_makes_one(work):
    with pytest.raises(UserError, match=r"base\.pt is missing; the stage base makes it"):
        train_contrast(BaseSettings(work, TINY, Budget(steps=1)))
    assert not list(work.glob("contrast*"))
