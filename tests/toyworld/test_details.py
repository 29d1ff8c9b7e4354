"""The second edition's training of details: which words are left out of a caption, and what is learned."""

import copy
import random

import pytest
import torch
from tiny_second import random_modules, tiny_codec

from toyworld.second import details, picture
from toyworld.second.captions import vocabulary
from toyworld.second.details import DetailsTask, draw_detailed, draw_plain, make_batch, without_details
from toyworld.second.look import HEADS, WORN

DETAILED = [draw_detailed(random.Random(i)) for i in range(200)]
NAMES = {*HEADS, *WORN[1:], "eye", "eyes", "head", "facing", "striped", "stripes", "spotted", "spots", "wearing"}


@pytest.fixture
def codec():
    return tiny_codec()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (
            "a dog with green stripes with a square head and one eye wearing a black scarf facing left at night",
            "a dog at night",
        ),
        ("an orange and spotted", "an orange and spotted"),  # no noun after it: no caption
        ("a photo of a striped orange cat on top of a red house", "a photo of an orange cat on top of a red house"),
        ("a picture of a robot with three eyes behind a spotted cup", "a picture of a robot behind a cup"),
        ("a red fish to the left of a blue dog", "a red fish to the left of a blue dog"),
        ("", ""),
    ],
)
def test_class_colours_place_and_relation_stay(text, plain):
    assert without_details(text) == plain


def test_no_detail_is_left_in_any_caption():
    for _, text in DETAILED:
        left = set(without_details(text).split())
        assert not left & NAMES, text
        assert left <= vocabulary()


def test_most_captions_have_a_detail_and_plain_ones_have_none():
    assert sum(without_details(text) != text for _, text in DETAILED) > 150
    plain = [draw_plain(random.Random(i))[1] for i in range(100)]
    assert all(without_details(text) == text for text in plain)
    assert 30 < plain.count("") < 70


def test_no_picture_is_of_a_held_out_thing():
    shown = [each for each, _ in DETAILED + [draw_plain(random.Random(i)) for i in range(100)]]
    assert not any(picture.is_held_out(thing.spec) for each in shown for thing in each.things)


def test_a_batch_follows_from_step_and_process(codec):
    one, same, other = (make_batch(codec, 6, rank, 2, step=5) for rank in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.latents_BChw, other.latents_BChw)
    assert torch.equal(one.tokens_BL[5:], one.plain_BL[5:])


def test_without_a_detail_in_the_whole_batch_nothing_moves(codec):
    modules = random_modules()
    batch = make_batch(codec, 3, 0, 1, step=0)
    batch = batch._replace(tokens_BL=batch.plain_BL)
    task = DetailsTask(modules, copy.deepcopy(modules), "cpu", lambda step: batch)
    assert task(0).item() == 0


def test_the_model_comes_to_predict_what_guidance_does_and_the_same_without_details(codec):
    torch.manual_seed(0)
    modules = random_modules()
    reference = copy.deepcopy(modules)
    batch = make_batch(codec, 12, 0, 1, step=0)
    task = DetailsTask(modules, reference, "cpu", lambda step: batch)
    t_B, noisy = torch.full((12,), 600), torch.randn(batch.latents_BChw.shape)
    wanted, plain = task.guided(noisy, t_B, batch), (batch.tokens_BL == batch.plain_BL).all(1)
    before = task.predict_reference(noisy, t_B, batch.tokens_BL)
    without = task.predict_reference(noisy, t_B, batch.plain_BL)
    torch.testing.assert_close(wanted, before + details.GUIDANCE * (before - without))
    torch.testing.assert_close(wanted[plain], before[plain])
    begun = task(0).item()
    optimizer = torch.optim.Adam(modules.parameters(), 1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        task(0).backward()
        optimizer.step()
    assert task(0).item() < 0.5 * begun
