"""The second edition's training against false words: what its captions say, and its loss."""

import copy
import math
import random
import re

import pytest
import torch
from tiny_second import random_modules, tiny_codec

from toyworld import world
from toyworld.second import picture
from toyworld.second.captions import vocabulary
from toyworld.second.contrast import ContrastTask, draw_pair, make_batch, with_false
from toyworld.second.things import CLASSES

SAMPLES = [draw_pair(random.Random(i)) for i in range(300)]


@pytest.fixture
def codec():
    return tiny_codec()


# --- captions


def test_the_false_caption_differs_in_one_word():
    for each in SAMPLES:
        true, false = (text.replace(" an ", " a ").split() for text in (each.true, each.false))
        true, false = ([word.removesuffix("s") for word in words] for words in (true, false))  # one eye, two eyes
        assert len(true) == len(false)
        assert sum(a != b for a, b in zip(true, false, strict=True)) == 1, (each.true, each.false)
        assert set(each.false.split()) <= vocabulary()


def test_every_kind_of_word_is_contrasted():
    words = {word for each in SAMPLES for word in set(each.false.split()) - set(each.true.split())}
    assert words >= {"round", "square", "pointed", "left", "right", "one", "two", "three", "striped", "spotted", "hat"}


def test_neither_caption_tells_of_a_held_out_thing():
    assert not any(picture.is_held_out(thing.spec) for each in SAMPLES for thing in each.picture.things)
    for each in SAMPLES:
        text = f" {each.false} "
        for noun in CLASSES:
            pairs = re.findall(rf" (\w+) and (\w+) {noun} ", text)
            assert not any(world.is_held_out_pair(noun, main, second) for main, second in pairs), text


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


def test_true_captions_come_to_predict_better_than_the_reference_and_false_ones_worse(codec):
    torch.manual_seed(0)
    modules = random_modules()
    reference, untouched = copy.deepcopy(modules), copy.deepcopy(modules)
    batch = make_batch(codec, 8, 0, 1, step=0)
    task = ContrastTask(modules, reference, "cpu", lambda step: batch)
    assert task(0).item() == pytest.approx(2 * math.log(2), rel=1e-4)
    optimizer = torch.optim.Adam(modules.parameters(), 1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        task(0).backward()
        optimizer.step()
    better_true_B, better_false_B = task.better(batch, torch.Generator().manual_seed(0))
    assert better_true_B.mean() > 0.2
    assert better_false_B.mean() < -0.2
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), untouched.parameters(), strict=True))
