"""The class prior: what it depends on, when it is made, and that it is made once."""

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dreambooth.families import Family, frozen_copy
from dreambooth.generation.class_prior import GeneratedPrior, prior_fingerprint
from dreambooth.generation.sampler import initial_noise, sample_latents
from dreambooth.generation.settings import SamplerSettings
from dreambooth.randomness import Randomness

PROMPTS = ["a photo of a dog"]


class Maker:
    """Samples class latents with a real model and remembers what it was asked for."""

    def __init__(self, family: Family) -> None:
        self.family = frozen_copy(family, torch.float32)
        self.asked: list[list[int]] = []

    def __call__(self, indices: list[int]) -> Tensor:
        self.asked.append(indices)
        start = initial_noise(Randomness(0), "class picture", indices, (4, 8, 8))
        return sample_latents(self.family, ["a photo of a dog"] * len(indices), start, SamplerSettings(2, 3.0))


def latents(prior: GeneratedPrior, places: Sequence[int]) -> Tensor:
    return torch.stack([sample.latents_CHW for sample in prior.samples(places)])


@pytest.fixture
def maker(family: Family) -> Maker:
    return Maker(family)


def test_blocks_are_made_when_needed_and_only_once(maker: Maker, tmp_path: Path) -> None:
    prior = GeneratedPrior(maker, 7, 3, tmp_path / "prior", PROMPTS)
    assert maker.asked == []
    latents(prior, [0, 1])
    assert maker.asked == [[0, 1, 2]]
    latents(prior, [2, 3])
    latents(prior, [1, 4])
    assert maker.asked == [[0, 1, 2], [3, 4, 5]]


def test_pictures_are_used_in_turn_and_then_again(maker: Maker, tmp_path: Path) -> None:
    prior = GeneratedPrior(maker, 5, 2, tmp_path / "prior", PROMPTS)
    assert torch.equal(latents(prior, [0, 4, 3]), latents(prior, [5, 9, 13]))
    assert maker.asked[-1] == [2, 3], "the last block holds what is left, the others are on fixed boundaries"


def test_the_order_in_which_they_are_made_changes_no_picture(maker: Maker, tmp_path: Path) -> None:
    forwards, backwards = (GeneratedPrior(maker, 6, 2, tmp_path / name, PROMPTS) for name in ("forwards", "backwards"))
    forwards.make_all()
    for place in reversed(range(6)):
        assert torch.equal(latents(backwards, [place]), latents(forwards, [place]))


def test_no_more_are_made_than_the_run_uses(maker: Maker, tmp_path: Path) -> None:
    prior = GeneratedPrior(maker, 7, 2, tmp_path / "prior", PROMPTS, num_samples=3)
    prior.make_all()
    assert maker.asked == [[0, 1], [2, 3]], "the picture beside the last belongs to its block"
    assert prior.is_complete
    longer = GeneratedPrior(maker, 7, 2, tmp_path / "prior", PROMPTS, num_samples=9)
    longer.make_all()
    assert maker.asked[2:] == [[4, 5], [6]]


def test_a_half_made_prior_goes_on_where_it_was(maker: Maker, tmp_path: Path) -> None:
    latents(GeneratedPrior(maker, 6, 2, tmp_path / "prior", PROMPTS), [0, 2])
    again = GeneratedPrior(maker, 6, 2, tmp_path / "prior", PROMPTS)
    again.make_all()
    assert maker.asked == [[0, 1], [2, 3], [4, 5]]


def test_a_kept_latent_is_bit_for_bit_the_one_that_was_made(maker: Maker, tmp_path: Path) -> None:
    prior = GeneratedPrior(maker, 2, 2, tmp_path / "prior", PROMPTS)
    made, kept = latents(prior, [0, 1]), load_file(tmp_path / "prior" / "00000.safetensors")["latents"]
    assert torch.equal(made, kept)
    assert torch.equal(made, maker([0, 1]))


def test_once_all_are_made_the_frozen_base_is_let_go(family: Family, tmp_path: Path) -> None:
    maker = Maker(family)
    prior, model = GeneratedPrior(maker, 4, 2, tmp_path / "prior", PROMPTS), weakref.ref(maker.family.denoiser)
    del maker
    latents(prior, [0])
    assert model() is not None
    latents(prior, [2])
    gc.collect()
    assert model() is None, "the frozen copy is still in memory although every class picture is made"


def test_the_fingerprint_notices_every_thing_the_pictures_depend_on() -> None:
    depends_on = {"base": "ab", "prompt": "a photo of a dog", "sampler": str(SamplerSettings(20)), "seed": 0}
    names = {prior_fingerprint(**depends_on)}
    for key, value in {"base": "ac", "prompt": "a dog", "sampler": str(SamplerSettings(21)), "seed": 1}.items():
        names.add(prior_fingerprint(**{**depends_on, key: value}))
    assert len(names) == 5
