"""FLUX.2 Klein: its latents, conditioning, samples and files are those of diffusers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CONFIG
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from dreambooth.cli import main
from dreambooth.config import Config, load_config
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.families import Family, ModelSource, load_family
from dreambooth.families.flux2_klein import EmpiricalShift
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.settings import SamplerSettings
from dreambooth.preflight.memory_plan import Planner
from dreambooth.run.folder import RunFolder

PROMPTS = ["a photo of a dog on the beach", "a cat"]


@pytest.fixture(scope="module")
def klein(tiny_flux2_klein_base: Path) -> Family:
    return load_family(str(tiny_flux2_klein_base))


def test_the_family_is_read_from_the_files(klein: Family) -> None:
    assert type(klein).__name__ == "Flux2Klein"
    assert (klein.resolution, klein.vae_scale_factor, klein.text_encoders) == (64, 16, [])


def test_latents_are_scaled_as_the_pipeline_scales_them(klein: Family) -> None:
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    pipeline: Flux2KleinPipeline = klein.pipeline()
    mean, std = klein.encode_images(pixels)
    assert mean.shape == std.shape == (2, *klein.latent_shape(64, 96))
    with torch.no_grad():
        torch.testing.assert_close(mean, pipeline._encode_vae_image(pixels, None))
        again = pipeline.vae.decode(pipeline.vae.encode(pixels).latent_dist.mode()).sample
    torch.testing.assert_close(klein.decode_latents(mean), again, atol=1e-5, rtol=1e-4)


def test_the_conditioning_is_that_of_the_pipeline(klein: Family) -> None:
    expected, _ = klein.pipeline().encode_prompt([*PROMPTS, ""])
    torch.testing.assert_close(klein.encode_prompts([*PROMPTS, ""])["prompt"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_are_those_of_the_pipeline(klein: Family, scale: float) -> None:
    """Its guidance, its shift by size and steps, its coordinates: from the same noise the same image."""
    start = noise_from_seeds([0, 1], klein.latent_shape(64, 96))
    ours = klein.decode_latents(sample_latents(klein, PROMPTS, start, SamplerSettings(4, scale, "euler")))
    pipeline: Flux2KleinPipeline = klein.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt=[*PROMPTS], latents=start.noise_BCHW, num_inference_steps=4, guidance_scale=scale, height=64, width=96,
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_steps", [4, 50])
@pytest.mark.parametrize("size", [(4, 4), (64, 64), (80, 64)])
def test_the_shift_is_the_samplers(size: tuple[int, int], num_steps: int) -> None:
    mu = compute_empirical_mu(size[0] * size[1], num_steps)
    assert EmpiricalShift(num_steps)(size) == pytest.approx(torch.tensor(mu).exp().item(), rel=1e-6)


@pytest.fixture
def broken(tiny_flux2_klein_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_flux2_klein_base, tmp_path / "broken"))


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "tokenizer", "vae", "scheduler"])
def test_a_base_without_one_of_its_parts_is_refused_by_name(broken: Path, part: str) -> None:
    shutil.rmtree(broken / part)
    with pytest.raises(ModelError, match=part):
        load_family(str(broken))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"hidden_size": 24}, "hidden_size is 24: the first must be 3 times"), ({"num_hidden_layers": 9}, "layer 27")],
)
def test_a_text_encoder_that_does_not_fit_is_refused(broken: Path, changes: dict[str, int], said: str) -> None:
    path = broken / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=said):
        load_family(str(broken))


def test_a_distilled_model_is_named_and_another_vae_refused(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = broken / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_distilled": True}))
    family = load_family(str(broken))
    assert "a distilled model, which loses its few steps" in caplog.text
    assert family.pipeline().config.is_distilled
    with pytest.raises(UserError, match=r"model\.vae=x: this family has a VAE of its own kind"):
        load_family(ModelSource(str(broken), vae="x"))


# -------------------------------------------------------------------------------- runs

LORA = ["method.name=lora", "method.rank=2", "optim.lr=1.0e-2", "validate.num_images=1"]
QUICK = ["train.max_steps=2", "train.save_every_steps=1", "validate.every_steps=2"]
QUICK += ["optim.warmup_steps=0", "optim.schedule=constant"]


def config_at(folder: Path, base: Path, pictures: Path, *settings: str) -> Config:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(runs=folder / "runs", base=base, pictures=pictures))
    return load_config(path, [*QUICK, *settings])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_flux2_klein_base: Path, pictures: Path) -> Config:
    """A finished run of a LoRA."""
    config = config_at(tmp_path_factory.mktemp("learned"), tiny_flux2_klein_base, pictures, *LORA)
    assert train(config) == 0
    return config


def test_a_longer_run_goes_on_without_the_text_encoder_to_the_same_weights(
    learned: Config, tiny_flux2_klein_base: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    configs = [
        config_at(tmp_path, tiny_flux2_klein_base, pictures, *LORA, "train.max_steps=3", f"run.name={name}")
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


def test_a_lora_comes_back_from_its_run_and_from_its_exports(learned: Config, tiny_flux2_klein_base: Path) -> None:
    run = RunFolder(learned)
    prompt, settings = ["a photo of sks dog"], SamplerSettings(2, 2.0)
    base, trained = load_family(str(tiny_flux2_klein_base)), load_model(str(run.path), "cpu").family
    start = noise_from_seeds([0], base.latent_shape(64, 64))
    expected = sample_latents(trained, prompt, start, settings)
    assert not torch.equal(expected, sample_latents(base, prompt, start, settings))
    for form in ("lora", "diffusers"):
        assert main(["export", str(run.path), "--format", form, "--dtype", "float32", "--verify"]) == 0
        again = load_model(str(run.path / "exports" / form), "cpu").family
        torch.testing.assert_close(sample_latents(again, prompt, start, settings), expected, atol=1e-4, rtol=1e-3)
    pipeline = load_family(str(tiny_flux2_klein_base)).pipeline()
    pipeline.load_lora_weights(run.path / "exports" / "lora", weight_name="run.safetensors")
    loaded = [weight for name, weight in pipeline.transformer.named_parameters() if "lora_B" in name]
    assert len(loaded) == 8 + 2, "all of the attention of a double and a single block"
    assert all(bool(weight.any()) for weight in loaded)


def test_other_programs_names_are_refused(learned: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(RunFolder(learned).path), "--format", "comfyui"]) == 2
    assert "comfyui is not written for a flux-2-klein; use one of diffusers, lora" in capsys.readouterr().err


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
    settings: list[str], tmp_path: Path, tiny_flux2_klein_base: Path, pictures: Path
) -> None:
    quick = ["validate.every_steps=0", "optim.lr=1.0e-2"]
    config = config_at(tmp_path, tiny_flux2_klein_base, pictures, *settings, *quick)
    assert train(config) == 0
    learned, base = load_model(str(RunFolder(config).path), "cpu").family, load_family(str(tiny_flux2_klein_base))
    start, sampler = noise_from_seeds([0], base.latent_shape(64, 64)), SamplerSettings(2, 2.0)
    found, untouched = (sample_latents(each, ["a photo of a sks dog"], start, sampler) for each in (learned, base))
    assert not torch.equal(found, untouched)


@pytest.mark.slow
def test_a_plan_counts_the_frozen_text_encoder_without_loading_it(
    tmp_path: Path, tiny_flux2_klein_base: Path, pictures: Path
) -> None:
    config = config_at(tmp_path, tiny_flux2_klein_base, pictures, *LORA)
    planner = Planner(config)
    need = planner.need(config)
    assert min(need.step, need.validation, need.frozen, need.prompts) > 0
    assert planner.family.text_encoder.module is None
