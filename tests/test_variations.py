"""Variations of an image, and the text of other programs in a PNG: limits, round trips, what each reader gets."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth.api import Model
from dreambooth.cli import main
from dreambooth.errors import UserError
from dreambooth.generation.infotext import parse_infotext, user_comment, write_infotext
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.request import (
    ImageRequest,
    make_recipe,
    read_infotext,
    read_recipe,
    request_of,
    write_png,
)
from dreambooth.generation.sampler import interpolate_noise, noise_from_seeds
from dreambooth.generation.settings import SamplerSettings
from dreambooth.generation.variation import NoiseSeed, Variation

SHAPE = (4, 16, 16)
REQUEST = ImageRequest(
    ModelRef("runs/dog"), "a (red) dog", 7, 64, 96, SamplerSettings(5, 3.0, "dpm++-karras", "a cat, people")
)
THEIRS = """a dog in {a box}, <lora:ink:0.7> (sunny:1.2)
second line
Negative prompt: bad, worse
Steps: 2, Sampler: Euler a, Schedule type: Automatic, CFG scale: 3, Seed: 123, Size: 64x80, Model hash: ab12, \
Model: dreamy, Hires upscale: 2, Lora hashes: "ink: 12, b: 3", Version: v1.10.1"""


# ------------------------------------------------------------------------------------------------ noise


def test_noise_between_two_has_their_length_and_the_ends_are_themselves() -> None:
    one, other = (noise_from_seeds([seed], SHAPE).noise_BCHW for seed in (1, 2))
    assert interpolate_noise(one, other, 0) is one
    assert interpolate_noise(one, other, 1) is other
    for part in (0.25, 0.5, 0.9):
        between = interpolate_noise(one, other, part)
        assert math.isclose(float(between.std()), 1, abs_tol=0.05), "on a straight line it would be .71 in the middle"
    half = interpolate_noise(one, other, 0.5)
    torch.testing.assert_close(torch.cdist(half.flatten()[None], one.flatten()[None]),
                               torch.cdist(half.flatten()[None], other.flatten()[None]), rtol=0.1, atol=0)  # fmt: skip


def test_a_variation_is_a_function_of_both_seeds_and_the_strength_alone() -> None:
    seeds = [NoiseSeed(3), NoiseSeed(3, (Variation(0, 0.0),)), NoiseSeed(3, (Variation(0, 1.0),))]
    plain, unchanged, whole = noise_from_seeds(seeds, SHAPE).noise_BCHW
    assert torch.equal(plain, noise_from_seeds([3], SHAPE).noise_BCHW[0])
    assert torch.equal(unchanged, plain)
    assert torch.equal(whole, noise_from_seeds([NoiseSeed(9, (Variation(0, 1.0),))], SHAPE).noise_BCHW[0])
    distances = [
        float((noise_from_seeds([NoiseSeed(3, (Variation(0, part),))], SHAPE).noise_BCHW[0] - plain).norm())
        for part in (0.1, 0.4, 0.8)
    ]
    assert distances == sorted(distances)


@pytest.mark.parametrize("strength", [-0.1, 1.5, math.nan])
def test_a_strength_out_of_its_range_is_refused(strength: float) -> None:
    with pytest.raises(UserError, match=r"variation_strength=.*: must be from 0, the image itself, to 1, another one"):
        Variation(0, strength)


def test_variations_stand_in_the_recipe_and_are_made_again(tiny_base: Path, tmp_path: Path) -> None:
    quick = ["--steps", "2", "--num-images", "1"]
    assert main(["sample", str(tiny_base), "a dog", *quick, "--out", str(tmp_path / "a")]) == 0
    image = tmp_path / "a" / "00000-a-dog.png"
    vary = ["sample", "--vary", str(image), "--num-images", "2", "--seed", "5", "--batch-size", "1"]
    assert main([*vary, "--variation-strength", "0.4", "--out", str(tmp_path / "b")]) == 0
    first, second, _ = sorted((tmp_path / "b").iterdir())
    assert read_recipe(second)["variations"] == [{"seed": 6, "strength": 0.4}]
    assert len({path.read_bytes() for path in (image, first, second)}) == 3
    assert main(["sample", "--from-image", str(second), "--out", str(tmp_path / "c")]) == 0
    (again,) = (tmp_path / "c").iterdir()
    assert Image.open(again).tobytes() == Image.open(second).tobytes()

    model = Model(load_model(str(tiny_base), "cpu"), "cpu")
    (same,) = model.vary(image, strength=0, num_images=1)
    assert same.tobytes() == Image.open(image).tobytes(), "strength 0 is the image itself"
    (further,) = model.vary(second, strength=0.1, num_images=1)
    assert [each["strength"] for each in further.recipe["variations"]] == [0.4, 0.1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--from-image", "{image}", "--steps", "5"], "--steps 5: --from-image {image} has it from the image's recipe"),
        (["--vary", "{image}", "--only-masked"], "--only-masked: --vary {image} has it from the image's recipe"),
        (["m", "a dog", "--from-image", "{image}"], "PROMPT a dog: --from-image {image} has it"),
        (["--from-image", "{image}", "--seed", "3"], "--seed 3: --from-image {image} has it"),
        (["--from-image", "{image}", "--dtype", "float16"], "--dtype float16: --from-image {image} has it"),
        (["--from-image", "{image}", "--vary", "{image}"], "--vary {image}: not together with --from-image"),
        (["m", "a dog", "--variation-strength", "0.2"], "--variation-strength 0.2: belongs to --vary IMAGE"),
        (["m", "a __day__", "--wildcards", "{image}/no"], "--wildcards {image}/no: there is no such folder"),
    ],
)
def test_an_option_that_would_count_for_nothing_is_refused(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image.png"
    (tmp_path / "m").mkdir()
    write_png(image, Image.new("RGB", (8, 8)), make_recipe(REQUEST, "ab" * 32))
    given = [str(tmp_path / "m") if option == "m" else option.format(image=image) for option in options]
    assert main(["sample", *given, "--out", str(tmp_path / "out")]) == 2
    assert told.format(image=image) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ other programs' text


def test_other_programs_read_our_settings_under_their_names() -> None:
    lines = write_infotext(make_recipe(REQUEST, "ab" * 32)).splitlines()
    assert lines[:2] == [r"a \(red\) dog", "Negative prompt: a cat, people"]
    assert lines[2].startswith(
        "Steps: 5, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3.0, Seed: 7, Size: 96x64, Model: dog, "
    )


def test_what_we_write_for_them_we_read_back() -> None:
    found = parse_infotext(write_infotext(make_recipe(REQUEST, "ab" * 32)))
    assert found is not None
    assert found.options == ImageOptions(r"a \(red\) dog", 1, 7, "a cat, people", 5, 3.0, "dpm++-karras", (64, 96))
    assert found.not_read == ()


def test_their_text_is_read_as_far_as_it_has_a_counterpart() -> None:
    found = parse_infotext(THEIRS)
    assert found is not None
    prompt = "a dog in {{a box}}, (sunny:1.2)\nsecond line"
    assert found.options == ImageOptions(prompt, 1, 123, "bad, worse", 2, 3.0, "euler-a", (80, 64))
    assert (found.model, found.not_read) == ("dreamy", ("Hires upscale", "<lora:ink>"))
    assert parse_infotext("a comment of a camera") is None
    old = parse_infotext("x\nSteps: 2, Sampler: DPM++ 2M Karras, Seed: 1")
    assert old is not None
    assert old.options.scheduler == "dpm++-karras"


@pytest.mark.parametrize(
    ("sampler", "schedule", "own", "not_read"),
    [
        ("Euler a", "Karras", "euler-a", ("Schedule type Karras",)),
        ("DDIM", "Karras", "ddim", ("Schedule type Karras",)),
        ("Euler a Karras", "Automatic", "euler-a", ("Schedule type Karras",)),
        ("Euler", "Karras", "euler-karras", ()),
        ("Euler", "Normal", "euler", ()),
        ("Euler", "Exponential", "euler", ("Schedule type Exponential",)),
        ("DPM++ 2M", "SGM Uniform", "dpm++", ("Schedule type SGM Uniform",)),
        ("DPM2", "Karras", None, ("Schedule type Karras",)),
    ],
)
def test_a_schedule_without_a_counterpart_is_listed(
    sampler: str, schedule: str, own: str | None, not_read: tuple[str, ...]
) -> None:
    found = parse_infotext(f"x\nSteps: 2, Sampler: {sampler}, Schedule type: {schedule}, Seed: 1")
    assert found is not None
    assert (found.options.scheduler, found.not_read) == (own, not_read)


def test_a_picture_of_another_program_is_sampled_with_a_model_that_is_named(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = PngInfo()
    info.add_text("parameters", THEIRS)
    Image.new("RGB", (64, 80)).save(tmp_path / "theirs.png", pnginfo=info)
    command = ["sample", "--from-image", str(tmp_path / "theirs.png"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "was made with the model 'dreamy'; name MODEL" in capsys.readouterr().err
    assert main([*command[:1], str(tiny_base), *command[1:]]) == 0
    assert "not read of it: Hires upscale, <lora:ink>" in capsys.readouterr().err
    (made,) = (tmp_path / "out").iterdir()
    recipe = read_recipe(made)
    assert (recipe["prompt"], recipe["seed"], recipe["height"]) == (
        "a dog in {a box}, (sunny:1.2)\nsecond line",
        123,
        80,
    )
    assert read_infotext(made) is None, "our own recipe says more"
    assert "Steps: 2, Sampler: Euler a" in Image.open(made).info["parameters"]


def test_the_comment_of_a_jpeg_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + THEIRS.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    found = read_infotext(tmp_path / "a.jpg")
    assert found is not None
    assert found.options.seed == 123
    assert user_comment(b"ASCII\0\0\0Steps: 1") == "Steps: 1"


def test_a_request_with_variations_comes_back_from_its_recipe() -> None:
    varied = ImageRequest(ModelRef("dog"), "a dog", 0, 8, 8, SamplerSettings(), variations=(Variation(1, 0.5),))
    assert request_of(make_recipe(varied, "ab" * 32)) == varied
