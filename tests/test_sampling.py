"""Sampling: guidance, seeds, schedulers, and agreement with diffusers' own pipeline."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from warm import Warm

from dreambooth.errors import UserError
from dreambooth.families import Conditioning, Family, evaluation_mode, load_family
from dreambooth.generation.numbered_files import write
from dreambooth.generation.request import GeneratedImage
from dreambooth.generation.sampler import guided, initial_noise, noise_from_seeds, sample_latents, sample_pixels
from dreambooth.generation.schedulers import make_scheduler
from dreambooth.generation.settings import SCHEDULERS, SamplerSettings
from dreambooth.randomness import Randomness

SHAPE = (4, 8, 8)


def predictor(family: Family, t: int = 300):
    def predict(noisy: Tensor, conditioning: Conditioning) -> Tensor:
        return family.predict(noisy, torch.full((len(noisy),), t), conditioning)

    return predict


@torch.no_grad()
def test_guidance_in_one_pass_equals_two_passes(family: Family) -> None:
    noisy = torch.randn(2, *SHAPE)
    uncond, cond = family.encode_prompts(["", ""]), family.encode_prompts(["a photo of a dog", "a cat"])
    both = Conditioning.cat([uncond, cond])
    predict = predictor(family)
    two_passes = predict(noisy, uncond) + 5.0 * (predict(noisy, cond) - predict(noisy, uncond))
    torch.testing.assert_close(guided(predict, noisy, both, 5.0), two_passes, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_guidance_scale_one_is_no_guidance_and_zero_is_no_prompt(family: Family) -> None:
    noisy = torch.randn(1, *SHAPE)
    uncond, cond = family.encode_prompts([""]), family.encode_prompts(["a photo of a dog"])
    both = Conditioning.cat([uncond, cond])
    predict = predictor(family)
    torch.testing.assert_close(guided(predict, noisy, cond, 1), predict(noisy, cond))
    nearly_one = guided(predict, noisy, both, 1 + 1e-7)
    torch.testing.assert_close(nearly_one, predict(noisy, cond), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(guided(predict, noisy, both, 0), predict(noisy, uncond), atol=1e-5, rtol=1e-4)


def test_below_the_noise_that_guidance_begins_at_there_is_none(family: Family) -> None:
    def latents(scale: float, min_noise: float) -> Tensor:
        settings = SamplerSettings(4, scale, guidance_min_noise=min_noise)
        return sample_latents(family, ["a dog", "a cat"], noise_from_seeds([3, 4], SHAPE), settings)

    assert torch.equal(latents(4.0, 1.5), latents(1.0, 0.0)), "no step is guided"
    assert torch.equal(latents(4.0, 0.001), latents(4.0, 0.0)), "all steps are, at timesteps 751, 501, 251 and 1"
    some = latents(4.0, 0.3)
    assert not torch.equal(some, latents(4.0, 0.0)), "the last two are not"
    assert torch.equal(some, latents(4.0, 0.5)), "timestep 501 still is"


@pytest.mark.parametrize("base", ["tiny_base", "tiny_base_v"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
def test_latents_are_those_of_diffusers_own_pipeline(base: str, scheduler: str, request: pytest.FixtureRequest) -> None:
    family = load_family(str(request.getfixturevalue(base)))
    settings = SamplerSettings(5, 4.0, scheduler, negative_prompt="a cat")
    start = noise_from_seeds([3, 4], SHAPE)
    ours = sample_latents(family, ["a photo of a dog", "a house"], start, settings)

    pipeline = family.pipeline()
    pipeline.scheduler = make_scheduler(family, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        ["a photo of a dog", "a house"],
        negative_prompt=["a cat", "a cat"],
        latents=start.noise_BCHW.clone(),
        num_inference_steps=5,
        guidance_scale=4.0,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


QUICK = ("ddim", "euler-a", "heun-karras", "dpm++-sde")  # one of each kind; the other samplers are slow


@pytest.mark.parametrize(
    "scheduler", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SCHEDULERS]
)
def test_picture_i_is_the_same_whatever_the_batch_size(family: Family, scheduler: str) -> None:
    prompts, seeds = ["a dog", "a cat", "a house"], [5, 6, 7]
    settings = SamplerSettings(4, 3.0, scheduler)
    made = [
        torch.cat(list(sample_pixels(family, prompts, seeds, (64, 64), settings, batch_size)))
        for batch_size in (1, 2, 3)
    ]
    assert torch.isfinite(made[0]).all()
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], atol=2e-3, rtol=0)  # rounding; a picture's level is 8e-3
    assert float((made[0][0] - made[0][1]).abs().max()) > 0.01, "two different pictures came out equal"


def test_seed_s_picture_i_is_seed_s_plus_i_picture_0() -> None:
    whole, last = noise_from_seeds([10, 11, 12], SHAPE), noise_from_seeds([12], SHAPE)
    assert torch.equal(whole.noise_BCHW[2], last.noise_BCHW[0])
    assert whole.generators[2].initial_seed() == last.generators[0].initial_seed()


def test_a_start_depends_on_its_place_alone() -> None:
    several, alone = initial_noise(Randomness(0), "x", [4, 9], SHAPE), initial_noise(Randomness(0), "x", [9], SHAPE)
    assert torch.equal(several.noise_BCHW[1], alone.noise_BCHW[0])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ((0, 4.0, "ddim"), "num_inference_steps=0: must be from 1 to 1000"),
        ((1001, 4.0, "ddim"), "num_inference_steps=1001: must be from 1 to 1000"),
        ((5, float("nan"), "ddim"), "guidance_scale=nan"),
        ((5, 4.0, "dimm"), "did you mean ddim"),
        ((5, 4.0, "dpm++ 2m karras"), r"scheduler=dpm\+\+ 2m karras: unknown sampler; did you mean dpm\+\+-karras"),
    ],
)
def test_bad_settings_are_refused_with_what_is_allowed(settings: tuple[int, float, str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        SamplerSettings(*settings)


def test_a_size_that_does_not_fit_is_refused(family: Family) -> None:
    with pytest.raises(UserError, match="60 pixels does not fit this model; use a multiple of 8"):
        next(sample_pixels(family, ["a dog"], [0], (64, 60), SamplerSettings(1)))


def test_other_sizes_come_out_as_asked(family: Family) -> None:
    assert next(sample_pixels(family, ["a dog"], [0], (48, 80), SamplerSettings(2))).shape == (1, 3, 48, 80)


def test_evaluation_mode_puts_every_part_back_as_it_was(family: Family) -> None:
    family.denoiser.train()
    family.text_encoders[0].eval()
    with evaluation_mode(family):
        assert not family.denoiser.training
    assert family.denoiser.training
    assert not family.text_encoders[0].training


def test_sampling_leaves_the_global_random_state_alone(family: Family) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(sample_pixels(family, ["a dog"], [0], (64, 64), SamplerSettings(3, 4.0, "euler-a")))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_a_real_base_is_sampled_by_every_scheduler_to_the_same_scene(shipped_base: Path) -> None:
    """Different samplers of one noise and one model agree on the picture at large: none misreads the noise schedule."""
    family = load_family(str(shipped_base))
    made = {}
    for scheduler in (*(name for name in SCHEDULERS if not name.endswith("-karras")), "dpm++-karras"):
        settings = SamplerSettings(30 if scheduler in ("ddpm", "euler-a", "dpm++-sde") else 12, 3.0, scheduler)
        made[scheduler] = next(sample_pixels(family, ["a photo of a red car on the beach"], [0], (64, 64), settings))
    blurred = {name: torch.nn.functional.avg_pool2d(pixels, 16) for name, pixels in made.items()}
    for name, pixels in blurred.items():
        distance = float((pixels - blurred["ddim"]).abs().mean())
        assert distance < 0.25, f"{name} paints another scene than ddim: mean distance {distance:.2f}"


def test_two_that_sample_into_one_folder_at_once_overwrite_nothing(tiny_base: Path, tmp_path: Path, warm: Warm) -> None:
    prompts = ("a red dog", "a blue dog")
    command = ["sample", str(tiny_base), "--num-images", "20", "--steps", "1", "--batch-size", "1"]
    out, logs = tmp_path / "out", [tmp_path / prompt for prompt in prompts]
    pids = [warm.start([*command, "--out", str(out), log.name], log) for log in logs]
    assert [warm.wait(pid) for pid in pids] == [0, 0], [log.read_text() for log in logs]
    named = [set(re.findall(rf"^{out}/.*png$", log.read_text(), re.MULTILINE)) for log in logs]
    assert not named[0] & named[1]
    assert {str(path) for path in out.iterdir()} == named[0] | named[1]
    recipes = [json.loads(Image.open(path).info["dreambooth"]) for path in out.glob("0*.png")]
    made = sorted((recipe["prompt"], recipe["seed"]) for recipe in recipes)
    assert made == sorted((prompt, seed) for prompt in prompts for seed in range(20))


def test_a_picture_that_cannot_be_written_leaves_its_number_free(tmp_path: Path) -> None:
    broken = GeneratedImage.from_image(Image.new("RGB", (8, 8)), {})
    broken.recipe = {"not json": object()}
    with pytest.raises(TypeError):
        list(write(iter([broken]), tmp_path, 1))
    assert list(tmp_path.iterdir()) == []
