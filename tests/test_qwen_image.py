"""Qwen-Image: its latents, conditioning, samples and files are those of diffusers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CONFIG
from diffusers import QwenImagePipeline

from dreambooth.cli import main
from dreambooth.config import Config, load_config
from dreambooth.engine import train
from dreambooth.errors import ModelError
from dreambooth.families import Family, load_family
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.settings import SamplerSettings
from dreambooth.preflight.memory_plan import Planner
from dreambooth.run.folder import RunFolder
from dreambooth.timesteps import ShiftBySize, TimestepDensity

PROMPTS = ["a photo of a dog on the beach", "a cat"]


@pytest.fixture(scope="module")
def qwen(tiny_qwen_image_base: Path) -> Family:
    return load_family(str(tiny_qwen_image_base))


def test_the_family_is_read_from_the_files(qwen: Family) -> None:
    assert type(qwen).__name__ == "QwenImage"
    assert (qwen.size_step, qwen.vae_scale_factor, qwen.text_encoders) == (16, 8, [])
    by_size = ShiftBySize(0.5, 0.9, 256, 8192)
    assert qwen.schedule.density == TimestepDensity("logit_normal", shift=by_size)


def test_the_conditioning_is_that_of_the_pipeline_however_long_the_prompts(qwen: Family) -> None:
    expected, mask = qwen.pipeline().encode_prompt([*PROMPTS, ""])
    found = qwen.encode_prompts([*PROMPTS, ""])
    assert torch.equal(found.mask("prompt"), mask.bool())
    torch.testing.assert_close(found["prompt"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_are_those_of_the_pipeline(qwen: Family, scale: float) -> None:
    """Its rescaled guidance, its shift with a last step, its patches: from the same noise the same image."""
    start = noise_from_seeds([0, 1], qwen.latent_shape(64, 96))
    ours = qwen.decode_latents(sample_latents(qwen, PROMPTS, start, SamplerSettings(4, scale, "euler")))
    pipeline: QwenImagePipeline = qwen.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt=[*PROMPTS], num_inference_steps=4, height=64, width=96, output_type="pt",
        **qwen.pipeline_arguments(start.noise_BCHW, scale),
    ).images  # fmt: skip
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4, rtol=1e-4)


def test_an_image_comes_back_from_its_latents_as_the_vae_has_it(qwen: Family) -> None:
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    mean, std = qwen.encode_images(pixels)
    assert mean.shape == std.shape == (2, *qwen.latent_shape(64, 96))
    vae = qwen.pipeline().vae
    with torch.no_grad():
        again = vae.decode(vae.encode(pixels.unsqueeze(2)).latent_dist.mode()).sample.squeeze(2)
    torch.testing.assert_close(qwen.decode_latents(mean), again, atol=1e-5, rtol=1e-4)


@pytest.fixture
def broken(tiny_qwen_image_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_qwen_image_base, tmp_path / "broken"))


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "tokenizer", "vae", "scheduler"])
def test_a_base_without_one_of_its_parts_is_refused_by_name(broken: Path, part: str) -> None:
    shutil.rmtree(broken / part)
    with pytest.raises(ModelError, match=part):
        load_family(str(broken))


def test_a_model_with_distilled_guidance_is_refused(broken: Path) -> None:
    path = broken / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "guidance_embeds": True}))
    with pytest.raises(ModelError, match="guidance is distilled into this model"):
        load_family(str(broken))


# -------------------------------------------------------------------------------- runs

LORA = ["method.name=lora", "method.rank=2", "optim.lr=1.0e-2", "validate.num_images=1"]
QUICK = ["train.max_steps=2", "train.save_every_steps=1", "validate.every_steps=2"]
QUICK += ["optim.warmup_steps=0", "optim.schedule=constant"]


def config_at(folder: Path, base: Path, pictures: Path, *settings: str) -> Config:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(runs=folder / "runs", base=base, pictures=pictures))
    return load_config(path, [*QUICK, *settings])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_qwen_image_base: Path, pictures: Path) -> Config:
    """A finished run of a LoRA."""
    config = config_at(tmp_path_factory.mktemp("learned"), tiny_qwen_image_base, pictures, *LORA)
    assert train(config) == 0
    return config


def test_a_longer_run_goes_on_without_the_text_encoder_to_the_same_weights(
    learned: Config, tiny_qwen_image_base: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    configs = [
        config_at(tmp_path, tiny_qwen_image_base, pictures, *LORA, "train.max_steps=3", f"run.name={name}")
        for name in ("whole", "resumed")
    ]
    shutil.copytree(RunFolder(learned).path, RunFolder(configs[1]).path)
    assert train(configs[1]) == 0
    assert "resuming" in caplog.text
    assert "frozen text encoder" not in caplog.text
    assert train(configs[0]) == 0
    states = [torch.load(RunFolder(config).state, weights_only=True)["state_dict"] for config in configs]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_lora_comes_back_from_its_run_and_from_its_exports(learned: Config, tiny_qwen_image_base: Path) -> None:
    run = RunFolder(learned)
    prompt, settings = ["a photo of sks dog"], SamplerSettings(2, 2.0)
    base, trained = load_family(str(tiny_qwen_image_base)), load_model(str(run.path), "cpu").family
    start = noise_from_seeds([0], base.latent_shape(64, 64))
    expected = sample_latents(trained, prompt, start, settings)
    assert not torch.equal(expected, sample_latents(base, prompt, start, settings))
    for form in ("lora", "comfyui", "diffusers"):
        assert main(["export", str(run.path), "--format", form, "--dtype", "float32", "--verify"]) == 0
        again = load_model(str(run.path / "exports" / form), "cpu").family
        torch.testing.assert_close(sample_latents(again, prompt, start, settings), expected, atol=1e-4, rtol=1e-3)
    for form in ("lora", "comfyui"):
        pipeline = load_family(str(tiny_qwen_image_base)).pipeline()
        pipeline.load_lora_weights(run.path / "exports" / form, weight_name="run.safetensors")
        loaded = [weight for name, weight in pipeline.transformer.named_parameters() if "lora_B" in name]
        assert len(loaded) == 2 * 8, "all of the attention of two double blocks"
        assert any(bool(weight.any()) for weight in loaded)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["method.name=full", "prior.source=teacher"],
        ["method.name=lokr", "method.rank=2", "prior.source=none", "method.targets=[attention,feed-forward]"],
    ],
    ids=lambda settings: settings[0].removeprefix("method.name="),
)
def test_every_method_trains_and_is_sampled_from_its_own_files(
    settings: list[str], tmp_path: Path, tiny_qwen_image_base: Path, pictures: Path
) -> None:
    quick = ["validate.every_steps=0", "optim.lr=1.0e-2"]
    config = config_at(tmp_path, tiny_qwen_image_base, pictures, *settings, *quick)
    assert train(config) == 0
    learned, base = load_model(str(RunFolder(config).path), "cpu").family, load_family(str(tiny_qwen_image_base))
    start, sampler = noise_from_seeds([0], base.latent_shape(64, 64)), SamplerSettings(2, 2.0)
    found, untouched = (sample_latents(each, ["a photo of a sks dog"], start, sampler) for each in (learned, base))
    assert not torch.equal(found, untouched)


@pytest.mark.slow
def test_a_plan_counts_the_frozen_text_encoder_without_loading_it(
    tmp_path: Path, tiny_qwen_image_base: Path, pictures: Path
) -> None:
    planner = Planner(config_at(tmp_path, tiny_qwen_image_base, pictures, *LORA))
    need = planner.need(config_at(tmp_path, tiny_qwen_image_base, pictures, *LORA))
    assert min(need.step, need.validation, need.frozen, need.prompts) > 0
    assert planner.family.text_encoder.module is None
