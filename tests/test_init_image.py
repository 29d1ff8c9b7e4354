"""Images to start from: strength, masks, expansion, inpainting bases. Limits first."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import dreambooth
from dreambooth import build
from dreambooth.cli import main
from dreambooth.config import Config
from dreambooth.data.images import to_images, to_tensor
from dreambooth.errors import ModelError, UserError
from dreambooth.exporting.original import original_state
from dreambooth.families import Conditioning, ModelSource, fingerprint, load_family
from dreambooth.families.sd import StableDiffusion
from dreambooth.generation.images import generate, make_requests
from dreambooth.generation.inputs.canvas import Canvas, feathered, make_canvas, natural_size
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.inputs.image_inputs import ImageInputs
from dreambooth.generation.inputs.image_refs import ImageRef
from dreambooth.generation.inputs.init_image import InitImage, fitted_size, init_image, parse_margins
from dreambooth.generation.inputs.init_latents import InitLatents, encode_canvas, noised
from dreambooth.generation.inputs.style_ref import StyleRef
from dreambooth.generation.models.loading import Model, load_model
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.prompting.prompt_file import read_prompt_file
from dreambooth.generation.prompting.wildcards import Wildcards
from dreambooth.generation.request import read_recipe, request_of
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.schedulers import SamplerStep, make_scheduler, timesteps_from
from dreambooth.generation.settings import SCHEDULERS, SamplerSettings
from dreambooth.subject_info import LearnedSubject, SubjectInfo, card_metadata

SHAPE = (4, 8, 8)
SETTINGS = SamplerSettings(4, 3.0)
OPTIONS = ImageOptions("a dog", 1, 7, steps=4, guidance_scale=3.0)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Model:
    return load_model(str(tiny_base), "cpu")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    noise_HWC = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise_HWC).save(path)
    return path


def write_mask(path: Path, box: tuple[int, int, int, int] | None, size: tuple[int, int] = (64, 64)) -> Path:
    """Write a mask that is white in a box (left, top, right, bottom)."""
    mask = Image.new("L", size, 0)
    if box is not None:
        mask.paste(255, box)
    mask.save(path)
    return path


def made(model: Model, init: InitImage | None, size: tuple[int, int] | None = None) -> Image.Image:
    requests = make_requests(model, [replace(OPTIONS, size=size)], Wildcards(), FromImages(init))
    (image,) = generate(model, requests, 1)
    return image


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, int)


# limits


def test_strength_zero_gives_the_image_back_through_the_vae(model: Model, photo: Path) -> None:
    mean_BCHW, _ = model.family.encode_images(to_tensor(Image.open(photo))[None])
    (expected,) = to_images(model.family.decode_latents(mean_BCHW).clamp(-1, 1))
    assert np.array_equal(levels(made(model, init_image(str(photo), 0.0))), levels(expected))


def test_strength_one_equals_plain_sampling(model: Model, photo: Path) -> None:
    assert np.array_equal(levels(made(model, init_image(str(photo), 1.0))), levels(made(model, None)))
    assert not np.array_equal(levels(made(model, init_image(str(photo), 0.75))), levels(made(model, None)))


def test_a_white_mask_equals_image_to_image_and_a_black_one_the_original(
    model: Model, photo: Path, tmp_path: Path
) -> None:
    white = init_image(str(photo), 0.5, str(write_mask(tmp_path / "white.png", (0, 0, 64, 64))))
    black = init_image(str(photo), 0.5, str(write_mask(tmp_path / "black.png", None)))
    assert np.array_equal(levels(made(model, white)), levels(made(model, init_image(str(photo), 0.5))))
    assert np.array_equal(levels(made(model, black)), levels(Image.open(photo)))


@pytest.mark.parametrize(
    ("colour", "told"), [("black", "is 0 of 255"), ("red", "is 76 of 255"), ("#ccc", None), ("white", None)]
)
def test_a_mask_without_white_gets_one_line(
    colour: str, told: str | None, photo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mask = tmp_path / "mask.png"
    Image.new("RGB", Image.open(photo).size, colour).save(mask)
    init_image(str(photo), mask=str(mask), only_masked=True)
    lines = [record.getMessage() for record in caplog.records]
    assert [f"--mask {mask}: nothing in it is white" in line and told in line for line in lines] == [True] * bool(told)


@dataclass
class Oracle(StableDiffusion):
    """A model that knows the image: it predicts the noise that leads to it from wherever sampling is."""

    x0_1CHW: Tensor | None = None

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        below, above = t_B.float().floor().long(), t_B.float().ceil().long()
        share = (t_B.float() - below).view(-1, 1, 1, 1)  # Karras' timesteps lie between those of the schedule
        ratios = [sigma / alpha for alpha, sigma in (self.schedule.coefficients(each) for each in (below, above))]
        ratio = torch.exp(torch.lerp(ratios[0].log(), ratios[1].log(), share))
        alpha = 1 / (1 + ratio**2).sqrt()
        return (noisy_BCHW - alpha * self.x0_1CHW) / (ratio * alpha)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_sampler_takes_the_remaining_steps_from_the_noise_that_was_added(model: Model, scheduler: str) -> None:
    """A model that knows the image comes back to it, so noise and first timestep belong together."""
    own = model.family
    assert isinstance(own, StableDiffusion)
    x0_1CHW = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    oracle = Oracle(own.vae, own.unet, own.scheduler_config, own.text_encoder, own.tokenizer, x0_1CHW)
    settings = SamplerSettings(10, 1.0, scheduler)
    for strength in (0.3, 0.7):
        start = noise_from_seeds([3], SHAPE)
        init = InitLatents(x0_1CHW, strength, None, Conditioning({}))
        back = sample_latents(oracle, ["a dog"], start, settings, inputs=ImageInputs(init))
        assert float((back - x0_1CHW).abs().max()) < 0.05


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_latents_that_are_not_redrawn_come_back_exactly(model: Model, scheduler: str) -> None:
    x0_1CHW = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    redrawn_11HW = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    redrawn_11HW[..., :4] = True
    init = InitLatents(x0_1CHW, 0.6, redrawn_11HW, Conditioning({}))
    settings = SamplerSettings(5, 3.0, scheduler)
    got = sample_latents(
        model.family, ["a dog", "a cat"], noise_from_seeds([3, 4], SHAPE), settings, inputs=ImageInputs(init)
    )
    assert torch.equal(got[..., 4:], x0_1CHW[..., 4:].expand(2, -1, -1, -1))
    assert not torch.equal(got[..., :4], x0_1CHW[..., :4].expand(2, -1, -1, -1))


@pytest.mark.parametrize("base", ["z_image", "flux1", "sd3"])
def test_families_of_flow_matching_keep_what_is_not_redrawn(
    base: str, photo: Path, tmp_path: Path, flow_base: Callable[[str], Path]
) -> None:
    model = load_model(str(flow_base(base)), "cpu")
    mask = write_mask(tmp_path / "mask.png", (0, 0, 32, 64))
    options = ImageOptions("a dog", 1, 7, steps=2, size=(64, 64))

    def drawn(init: InitImage | None) -> np.ndarray:
        (image,) = generate(model, make_requests(model, [options], Wildcards(), FromImages(init)), 1)
        return levels(image)

    got, original = drawn(init_image(str(photo), 0.5, str(mask), feather=0)), levels(Image.open(photo))
    assert np.array_equal(got[:, 32:], original[:, 32:])
    assert not np.array_equal(got[:, :32], original[:, :32])
    assert np.array_equal(drawn(init_image(str(photo), 1.0)), drawn(None))
    with pytest.raises(UserError, match="of a family whose attention cannot be shared"):
        make_requests(model, [options], Wildcards(), FromImages(style=StyleRef(ImageRef(str(photo)))))


def test_samplers_of_flow_matching_have_the_noise_of_their_step() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    step = SamplerStep(scheduler, timesteps_from(scheduler, 2))
    x0, noise = torch.randn(1, *SHAPE), torch.randn(2, *SHAPE)
    latents = noised(step, x0, noise)
    for t in step.timesteps_T:
        sigma = scheduler.sigmas[2 + step.number]
        torch.testing.assert_close(latents, (1 - sigma) * x0 + sigma * noise)
        latents = scheduler.step(noise - x0, t, latents).prev_sample
        step = step.next()
        torch.testing.assert_close(latents, noised(step, x0, noise), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(latents, x0.expand(2, -1, -1, -1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("strength", "num_taken"), [(0.0, 0), (0.01, 1), (0.5, 5), (0.7, 7), (1.0, 10)])
def test_a_strength_takes_its_part_of_the_steps(strength: float, num_taken: int) -> None:
    init = InitLatents(torch.zeros(1, *SHAPE), strength, None, Conditioning({}))
    assert init.first_step(10) == 10 - num_taken


# masks in pixels


def test_feathering_leaves_white_white_and_what_is_far_black() -> None:
    mask = Image.new("L", (40, 40), 0)
    mask.paste(255, (10, 10, 20, 20))
    soft = levels(feathered(mask, 4))
    assert (soft[10:20, 10:20] == 255).all()
    assert (soft[:, 24:] == 0).all()
    assert 0 < soft[15, 21] < 255
    assert np.array_equal(levels(feathered(mask, 0)), levels(mask))


def test_what_is_kept_is_exactly_the_original(model: Model, photo: Path, tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "mask.png", (16, 16, 40, 40))
    got = levels(made(model, init_image(str(photo), 0.8, str(mask), feather=4)))
    changed = (got != levels(Image.open(photo))).any(-1)
    assert changed[18:38, 18:38].mean() > 0.9
    changed[12:44, 12:44] = False
    assert not changed.any()


def test_a_part_is_redrawn_at_the_models_size_and_pasted_back(model: Model, tmp_path: Path) -> None:
    pixels_HWC = np.random.default_rng(1).integers(0, 256, (150, 203, 3), dtype=np.uint8)
    Image.fromarray(pixels_HWC).save(tmp_path / "large.png")
    mask = write_mask(tmp_path / "mask.png", (100, 60, 120, 90), (203, 150))
    init = init_image(str(tmp_path / "large.png"), 0.8, str(mask), only_masked=True, feather=2)
    (request,) = make_requests(model, [OPTIONS], Wildcards(), FromImages(init))
    assert abs(request.width * request.height - 64**2) <= 16 * 64, "of the part, not of the whole"
    (got,) = generate(model, [request], 1)
    assert got.size == (203, 150)
    changed = (levels(got) != pixels_HWC).any(-1)
    assert changed[62:88, 102:118].mean() > 0.9
    changed[58:92, 98:122] = False
    assert not changed.any()


@pytest.mark.parametrize("feather", [24, 25])
def test_a_feather_wider_than_the_margin_fades_out_within_the_part(feather: int, tmp_path: Path) -> None:
    Image.new("RGB", (160, 160), "black").save(tmp_path / "dark.png")
    mask = write_mask(tmp_path / "mask.png", (70, 70, 90, 90), (160, 160))
    init = init_image(str(tmp_path / "dark.png"), 0.8, str(mask), only_masked=True, feather=feather)
    assert init is not None
    canvas = make_canvas(init, natural_size(init, 64, 8))
    got = levels(canvas.finish(Image.new("RGB", canvas.image.size, "white")))[80, :, 0]
    assert got.max() == 255
    assert np.abs(np.diff(got)).max() <= 2 * 255 / feather, "no seam where the part ends"
    assert (got > 0).sum() == 20 + 2 * (feather + feather % 2), "all of the feather"


def test_an_expanded_image_keeps_its_inside(model: Model, photo: Path) -> None:
    init = init_image(str(photo), expand=(32, 0, 0, 16), feather=2)
    assert init is not None
    assert init.strength == 1
    got = made(model, init, (80, 96))
    assert got.size == (96, 80)
    inside = levels(got)[:64, 32:]
    assert np.array_equal(inside[:60, 4:], levels(Image.open(photo))[:60, 4:])
    assert not np.array_equal(inside, levels(Image.open(photo))), "the border fades"


def test_the_size_is_the_images_own_or_its_shape_at_the_models_resolution(model: Model, tmp_path: Path) -> None:
    for own, expected in (((80, 96), (80, 96)), ((81, 96), (64, 64)), ((320, 160), (96, 48))):
        Image.new("RGB", own).save(tmp_path / "own.png")
        init = init_image(str(tmp_path / "own.png"))
        assert init is not None
        assert natural_size(init, 64, model.family.size_multiple) == expected
    assert fitted_size((512, 512), 512, 64) == (512, 512)
    assert fitted_size((4000, 3000), 512, 64) == (576, 448)
    assert fitted_size((100, 2000), 512, 64) == (128, 2304)


def test_an_uncut_canvas_is_the_image_itself(photo: Path) -> None:
    init = init_image(str(photo))
    assert init is not None
    assert make_canvas(init, (64, 64)) == Canvas(Image.open(photo).convert("RGB"))


# inpainting bases


@pytest.fixture(scope="module")
def inpainting_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    family = load_family(str(tiny_base))
    assert isinstance(family, StableDiffusion)
    unet = UNet2DConditionModel.from_config({**family.unet.config, "in_channels": 9})
    pipeline = StableDiffusionInpaintPipeline(
        **{**family.pipeline().components, "unet": unet}, requires_safety_checker=False
    )
    folder = tmp_path_factory.mktemp("inpainting") / "base"
    pipeline.save_pretrained(folder)
    return folder


def test_an_inpainting_base_gives_the_latents_of_diffusers_own_pipeline(
    inpainting_base: Path, photo: Path, tmp_path: Path
) -> None:
    family = load_family(str(inpainting_base))
    assert isinstance(family, StableDiffusion)
    mask = Image.open(write_mask(tmp_path / "mask.png", (16, 16, 40, 40)))
    init = encode_canvas(family, Canvas(Image.open(photo), mask), 1.0)
    start = noise_from_seeds([3], SHAPE)
    ours = sample_latents(family, ["a dog"], start, replace(SETTINGS, scheduler="ddim"), inputs=ImageInputs(init))

    components = {**family.pipeline().components, "scheduler": make_scheduler(family, "ddim")}
    pipeline = StableDiffusionInpaintPipeline(**components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a dog",
        image=Image.open(photo),
        mask_image=mask,
        masked_image_latents=init.conditioning["inpainting"][:, 1:],
        height=64,
        width=64,
        strength=1.0,
        latents=start.noise_BCHW.clone(),
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_an_inpainting_base_reads_the_mask_and_draws_without_one(
    inpainting_base: Path, photo: Path, tmp_path: Path
) -> None:
    model = load_model(str(inpainting_base), "cpu")
    assert made(model, None).size == (64, 64)
    mask = write_mask(tmp_path / "mask.png", (16, 16, 40, 40))
    got = levels(made(model, init_image(str(photo), 1.0, str(mask), feather=0)))
    original = levels(Image.open(photo))
    assert np.array_equal(got[:16], original[:16])
    assert not np.array_equal(got[16:40, 16:40], original[16:40, 16:40])


def test_an_inpainting_base_may_be_a_single_file(inpainting_base: Path, tmp_path: Path) -> None:
    family, path = load_family(str(inpainting_base)), tmp_path / "model.safetensors"
    save_file(original_state(family), path)
    assert fingerprint(load_family(ModelSource(str(path), config=str(inpainting_base)))) == fingerprint(family)


def test_an_inpainting_base_is_not_trained(inpainting_base: Path, config: Config) -> None:
    config.model.base = str(inpainting_base)
    with pytest.raises(ModelError, match=r"model\.base=.*an inpainting model"):
        build.load_base(config)


# recipes


def test_a_recipe_makes_its_picture_again_with_the_same_bits(
    tiny_base: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, mask = tmp_path / "own.png", write_mask(tmp_path / "mask.png", (16, 16, 40, 40))
    own.write_bytes(photo.read_bytes())
    command = ["sample", str(tiny_base), "a dog", "--steps", "3", "--num-images", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--init-image", str(own), "--mask", str(mask), "--strength", "0.6"]) == 0
    (first,) = (tmp_path / "out").iterdir()
    recipe = read_recipe(first)["init_image"]
    assert (recipe["file"], recipe["strength"], recipe["mask"]["file"]) == (str(own), 0.6, str(mask))
    again = ["sample", "--from-image", str(first), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    (second,) = (tmp_path / "again").iterdir()
    assert np.array_equal(levels(Image.open(first)), levels(Image.open(second)))
    assert read_recipe(first) == read_recipe(second)
    assert "another file" not in capsys.readouterr().err

    Image.new("RGB", (64, 64), "red").save(own)
    assert main(again) == 0
    assert f"{own}: another file than the one the image was made with" in capsys.readouterr().err
    own.unlink()
    assert main(again) == 2
    assert "own.png: there is no such file; where it lies elsewhere now, name it with --init-image" in (
        capsys.readouterr().err
    )
    assert main([*again, "--init-image", str(photo)]) == 0
    assert len(list((tmp_path / "again").iterdir())) == 3


def test_a_program_starts_from_a_pil_image(tiny_base: Path, photo: Path) -> None:
    model = dreambooth.load(tiny_base, device="cpu")
    options = {"num_images": 1, "steps": 2, "strength": 0.5}
    (of_file,) = model.generate("a dog", init_image=photo, **options)
    (of_image,) = model.generate("a dog", init_image=Image.open(photo), **options)
    assert np.array_equal(levels(of_file), levels(of_image))
    assert np.array_equal(levels(of_file), levels(model.reproduce(of_file)))
    with pytest.raises(UserError, match="made from one in memory, which no file holds"):
        model.reproduce(of_image)


def test_a_line_of_a_file_starts_from_an_image_of_its_own(tiny_base: Path, photo: Path, tmp_path: Path) -> None:
    """To the bits of the same options for all prompts; lines that name none take what all take."""
    lines = [{"prompt": "a dog", "init_image": str(photo), "strength": 0.5, "seed": 7}, {"prompt": "a dog", "seed": 7}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = ["sample", str(tiny_base), "--num-images", "1", "--steps", "2"]
    of_lines = [*command, "--prompts", str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "lines")]
    assert main(of_lines) == 0
    assert main([*command, "a dog", "--seed", "7", "--out", str(tmp_path / "plain")]) == 0
    started = ["--init-image", str(photo), "--strength", "0.5"]
    assert main([*command, "a dog", "--seed", "7", *started, "--out", str(tmp_path / "started")]) == 0
    first, second = sorted((tmp_path / "lines").glob("0*.png"))
    assert first.read_bytes() == (tmp_path / "started" / first.name).read_bytes()
    assert second.read_bytes() == (tmp_path / "plain" / first.name).read_bytes()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"init_image": "./nowhere.png"}, "line 1: --init-image ./nowhere.png: there is no such file"),
        ({"strength": 0.5}, "line 1: strength=0.5: belongs to an image to start from"),
        ({"init_imag": "a.png"}, "line 1: init_imag: unknown option; did you mean init_image"),
        ({"style": "of nobody"}, "line 1: --style of nobody"),
        ({"control": {"canny": 1}}, "line 1: control={'canny': 1}: must be KIND=IMAGE, or a list of them"),
        ({"init_image": 3}, "line 1: init_image=3: must be an image's file"),
        ({"init_image": "a.png", "mask": "subject"}, "line 1: mask=subject: one prompt's mask is a file; words are"),
    ],
)
def test_a_line_that_names_no_image_is_refused(own: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "a dog", **own}))
    with pytest.raises(UserError, match=re.escape(message)):
        read_prompt_file(path, OPTIONS)


def test_an_image_to_start_from_comes_back_from_json(photo: Path, tmp_path: Path, model: Model) -> None:
    mask = write_mask(tmp_path / "mask.png", (16, 16, 40, 40))
    init = init_image(str(photo), 0.4, str(mask), (8, 0, 8, 0), 3, True)
    (request,) = make_requests(model, [OPTIONS], Wildcards(), FromImages(init))
    (image,) = generate(model, [request], 1)
    assert request_of(json.loads(json.dumps(image.recipe))) == request


# wrong input


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--init-image", "{folder}/none.png"], "--init-image {folder}/none.png: there is no such file"),
        (["--init-image", "{folder}/text.png"], "--init-image {folder}/text.png: not an image"),
        (["--init-image", "{photo}", "--mask", "{folder}/small.png"], "small.png: 32x32 pixels, but {photo} has 64x64"),
        (["--init-image", "{photo}", "--strength", "1.5"], "error: --strength 1.5: must be from 0"),
        (["--init-image", "{photo}", "--strength", "nan"], "error: --strength nan: must be from 0"),
        (["--init-image", "{photo}", "--expand", "8,8"], "--expand 8,8: must be LEFT,TOP,RIGHT,BOTTOM"),
        (["--init-image", "{photo}", "--expand", "0,0,0,0"], "adds nothing"),
        (["--init-image", "{photo}", "--only-masked"], "error: --only-masked: needs a mask"),
        (["--init-image", "{photo}", "--feather", "-1"], "error: --feather -1: must be a number of pixels"),
        (["--strength", "0.5"], "error: --strength 0.5: belongs to an image to start from"),
        (["--expand", "0,0,8,8"], "error: --expand 0,0,8,8: belongs to an image to start from"),
        (["--mask", "{photo}"], "error: --mask {photo}: belongs to an image to start from"),
    ],
)
def test_wrong_input_is_reported_before_anything_heavy_is_loaded(
    options: list[str], named: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is no model, which would be an error of code 3."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "model_index.json").write_text("{}")
    (tmp_path / "text.png").write_text("no image")
    write_mask(tmp_path / "small.png", (0, 0, 8, 8), (32, 32))
    filled = [option.format(folder=tmp_path, photo=photo) for option in options]
    assert main(["sample", str(base), "a dog", "--out", str(tmp_path / "out"), *filled]) == 2
    error = capsys.readouterr().err
    assert named.format(folder=tmp_path, photo=photo) in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_mask_of_words_knows_what_a_lora_has_learned(
    tiny_base: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would find the mask is not to be had, which is told where the words are understood."""
    card = SubjectInfo(
        (LearnedSubject("rbt", "robot", "a photo of {subject}", "a photo of a {class}"),),
        64,
        2,
        3.0,
        8,
        method="lora",
        base=str(tiny_base),
    )
    save_file({"unet.a.lora_A.weight": torch.zeros(1)}, tmp_path / "rbt.safetensors", metadata=card_metadata(card))
    command = ["sample", str(tiny_base), "a dog", "--init-image", str(photo), "--mask", "subject"]
    command += ["--mask-model", "nobody/nothing", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "this model has learned no subject" in capsys.readouterr().err
    assert main([*command, "--lora", str(tmp_path / "rbt.safetensors")]) == 3
    assert "nobody/nothing: no such folder here, and the hub cannot be reached" in capsys.readouterr().err


def test_a_mask_beside_a_recipe_without_one_is_refused(
    tiny_base: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask, command = write_mask(tmp_path / "mask.png", (16, 16, 40, 40)), ["sample", str(tiny_base), "a dog"]
    command += ["--steps", "1", "--num-images", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--init-image", str(photo)]) == 0
    (image,) = (tmp_path / "out").iterdir()
    for option in ("--from-image", "--vary"):
        assert main(["sample", option, str(image), "--mask", str(mask)]) == 2
        assert f"--mask {mask}: {image} was made without one; leave it out" in capsys.readouterr().err


def test_a_mask_model_that_is_not_to_be_had_is_told_with_its_option(
    tiny_base: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(tiny_base), "a dog", "--init-image", str(photo), "--mask", "the hat"]
    assert main([*command, "--mask-model", "nobody/nothing", "--out", str(tmp_path / "out")]) == 3
    error = capsys.readouterr().err
    assert "nobody/nothing: no such folder here, and the hub cannot be reached" in error
    assert "(it finds a --mask of words" in error
    assert not (tmp_path / "out").exists()


def test_margins_are_four_numbers() -> None:
    assert parse_margins(" 8, 0,16,4 ") == (8, 0, 16, 4)


@pytest.mark.parametrize(
    ("prompt", "option", "told"),
    [
        ("a dog", "--feather=-2", "--feather -2: must be a number of pixels from 0 on"),
        ("a dog", "--control=canny=none.png", "--control none.png: there is no such file"),
        ("a {clas}", "--strength=0.5", "{clas} is unknown"),
    ],
)
def test_a_mistake_beside_a_mask_of_words_is_told_before_the_mask_is_written(
    prompt: str, option: str, told: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    Image.new("RGB", (64, 64)).save(photo)
    command = ["sample", str(tiny_base), prompt, "--init-image", str(photo), "--mask", "robot", option]
    assert main([*command, "--out", str(out)]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()
