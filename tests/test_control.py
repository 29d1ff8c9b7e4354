"""Controls: maps, ControlNets beside a model, their weight and span. Limits first."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from PIL import Image, ImageDraw

import dreambooth
from dreambooth.cli import main
from dreambooth.errors import UserError
from dreambooth.families import load_family
from dreambooth.families.sd import StableDiffusion
from dreambooth.families.unet import UNetFamily
from dreambooth.generation.images import generate, make_requests
from dreambooth.generation.inputs.canny import canny
from dreambooth.generation.inputs.control_ref import ControlRef, embedded_control, make_controls, parse_control
from dreambooth.generation.inputs.controls import attach_controls, make_map, prepare_controls
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.inputs.image_inputs import ImageInputs
from dreambooth.generation.inputs.image_refs import ImageRef
from dreambooth.generation.models.loading import Model, load_model
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.prompting.wildcards import Wildcards
from dreambooth.generation.request import read_recipe, request_of
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.schedulers import make_scheduler
from dreambooth.generation.settings import SamplerSettings

SHAPE = (4, 8, 8)
SETTINGS = SamplerSettings(4, 3.0)
OPTIONS = ImageOptions("a dog", 1, 7, steps=4, guidance_scale=3.0)


def make_controlnet(base: Path, folder: Path) -> Path:
    """Write a ControlNet of random weights that fits a base, its last layers too, which are zero at first."""
    torch.manual_seed(2)
    family = load_family(str(base))
    assert isinstance(family, UNetFamily)
    network = ControlNetModel.from_unet(family.unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
    for weight in network.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def controlnet(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_controlnet(tiny_base, tmp_path_factory.mktemp("control") / "sd")


@pytest.fixture(scope="module")
def controlnet_xl(tiny_xl_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_controlnet(tiny_xl_base, tmp_path_factory.mktemp("control") / "xl")


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Model:
    return load_model(str(tiny_base), "cpu")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((10, 14, 50, 54), fill="green")
    image.save(path)
    return path


def made(model: Model, controls: tuple[ControlRef, ...] = ()) -> np.ndarray:
    (image,) = generate(model, make_requests(model, [OPTIONS], Wildcards(), FromImages(controls=controls)), 1)
    return np.asarray(image, int)


# limits


def test_a_weight_of_zero_equals_no_control(model: Model, controlnet: Path, photo: Path) -> None:
    def controlled(weight: float) -> np.ndarray:
        return made(model, make_controls([f"canny={photo}:{weight}"], {"canny": str(controlnet)}))

    assert np.array_equal(controlled(0), made(model))
    assert not np.array_equal(controlled(1), made(model))


def test_a_span_holds_the_steps_within_it(model: Model, controlnet: Path, photo: Path) -> None:
    def controlled(span: str) -> np.ndarray:
        return made(model, make_controls([f"canny={photo}:1:{span}"], {"canny": str(controlnet)}))

    whole, first_half = controlled("0-1"), controlled("0-0.5")
    assert np.array_equal(whole, made(model, make_controls([f"canny={photo}"], {"canny": str(controlnet)})))
    assert not np.array_equal(first_half, whole)
    assert not np.array_equal(first_half, made(model))
    assert np.array_equal(controlled("0.1-0.2"), made(model)), "no whole step of four lies in it"


def test_two_controls_of_half_weight_equal_one(model: Model, controlnet: Path, photo: Path) -> None:
    one = made(model, make_controls([f"canny={photo}"], {"canny": str(controlnet)}))
    two = made(model, make_controls([f"canny={photo}:0.5", f"canny={photo}:0.5"], {"canny": str(controlnet)}))
    assert abs(one - two).max() <= 1


@pytest.mark.parametrize(
    ("base", "network", "pipeline_class"),
    [
        ("tiny_base", "controlnet", StableDiffusionControlNetPipeline),
        ("tiny_xl_base", "controlnet_xl", StableDiffusionXLControlNetPipeline),
    ],
)
def test_latents_are_those_of_diffusers_own_pipeline(
    base: str, network: str, pipeline_class: type, photo: Path, request: pytest.FixtureRequest
) -> None:
    model = load_model(str(request.getfixturevalue(base)), "cpu")
    folder = str(request.getfixturevalue(network))
    refs = make_controls([f"canny={photo}:0.7:0-0.5"], {"canny": folder})
    start = noise_from_seeds([3, 4], SHAPE)
    inputs = ImageInputs(controls=prepare_controls(model, refs, (64, 64)))
    ours = sample_latents(model.family, ["a dog", "a house"], start, SETTINGS, inputs=inputs)

    components = {**model.family.pipeline().components, "scheduler": make_scheduler(model.family, "ddim")}
    pipeline = pipeline_class(
        **components,
        controlnet=ControlNetModel.from_pretrained(folder),
        **({"requires_safety_checker": False} if base == "tiny_base" else {"add_watermarker": False}),
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        ["a dog", "a house"],
        image=canny(Image.open(photo)),
        latents=start.noise_BCHW.clone(),
        num_inference_steps=4,
        guidance_scale=3.0,
        controlnet_conditioning_scale=0.7,
        control_guidance_end=0.5,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


# maps


def test_edges_are_those_of_opencv() -> None:
    """The sum was made by cv2.Canny(image, 100, 200) of OpenCV 5.0.0; the image has ties, corners and flat parts."""
    levels_HWC = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    levels_HWC[10:30, 20:50] = (200, 30, 90)
    edges = np.asarray(canny(Image.fromarray(levels_HWC)))
    assert (edges == edges[..., :1]).all()
    assert hashlib.sha256(edges[..., 0].tobytes()).hexdigest()[:16] == "7901116e4873bef6"


def test_a_straight_border_is_an_edge_one_pixel_wide() -> None:
    image = Image.new("RGB", (32, 24), "black")
    image.paste("white", (16, 0, 32, 24))
    edges = np.asarray(canny(image))[..., 0]
    assert (edges.astype(bool).sum(axis=1) == 1).all()
    assert set(np.nonzero(edges)[1]) <= {15, 16}
    assert not np.asarray(canny(Image.new("RGB", (32, 24), "grey"))).any()


def test_a_map_is_taken_as_it_is(photo: Path) -> None:
    ref = ControlRef("anything", ImageRef(str(photo)), is_map=True)
    assert np.array_equal(np.asarray(make_map(ref, (64, 64))), np.asarray(Image.open(photo)))
    assert make_map(ref, (32, 64)).size == (32, 64)


# recipes


def test_a_recipe_makes_its_picture_again_with_the_same_bits(
    tiny_base: Path, controlnet: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(tiny_base), "a dog", "--steps", "3", "--num-images", "1", "--out", str(tmp_path / "out")]
    options = ["--control", f"canny={photo}:0.8:0-0.7", "--control-model", f"canny={controlnet}"]
    assert main([*command, *options]) == 0
    (first,) = (tmp_path / "out").iterdir()
    (control,) = read_recipe(first)["controls"]
    assert (control["file"], control["weight"], control["end"]) == (str(photo), 0.8, 0.7)
    assert main(["sample", "--from-image", str(first), "--out", str(tmp_path / "again")]) == 0
    (second,) = (tmp_path / "again").iterdir()
    assert first.read_bytes() == second.read_bytes()
    assert "another" not in capsys.readouterr().err

    moved = tmp_path / "moved.png"
    moved.write_bytes(photo.read_bytes())
    again = ["sample", "--from-image", str(first), "--out", str(tmp_path / "moved")]
    assert main([*again, "--control", f"canny={moved}"]) == 0
    (third,) = (tmp_path / "moved").iterdir()
    assert Image.open(third).tobytes() == Image.open(first).tobytes(), "weight, steps and ControlNet are the recipe's"
    assert read_recipe(third)["controls"] == [{**control, "file": str(moved)}]
    assert main([*again, "--control", f"canny={moved}", "--control", f"canny={moved}"]) == 2
    assert "was made with --control canny; name each, in this order" in capsys.readouterr().err
    for option in ("--style=ink", f"--style={photo}"):
        assert main([*again, option]) == 2
        assert "was made without the style of an image; leave it out" in capsys.readouterr().err


def test_controls_come_back_from_json(model: Model, controlnet: Path, photo: Path) -> None:
    networks = {"seg": str(controlnet), "canny": str(controlnet)}
    controls = make_controls([f"seg=map:{photo}:0.5:0.1-0.9", f"canny={photo}"], networks)
    (request,) = make_requests(model, [OPTIONS], Wildcards(), FromImages(controls=controls))
    (image,) = generate(model, [request], 1)
    assert request_of(json.loads(json.dumps(image.recipe))) == request
    assert all(each.weights for each in request.images.controls)


def test_a_program_names_controls_as_the_command_does(tiny_base: Path, controlnet: Path, photo: Path) -> None:
    model = dreambooth.load(tiny_base, device="cpu")
    options = {"num_images": 1, "steps": 2, "control_models": {"canny": str(controlnet)}}
    (image,) = model.generate("a dog", controls=[f"canny={photo}:0.5"], **options)
    assert np.array_equal(np.asarray(image), np.asarray(model.reproduce(image)))


# wrong input


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("canny=a.png", ControlRef("canny", ImageRef("a.png"))),
        ("canny=a.png:0.8", ControlRef("canny", ImageRef("a.png"), weight=0.8)),
        ("depth=a.png:1:0.2-.9", ControlRef("depth", ImageRef("a.png"), weight=1.0, start=0.2, end=0.9)),
        ("seg=map:C:/maps/a.png:.5", ControlRef("seg", ImageRef("C:/maps/a.png"), True, 0.5)),
    ],
)
def test_a_control_is_read_as_it_is_typed(text: str, expected: ControlRef) -> None:
    assert parse_control(text) == expected


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--control", "{photo}"], 2, "write KIND=IMAGE[:WEIGHT[:START-END]]"),
        (["--control", "cany={photo}"], 2, "--control cany: not a kind that is made from a photo; did you mean canny?"),
        (["--control", "canny={folder}/none.png"], 2, "--control {folder}/none.png: there is no such file"),
        (["--control", "canny={photo}:11"], 2, "weight=11.0: must be from 0 to 10"),
        (["--control", "canny={photo}:1:0.8-0.2"], 2, "0.8-0.2: must be START-END"),
        (["--control", "canny={photo}:much:0-1"], 2, "the weight 'much' is no number"),
        (["--control", "canny={photo}:-1"], 2, "the weight '-1' is no number from 0 to 10"),
        (["--control", "canny={photo}:1:2"], 2, "canny={photo}:1:2: write KIND=IMAGE:WEIGHT:START-END"),
        (["--control", "seg=map:{photo}"], 2, "--control seg: no ControlNet is known for this kind; name one"),
        (["--control-model", "canny=x/y"], 2, "--control-model canny=x/y: there is no --control canny=IMAGE"),
        (["--control", "canny={photo}", "--control-model", "canny=./none"], 3, "canny=./none: there is no such folder"),
        (["--control", "canny={photo}", "--control-model", "canny={folder}"], 3, "has no config.json of a ControlNet"),
        (
            ["--control", "canny={photo}", "--control-model", "canny={xl}"],
            3,
            "a ControlNet of another family: its cross_attention_dim is 40, this base has 16",
        ),
    ],
)
def test_wrong_input_is_reported_before_anything_heavy_is_loaded(
    options: list[str],
    code: int,
    named: str,
    photo: Path,
    controlnet_xl: Path,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The base has the UNet's config and no weights, which would be another error."""
    base = tmp_path / "base"
    (base / "unet").mkdir(parents=True)
    for name in ("model_index.json", "unet/config.json"):
        (base / name).write_bytes((tiny_base / name).read_bytes())
    filled = [option.format(folder=tmp_path, photo=photo, xl=controlnet_xl) for option in options]
    assert main(["sample", str(base), "a dog", "--out", str(tmp_path / "out"), *filled]) == code
    error = capsys.readouterr().err
    assert named.format(folder=tmp_path, photo=photo) in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_embedded_controlnet_is_taken_for_the_toy_world_alone(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    toy, tiny = (
        json.loads((base / "unet/config.json").read_text()) for base in (Path("checkpoints/toyworld-second"), tiny_base)
    )
    assert embedded_control("canny", toy) == "checkpoints/toyworld-controlnet"
    assert embedded_control("depth", toy) is None
    assert embedded_control("canny", tiny) is None
    first = json.loads(Path("checkpoints/toyworld/unet/config.json").read_text())
    assert embedded_control("canny", first) is None


def test_without_a_published_controlnet_one_has_to_be_named(model: Model, photo: Path) -> None:
    with pytest.raises(UserError, match=r"--control canny: no published ControlNet is known for .*; name one"):
        attach_controls(model, make_controls([f"canny={photo}"]))
    assert isinstance(model.family, StableDiffusion)
