"""Draws are pure functions of seed, choice and place."""

from functools import partial

import torch

from dreambooth.data.latents import ResumableBatchSampler
from dreambooth.randomness import Randomness


def test_a_draw_depends_on_seed_choice_and_place_and_on_nothing_else() -> None:
    first = Randomness(1).normal("noise", [5], (3, 4))
    torch.manual_seed(99)
    Randomness(1).normal("other", range(100), (2,))
    assert torch.equal(first, Randomness(1).normal("noise", [5], (3, 4)))
    assert not torch.equal(first, Randomness(2).normal("noise", [5], (3, 4)))
    assert not torch.equal(first, Randomness(1).normal("noises", [5], (3, 4)))
    assert not torch.equal(first, Randomness(1).normal("noise", [6], (3, 4)))


def test_a_row_is_the_same_alone_and_in_any_batch() -> None:
    batch = Randomness(0).normal("noise", [3, 9, 4], (8,))
    assert torch.equal(batch[1], Randomness(0).normal("noise", [9], (8,))[0])


def test_draws_have_the_distribution_that_they_promise() -> None:
    noise = Randomness(0).normal("noise", range(64), (16, 16))
    assert noise.dtype == torch.float32
    assert abs(float(noise.mean())) < 0.03
    assert abs(float(noise.std()) - 1) < 0.03
    numbers = Randomness(0).integers("timestep", range(4000), 10)
    assert torch.bincount(numbers, minlength=10).min() > 300
    assert sorted(Randomness(0).permutation("order", 7, 3)) == list(range(7))


def places_of_step(step: int, batch_size: int, accumulate: int, world_size: int) -> list[list[int]]:
    """Return what each device sees in one optimizer step."""
    seen = []
    for rank in range(world_size):
        position = (step * accumulate, rank, world_size)
        batches = iter(ResumableBatchSampler(batch_size, partial(tuple, position)))
        seen.append([place for _ in range(accumulate) for place in next(batches)])
    return seen


def test_devices_draw_different_noise_and_a_step_the_same_noise_however_it_is_split() -> None:
    whole = places_of_step(step=3, batch_size=8, accumulate=1, world_size=1)[0]
    for batch_size, accumulate, world_size in ((4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 1, 8)):
        by_device = places_of_step(3, batch_size, accumulate, world_size)
        flat = [place for places in by_device for place in places]
        assert len(set(flat)) == len(flat), "two devices saw the same place"
        assert sorted(flat) == whole
        noise = Randomness(0).normal("subject/noise", sorted(flat), (4,))
        assert torch.equal(noise, Randomness(0).normal("subject/noise", whole, (4,)))


def test_a_resumed_sampler_goes_on_where_the_run_stands() -> None:
    batches = iter(ResumableBatchSampler(2))
    whole = [next(batches) for _ in range(6)]
    resumed = iter(ResumableBatchSampler(2, lambda: (4, 0, 1)))
    assert [next(resumed), next(resumed)] == whole[4:]
