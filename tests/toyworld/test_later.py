"""The stages that train the second edition's base on: where each begins, what it trains, and how it goes on."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_second import TINY, tiny_codec

from dreambooth.errors import UserError
from toyworld import export, training
from toyworld.base import LATER_STAGES, BaseSettings, build_modules
from toyworld.editions import SECOND
from toyworld.second import later, sides
from toyworld.second.later import train_later
from toyworld.stages import LATER
from toyworld.training import Budget, save_atomically

EACH = pytest.mark.parametrize("stage", LATER, ids=lambda stage: stage.name)


@pytest.fixture
def codec():
    return tiny_codec()


@pytest.fixture
def work(tmp_path, codec, monkeypatch):
    monkeypatch.setattr(sides, "TELLING_STEPS", 2)
    codec.save(tmp_path / "codec.safetensors")
    write_base(tmp_path, seed=7)
    return tmp_path


def write_base(work, seed):
    modules = build_modules(BaseSettings(work, TINY, seed=seed))
    state = {"module": modules.state_dict(), "average": [p.detach() for p in modules.parameters()], "step": 12_000}
    save_atomically(state, work / "base.pt")


def settings_of(work, steps):
    return BaseSettings(work, TINY, Budget(steps=steps), batch_size=7, num_processes=1)


def exported(work):
    pipeline = export.trained_pipeline(work, TINY)
    return [*pipeline.text_encoder.parameters(), *pipeline.unet.parameters()]


def state_of(work, stage):
    (path,) = work.glob(f"{stage.name}-*.pt")
    return torch.load(path, weights_only=True)


def are_equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_the_stages_are_those_that_the_edition_names():
    assert tuple(stage.name for stage in LATER) == LATER_STAGES == SECOND.stages[-len(LATER) :]


def test_each_stage_begins_with_what_the_one_before_has_made_and_the_last_is_exported(work):
    weights = exported(work)
    for stage in LATER:
        train_later(stage, settings_of(work, 1))
        before, weights = weights, exported(work)
        assert are_equal(weights, state_of(work, stage)["average"]), stage.name
        moved = max((a - b).abs().max().item() for a, b in zip(before, weights, strict=True))
        assert 0 < moved < 1e-2, stage.name


@EACH
def test_a_stage_without_those_before_it_begins_with_the_base(work, stage):
    train_later(stage, settings_of(work, 1))
    assert are_equal(exported(work), state_of(work, stage)["average"])


def test_sides_train_the_text_encoder_and_the_inner_up_block_alone(work):
    base = dict(build_modules(BaseSettings(work, TINY, seed=7)).named_parameters())
    train_later(sides.STAGE, settings_of(work, 2))
    trained = state_of(work, sides.STAGE)["module"]
    changed = [name for name, before in base.items() if (trained[name] != before).any()]
    assert all(name.startswith(sides.STAGE.trained) for name in changed)
    assert all(any(name.startswith(prefix) for name in changed) for prefix in sides.STAGE.trained)


@EACH
def test_a_stage_goes_on_with_the_same_bits_after_a_stop(work, stage, monkeypatch):
    train_later(stage, settings_of(work, 3))
    whole = state_of(work, stage)
    for path in work.glob(f"{stage.name}-*.pt"):
        path.unlink()

    def stopping(codec, size, rank, world_size, step):
        if step == 2:
            raise KeyboardInterrupt
        return stage.make_batch(codec, size, rank, world_size, step)

    monkeypatch.setattr(training, "LOG_EVERY_STEPS", 1)
    monkeypatch.setattr(later, "Plan", partial(later.Plan, save_every_seconds=0.0))
    with pytest.raises(KeyboardInterrupt):
        train_later(replace(stage, make_batch=stopping), settings_of(work, 3))
    assert state_of(work, stage)["step"] == 2
    train_later(stage, settings_of(work, 3))
    again = state_of(work, stage)
    assert again["step"] == whole["step"] == 3
    assert all(torch.equal(again["module"][name], whole["module"][name]) for name in whole["module"])
    assert are_equal(again["average"], whole["average"])


@EACH
def test_a_stage_can_train_on_one_picture_a_step(work, stage):
    train_later(stage, replace(settings_of(work, 2), batch_size=1))
    assert state_of(work, stage)["step"] == 2


def test_another_base_is_a_new_beginning(work):
    train_later(LATER[-1], settings_of(work, 1))
    write_base(work, seed=9)
    assert are_equal(exported(work), build_modules(BaseSettings(work, TINY, seed=9)).parameters())


@pytest.mark.slow
@EACH
def test_two_processes_train_on_different_pictures_to_one_state(work, stage):
    train_later(stage, replace(settings_of(work, 1), batch_size=14, num_processes=2))
    assert state_of(work, stage)["step"] == 1


@EACH
def test_without_a_base_a_stage_says_what_makes_one(tmp_path, stage):
    with pytest.raises(UserError, match=r"base\.pt is missing; `toyworld train` makes it"):
        train_later(stage, BaseSettings(tmp_path, TINY, Budget(steps=1)))
    assert not list(tmp_path.iterdir())
