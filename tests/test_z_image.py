"""Z-Image: its conditioning, samples and files are those of diffusers; its text encoder is loaded if need be."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CONFIG
from crashes import assert_equal, names
from diffusers import ZImagePipeline
from safetensors.torch import load_file
from warm import Warm

from dreambooth.build.networks import load_base
from dreambooth.cli import main
from dreambooth.config import Config, load_config
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.families import Family, load_family
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.sampler import make_scheduler, noise_from_seeds, sample_latents, set_timesteps
from dreambooth.generation.settings import FLOW_SCHEDULERS, SamplerSettings
from dreambooth.preflight.memory_plan import Planner
from dreambooth.run.folder import RunFolder
from dreambooth.timesteps import TimestepDensity

PROMPTS = ["a photo of a dog on the beach", "a cat"]


@pytest.fixture(scope="module")
def z_image(tiny_z_image_base: Path) -> Family:
    return load_family(str(tiny_z_image_base))


def test_the_family_is_read_from_the_files(z_image: Family) -> None:
    assert type(z_image).__name__ == "ZImage"
    assert z_image.resolution == 64
    assert z_image.text_encoders == []


def test_the_conditioning_is_that_of_the_pipeline_however_long_the_prompts(z_image: Family) -> None:
    expected, _ = z_image.pipeline().encode_prompt([*PROMPTS, ""], do_classifier_free_guidance=False)
    found = z_image.encode_prompts([*PROMPTS, ""])
    for row, theirs in zip(found.rows("prompt"), expected, strict=True):
        torch.testing.assert_close(row, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_samples_are_those_of_the_pipeline(z_image: Family, scale: float) -> None:
    """Its own guidance, its shift, its steps, its negated prediction: from the same noise the same latents."""
    start = noise_from_seeds([0, 1], z_image.latent_shape(64, 96))
    ours = sample_latents(z_image, PROMPTS, start, SamplerSettings(4, scale, "euler"))
    pipeline: ZImagePipeline = z_image.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        [*PROMPTS], latents=start.noise_BCHW, num_inference_steps=4, guidance_scale=scale, height=64, width=96,
        output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "tokenizer", "vae", "scheduler"])
def test_a_base_without_one_of_its_parts_is_refused_by_name(broken: Path, part: str) -> None:
    shutil.rmtree(broken / part)
    with pytest.raises(ModelError, match=part):
        load_family(str(broken))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("model_index.json", {"_class_name": "ZImageOmniPipeline"}, "a ZImageOmniPipeline is of no known family"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "DDIMScheduler is not of flow matching"),
        (
            "text_encoder/config.json",
            {"hidden_size": 24},
            "cap_feat_dim is 16, text_encoder/config.json: hidden_size is",
        ),
        ("text_encoder/config.json", {"vocab_size": 100}, "tokenizer has 2.. entries, the text encoder 100"),
    ],
)
def test_a_base_of_another_kind_or_of_parts_that_do_not_fit_is_refused(
    broken: Path, file: str, changes: dict[str, object], said: str
) -> None:
    path = broken / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=said):
        load_family(str(broken))


def test_a_text_encoder_that_cannot_be_loaded_is_reported_although_it_is_loaded_later(broken: Path) -> None:
    weights = broken / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"text_encoder: cannot be loaded: model.safetensors: no .safetensors"):
        load_family(str(broken))
    weights.unlink()
    with pytest.raises(ModelError, match="text_encoder: cannot be loaded: it has no weights"):
        load_family(str(broken))


def test_a_distilled_model_is_named(tiny_z_image_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "Z-Image-Turbo").symlink_to(tiny_z_image_base)
    load_family(str(tmp_path / "Z-Image-Turbo"))
    assert "a distilled model, which loses its few steps when it is trained" in caplog.text


# -------------------------------------------------------------------------------- the tokenizer


def test_a_prompt_is_read_as_far_as_it_fits_with_its_template_by_whole_words(z_image: Family) -> None:
    assert z_image.truncate("a photo") == ("a photo", "")
    kept, dropped = z_image.truncate("photo " * 600)
    assert z_image.count_tokens(kept) <= z_image.max_tokens < z_image.count_tokens(f"{kept} photo")
    assert len(kept.split()) + len(dropped.split()) == 600


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


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_z_image_base: Path, pictures: Path) -> Config:
    """A finished run of a LoRA."""
    config = config_at(tmp_path_factory.mktemp("learned"), tiny_z_image_base, pictures, *LORA, "run.name=whole")
    assert train(config) == 0
    return config


def test_a_run_killed_and_run_again_equals_one_that_was_never_killed(
    learned: Config, warm: Warm, caplog: pytest.LogCaptureFixture
) -> None:
    whole, elsewhere = RunFolder(learned), Path(learned.run.dir).with_name("killed")
    killed = replace(learned, run=replace(learned.run, dir=str(elsewhere)))
    run, config_file = RunFolder(killed), elsewhere.with_name("config.yaml")
    settings = ["data.bucket_step=16", *QUICK, *LORA, "run.name=whole", f"run.dir={elsewhere}"]
    command = ["train", str(config_file), *settings]
    pid = warm.start(command, config_file.with_name("log"))
    deadline = time.monotonic() + 120
    while not run.state.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    assert warm.wait(pid) == -signal.SIGKILL
    caplog.set_level("INFO")
    assert train(killed) == 0
    assert "resuming" in caplog.text
    assert "frozen text encoder" not in caplog.text, "the prompts are in the run's folder"
    assert whole.metrics.read_text() == run.metrics.read_text()
    assert_equal(*(torch.load(each.state, weights_only=True) for each in (whole, run)), "last.ckpt")
    for folder in ("samples", "model", "prior", "prompts"):
        assert names(whole.path / folder) == names(run.path / folder)
        for path in (whole.path / folder).rglob("*.*"):
            other = run.path / path.relative_to(whole.path)
            if path.suffix == ".safetensors":  # the order of its metadata is not always the same
                assert_equal(load_file(path), load_file(other), path.name)
            else:
                assert path.read_bytes() == other.read_bytes(), f"{path} differs"


def test_a_lora_comes_back_from_its_run_and_from_its_exports(learned: Config, tiny_z_image_base: Path) -> None:
    run = RunFolder(learned)
    prompt, settings = ["a photo of sks dog"], SamplerSettings(2, 2.0)
    base, trained = load_family(str(tiny_z_image_base)), load_model(str(run.path), "cpu").family
    start = noise_from_seeds([0], base.latent_shape(64, 64))
    expected = sample_latents(trained, prompt, start, settings)
    assert not torch.equal(expected, sample_latents(base, prompt, start, settings))
    for form in ("lora", "diffusers", "kohya", "comfyui"):
        assert main(["export", str(run.path), "--format", form, "--dtype", "float32", "--verify"]) == 0
        again = load_model(str(run.path / "exports" / form), "cpu").family
        torch.testing.assert_close(sample_latents(again, prompt, start, settings), expected, atol=1e-4, rtol=1e-3)


def test_a_layout_that_the_family_does_not_have_is_refused(learned: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(RunFolder(learned).path), "--format", "single-file"]) == 2
    assert "single-file is not written for a z-image; use one of diffusers, lora, kohya" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["lora", "kohya", "comfyui"])
def test_diffusers_loads_every_tensor_of_a_file(form: str, learned: Config, tiny_z_image_base: Path) -> None:
    run = RunFolder(learned)
    folder = run.path / "exports" / form
    if not folder.is_dir():
        assert main(["export", str(run.path), "--format", form, "--dtype", "float32"]) == 0
    pipeline = load_family(str(tiny_z_image_base)).pipeline()
    pipeline.load_lora_weights(folder, weight_name="whole.safetensors")
    loaded = [weight for name, weight in pipeline.transformer.named_parameters() if "lora_B" in name]
    assert len(loaded) == 2 * 4, "query, key, value and output of two layers; the refiners stay as they are"
    assert all(bool(weight.any()) for weight in loaded)


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
    assert need.prompts == sum(weight.numel() * 4 for weight in weights)
    assert min(need.step, need.validation, need.frozen) > 0
    assert planner.family.text_encoder.module is None
