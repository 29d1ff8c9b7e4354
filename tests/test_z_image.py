"""Z-Image, for what all families of flow matching share: samplers, settings, methods, the frozen text encoder."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import CONFIG
from safetensors.torch import load_file

from dreambooth.build.networks import load_base
from dreambooth.config import Config, load_config
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.families import Family, load_family
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.schedulers import make_scheduler, set_timesteps
from dreambooth.generation.settings import FLOW_SCHEDULERS, SamplerSettings
from dreambooth.preflight.memory_plan import Planner
from dreambooth.run.folder import RunFolder
from dreambooth.timesteps import TimestepDensity

PROMPTS = ["a photo of a dog on the beach", "a cat"]


@pytest.fixture(scope="module")
def z_image(tiny_z_image_base: Path) -> Family:
    return load_family(str(tiny_z_image_base))


def test_the_conditioning_is_that_of_the_pipeline_however_long_the_prompts(z_image: Family) -> None:
    expected, _ = z_image.pipeline().encode_prompt([*PROMPTS, ""], do_classifier_free_guidance=False)
    found = z_image.encode_prompts([*PROMPTS, ""])
    for row, theirs in zip(found.rows("prompt"), expected, strict=True):
        torch.testing.assert_close(row, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scheduler", FLOW_SCHEDULERS)
def test_every_sampler_ends_at_the_image_that_is_always_predicted(z_image: Family, scheduler: str) -> None:
    """A network that knows the one image x0 predicts (noisy - x0) / sigma; each sampler then arrives at x0."""
    x0 = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = noise_from_seeds([0], (16, 8, 8)).noise_BCHW
    sampler = make_scheduler(z_image, scheduler, (8, 8))
    set_timesteps(sampler, 12)
    for t in sampler.timesteps:
        latents = sampler.step((latents - x0) / (t / 1000), t, latents).prev_sample
    torch.testing.assert_close(latents, x0, atol=2e-2, rtol=2e-2)


# -------------------------------------------------------------------------------- what a base must have


@pytest.fixture
def broken(tiny_z_image_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_z_image_base, tmp_path / "broken"))


def test_a_text_encoder_that_cannot_be_loaded_is_reported_although_it_is_loaded_later(broken: Path) -> None:
    weights = broken / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"text_encoder: cannot be loaded: model.safetensors: no .safetensors"):
        load_family(str(broken))
    weights.unlink()
    with pytest.raises(ModelError, match="text_encoder: cannot be loaded: it has no weights"):
        load_family(str(broken))


# -------------------------------------------------------------------------------- the tokenizer


def test_words_are_counted_as_they_stand_in_a_sentence(z_image: Family) -> None:
    assert len(z_image.tokenize("sks")) == 1
    assert len(z_image.tokenize("cat")) == 4
    assert "sks" in z_image.rare_words()


# -------------------------------------------------------------------------------- runs

LORA = ["method.name=lora", "method.rank=2", "optim.lr=1.0e-2", "subject.identifier=sks", "data.buckets=true"]
QUICK = ["train.max_steps=4", "train.save_every_steps=2", "validate.every_steps=2", "validate.num_images=1"]


def config_at(folder: Path, base: Path, pictures: Path, *settings: str) -> Config:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(runs=folder / "runs", base=base, pictures=pictures))
    return load_config(path, ["data.bucket_step=16", *QUICK, *settings])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method.name=pivotal", "subject.identifier=<sks>"], "method.name=pivotal: learns a new word"),
        (["method.name=custom_diffusion"], "trains the cross-attention of a UNet, which this base has not"),
        (["method.name=lora", "optim.text_encoder_lr=1e-5"], "optim.text_encoder_lr=1e-05: this base's text encoder"),
        (["loss.zero_terminal_snr=true"], "whose last timestep is pure noise already"),
        (["validate.scheduler=pndm"], "validate.scheduler=pndm: is not for a base of flow matching; use one of ddim"),
        (["data.resolution=72"], "an image side of 72 pixels does not fit this model; use a multiple of 16"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_the_family_cannot_do_is_refused_by_name(
    settings: list[str], said: str, tmp_path: Path, tiny_z_image_base: Path, pictures: Path
) -> None:
    config = config_at(tmp_path, tiny_z_image_base, pictures, *settings)
    with pytest.raises(UserError, match=said):
        train(config)
    assert not RunFolder(config).path.exists()


@pytest.mark.parametrize(
    "settings",
    [
        ["method.name=full", "prior.source=teacher", "train.ema_decay=0.9"],
        ["method.name=lokr", "method.rank=2", "prior.source=ahead", "train.micro_batch_size=1"],
        [
            *LORA,
            "method.dora=true",
            "method.targets=[feed-forward]",
            "prior.source=none",
            "loss.weighting=min_snr",
        ],
        [*LORA, "method.rslora=true", "loss.timesteps=shifted", "prior.source=teacher", "data.shuffle_captions=true"],
    ],
    ids=lambda settings: settings[0].removeprefix("method.name="),
)
def test_every_method_trains_and_is_sampled_from_its_own_files(
    settings: list[str], tmp_path: Path, tiny_z_image_base: Path, pictures: Path
) -> None:
    quick = ["train.max_steps=2", "optim.warmup_steps=0", "validate.every_steps=0", "optim.lr=1.0e-2"]
    config = config_at(tmp_path, tiny_z_image_base, pictures, *settings, *quick)
    assert train(config) == 0
    learned, base = load_model(str(RunFolder(config).path), "cpu").family, load_family(str(tiny_z_image_base))
    start, sampler = noise_from_seeds([0], base.latent_shape(64, 64)), SamplerSettings(2, 2.0)
    found, untouched = (sample_latents(each, ["a photo of a sks dog"], start, sampler) for each in (learned, base))
    assert not torch.equal(found, untouched)


def test_training_timesteps_are_the_bases_unless_others_are_set(
    tmp_path: Path, tiny_z_image_base: Path, pictures: Path
) -> None:
    config = config_at(tmp_path, tiny_z_image_base, pictures)
    assert load_base(config).schedule.density.name == "logit_normal"
    config.loss.timesteps = "shifted"
    assert load_base(config).schedule.density == TimestepDensity(shift=3.0), "that of the base's sampler"


def test_a_plan_counts_the_frozen_text_encoder_without_loading_it(
    tmp_path: Path, tiny_z_image_base: Path, pictures: Path
) -> None:
    config = config_at(tmp_path, tiny_z_image_base, pictures, *LORA)
    planner = Planner(config)
    need = planner.need(config)
    weights = load_file(tiny_z_image_base / "text_encoder" / "model.safetensors").values()
    assert need.prompts == pytest.approx(sum(weight.numel() * 4 for weight in weights), rel=0.01), "and few buffers"
    assert min(need.step, need.validation, need.frozen) > 0
    assert planner.family.text_encoder.module is None
