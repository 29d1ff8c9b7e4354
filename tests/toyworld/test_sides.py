"""The second edition's training of sides: its captions, what the text encoder learns, its loss."""

import copy
import random
from pathlib import Path

import pytest
import torch
from tiny_second import TINY, tiny_codec

from toyworld.base import BaseSettings, build_modules
from toyworld.second import picture, sides
from toyworld.second.encoding import encode_captions
from toyworld.second.sides import SidesTask, draw_any, draw_sided, make_batch

SIDED = [draw_sided(random.Random(i)) for i in range(100)]


@pytest.fixture
def codec():
    return tiny_codec()


# --- captions


def test_a_sided_caption_names_the_side_which_the_thing_faces():
    for shown, text in SIDED:
        (thing,) = shown.things
        assert f"facing {thing.facing}" in text
        assert not picture.is_held_out(thing.spec)


def test_the_other_caption_differs_in_the_side_alone():
    for _, text in SIDED:
        changed = [(a, b) for a, b in zip(text.split(), sides.with_other_side(text).split(), strict=True) if a != b]
        assert changed in ([("left", "right")], [("right", "left")])
    assert sides.with_other_side("a dog facing left") == "a dog facing right"


def test_the_other_pictures_show_one_to_three_things_and_some_have_no_caption():
    drawn = [draw_any(random.Random(i)) for i in range(100)]
    assert {len(shown.things) for shown, _ in drawn} == {1, 2, 3}
    assert 0 < sum(text == "" for _, text in drawn) < 30
    assert not any(picture.is_held_out(thing.spec) for shown, _ in drawn for thing in shown.things)


def test_a_batch_follows_from_step_and_process(codec):
    one, same, other = (make_batch(codec, 7, rank, 2, step=5) for rank in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.latents_BChw, other.latents_BChw)
    assert one.names_side_B[:4].all()
    assert one.weights_B1hw.mean((1, 2, 3)).allclose(torch.ones(7))


# --- the text encoder


def test_the_text_encoder_comes_to_tell_the_sides_apart_and_their_mean_stays(tmp_path):
    text_encoder = build_modules(BaseSettings(tmp_path, TINY))["text_encoder"]
    reference = copy.deepcopy(text_encoder)
    sides.tell_sides_apart(text_encoder, reference)
    texts = ["a photo of a red dog facing left", "a photo of a red dog facing right"]
    tokens = encode_captions(texts)
    at = (tokens[0] != tokens[1]).nonzero().item()
    with torch.no_grad():
        (left, right), (was_left, was_right) = (
            each(tokens).last_hidden_state[:, at] for each in (text_encoder, reference)
        )
    assert (left - right).norm() > 0.3 * was_left.norm()
    assert ((left + right) - (was_left + was_right)).norm() < 0.2 * was_left.norm()


# --- the loss


def test_high_timesteps_come_first_and_any_after_them():
    drawn = sides.draw_timesteps(2000, 4000, torch.Generator().manual_seed(0))
    assert (drawn[:2000] >= 0.7).float().mean() > 0.6
    assert (drawn[2000:] >= 0.7).float().mean() == pytest.approx(0.3, abs=0.05)
    assert drawn.min() >= 0
    assert drawn.max() < 1


@pytest.mark.parametrize(("open_from", "paid"), [(0, 0.0), (1000, sides.KEEPING * 0.5**2)])
def test_a_change_is_paid_for_unless_a_side_is_named_and_open(codec, monkeypatch, open_from, paid):
    monkeypatch.setattr(sides, "OPEN_FROM", open_from)
    modules = build_modules(BaseSettings(Path(), TINY))
    batch = make_batch(codec, 7, 0, 1, step=0)._replace(names_side_B=torch.ones(7, dtype=torch.bool))
    task = SidesTask(modules, copy.deepcopy(modules), "cpu", lambda step: batch)
    before = task(0).item()
    with torch.no_grad():
        task.predict_reference.unet.conv_out.bias.add_(0.5)
    assert task(0).item() == pytest.approx(before + paid, rel=1e-3)
