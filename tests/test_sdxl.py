"""Stable Diffusion XL: conditioning, samples and runs are those of diffusers, and it is given every crop."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from dreambooth.config import load_config
from dreambooth.data.image_folder import list_images
from dreambooth.data.latents import encode_image_files, size_crop_of
from dreambooth.engine import train
from dreambooth.errors import ModelError
from dreambooth.families import Family, load_family
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.settings import SamplerSettings
from dreambooth.methods import FACTS
from dreambooth.methods.table import METHODS
from dreambooth.randomness import Randomness
from dreambooth.run.folder import RunFolder

PROMPTS = ["a photo of a dog on the beach", "a photo of a cat"]


@pytest.fixture
def xl(tiny_xl_base: Path) -> Family:
    return load_family(str(tiny_xl_base))


def test_the_family_is_read_from_the_files(xl: Family) -> None:
    assert type(xl).__name__ == "StableDiffusionXL"
    assert len(xl.text_encoders) == 2


def test_the_conditioning_is_that_of_the_pipeline(xl: Family) -> None:
    hidden, no_hidden, pooled, no_pooled = xl.pipeline().encode_prompt(PROMPTS, device="cpu")
    conditioning = xl.encode_prompts([*PROMPTS, ""])
    torch.testing.assert_close(conditioning["encoder_hidden_states"], torch.cat([hidden, no_hidden[:1]]))
    torch.testing.assert_close(conditioning["text_embeds"], torch.cat([pooled, no_pooled[:1]]))
    assert not no_pooled.any(), "an empty prompt is zeros, as the base was trained"


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_are_those_of_the_pipeline(xl: Family, scale: float) -> None:
    """Guidance, sizes, crops, pooled texts: all of it, from the same noise."""
    start = noise_from_seeds([0, 1], xl.latent_shape(64, 64))
    ours = sample_latents(xl, PROMPTS, start, SamplerSettings(3, scale))
    pipeline: StableDiffusionXLPipeline = xl.pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS, latents=start.noise_BCHW, num_inference_steps=3, guidance_scale=scale, height=64, width=64,
        output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_a_picture_is_taken_for_a_whole_one_unless_it_is_told_how_it_was_cut(xl: Family) -> None:
    noisy, t, conditioning = torch.randn(1, 4, 8, 8), torch.tensor([500]), xl.encode_prompts(PROMPTS[:1])
    whole = xl.size_conditioning(torch.tensor([[64.0, 64, 0, 0, 64, 64]]))
    cut = xl.size_conditioning(torch.tensor([[900.0, 600, 120, 0, 64, 64]]))
    assert torch.equal(xl.predict(noisy, t, conditioning), xl.predict(noisy, t, conditioning | whole))
    assert not torch.equal(xl.predict(noisy, t, conditioning), xl.predict(noisy, t, conditioning | cut))


def test_frames_tell_the_true_size_and_where_the_crop_lies(xl: Family, pictures: Path) -> None:
    assert size_crop_of((64, 96), (64, 64), (0.5, 0.5)) == [96, 64, 16, 0, 64, 64]
    assert size_crop_of((1200, 600), (300, 300), (1.0, 0.0)) == [600, 1200, 0, 300, 300, 300]
    assert size_crop_of((1600, 900), (640, 384), (1.0, 0.3)) == [900, 1600, 0, 43, 384, 640]
    assert size_crop_of((900, 1800), (384, 640), (0.3, 0.5)) == [1800, 900, 64, 0, 640, 384]
    encoded = encode_image_files(
        list_images(pictures), xl.encode_images, buckets=[(64, 64)], num_crops=1, flip=True, randomness=Randomness(0)
    )
    frames = [picture.size_crop_V6.tolist() for picture in encoded]
    assert all(plain == mirrored for plain, mirrored in frames)
    assert [plain[:4] for plain, _ in frames] == [[64, 64, 0, 0], [80, 64, 8, 0], [96, 64, 16, 0]]


def test_a_mirrored_crop_has_lost_on_the_left_what_it_had_lost_on_the_right(xl: Family, tmp_path: Path) -> None:
    Image.new("RGB", (256, 64)).save(tmp_path / "wide.png")
    (encoded,) = encode_image_files(
        [tmp_path / "wide.png"], xl.encode_images, buckets=[(64, 64)], num_crops=3, flip=True, randomness=Randomness(0)
    )
    lefts = encoded.size_crop_V6[:, 3].tolist()
    assert len(set(lefts)) > 3
    assert [one + other for one, other in zip(lefts[:3], lefts[3:], strict=True)] == [256 - 64] * 3


def test_a_refiner_is_refused_by_name(tiny_xl_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_xl_base, tmp_path / "refiner"))
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(ModelError, match="refiner"):
        load_family(str(folder))


QUICK = ("full", "pivotal")  # all that other methods do as well is in these; they are slow


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS]
)
def test_a_run_of_every_method_is_sampled_from_its_own_files(
    method: str, config_file: Path, tiny_xl_base: Path
) -> None:
    word = ["subject.identifier=<sks>", "method.num_vectors=2"] if FACTS[method].adds_tokens else []
    overrides = [f"model.base={tiny_xl_base}", f"method.name={method}", "method.rank=2", *word]
    quick = ["train.max_steps=2", "optim.lr=1.0e-2", "optim.warmup_steps=0", "validate.every_steps=0"]
    config = load_config(config_file, [*overrides, *quick, "prior.source=teacher", "prior.teacher_latents=class"])
    assert train(config) == 0
    learned, base = load_model(str(RunFolder(config).path), "cpu"), load_family(str(tiny_xl_base))
    start, settings = noise_from_seeds([0], base.latent_shape(64, 64)), SamplerSettings(2, 2.0)
    picture = sample_latents(learned.family, [learned.fill("a photo of {subject}")], start, settings)
    untouched = sample_latents(base, [learned.fill("a photo of {subject}")], start, settings)
    assert not torch.equal(picture, untouched)


def test_plain_diffusers_loads_the_result(config_file: Path, tiny_xl_base: Path) -> None:
    config = load_config(config_file, [f"model.base={tiny_xl_base}", "train.max_steps=3", "model.export_dtype=float16"])
    assert train(config) == 0
    pipeline = DiffusionPipeline.from_pretrained(RunFolder(config).model, dtype=torch.float32)
    assert pipeline.config.force_zeros_for_empty_prompt
    assert pipeline.vae.config.force_upcast, "in float16 its VAE would overflow"
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a photo of a sks dog", num_inference_steps=2, height=64, width=64).images[0].size == (64, 64)
