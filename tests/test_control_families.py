"""Controls of the families of transformers: images are those of diffusers' own pipelines with a ControlNet."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image, ImageDraw

from dreambooth.cli import main
from dreambooth.controlnets import FITS, UNION_MODES, misfit
from dreambooth.errors import ModelError
from dreambooth.families.control import in_proportion, in_runs, in_turn, load_control
from dreambooth.generation.inputs.canny import canny
from dreambooth.generation.inputs.control_ref import KINDS, PUBLISHED, make_controls
from dreambooth.generation.inputs.controls import prepare_controls
from dreambooth.generation.inputs.image_inputs import ImageInputs
from dreambooth.generation.models.loading import Model, load_model
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.settings import SamplerSettings

SIDE = 64
PROMPTS = ["a photo of a dog on the beach", "a cat"]


@dataclass(frozen=True)
class Row:
    """Hold a family's ControlNet: its class, what its config has beside the transformer's, and diffusers' pipeline.

    scale: of guidance. of_transformer: whether its config begins as the transformer's. spans: whether the pipeline can
    let it act in a part of the steps. kind: of the map. call: further arguments of the pipeline.
    """

    name: str
    family: str
    network: str
    pipeline: str
    scale: float
    config: dict[str, Any] = field(default_factory=dict)
    of_transformer: bool = True
    spans: bool = True
    kind: str = "canny"
    call: dict[str, Any] = field(default_factory=dict)

    def make(self, transformer: Any, folder: Path) -> Path:
        """Write a ControlNet of random weights, those too that are zero at first."""
        torch.manual_seed(2)
        base = dict(transformer.config) if self.of_transformer else {}
        network = getattr(diffusers, self.network).from_config({**base, "num_layers": 1, **self.config})
        for weight in network.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.3)
        network.save_pretrained(folder)
        return folder


SD3 = {"extra_conditioning_channels": 0}
Z_IMAGE = {"control_layers_places": [0], "control_refiner_layers_places": [0], "dim": 32, "n_heads": 2, "n_kv_heads": 2}
FLUX_PIPELINE, SD3_PIPELINE = "FluxControlNetPipeline", "StableDiffusion3ControlNetPipeline"
Z_PIPELINE = "ZImageControlNetPipeline"
ROWS = (
    Row("flux1", "flux1", "FluxControlNetModel", FLUX_PIPELINE, 3.5),
    Row("sd3", "sd3", "SD3ControlNetModel", SD3_PIPELINE, 4.0, SD3),
    Row("qwen_image", "qwen_image", "QwenImageControlNetModel", "QwenImageControlNetPipeline", 3.0),
    Row(
        "z_image", "z_image", "ZImageControlNetModel", Z_PIPELINE, 3.0,
        {**Z_IMAGE, "control_in_dim": 16, "n_refiner_layers": 1}, of_transformer=False, spans=False,
    ),
)  # fmt: skip
VARIANTS = (
    Row(
        "flux1_union", "flux1", "FluxControlNetModel", FLUX_PIPELINE, 3.5, {"num_mode": 10},
        kind="gray", call={"control_mode": UNION_MODES["gray"]},
    ),
    Row(
        "flux1_xlabs", "flux1", "FluxControlNetModel", FLUX_PIPELINE, 3.5,
        {"conditioning_embedding_channels": 4, "patch_size": 2, "num_single_layers": 0, "guidance_embeds": False},
    ),
    Row(
        "sd3_stability", "sd3", "SD3ControlNetModel", SD3_PIPELINE, 4.0,
        {**SD3, "use_pos_embed": False, "joint_attention_dim": None, "force_zeros_for_pooled_projection": False},
        kind="depth",
    ),
    Row(
        "z_image_2", "z_image", "ZImageControlNetModel", Z_PIPELINE, 3.0,
        {
            **Z_IMAGE, "control_in_dim": 33, "n_refiner_layers": 2, "control_layers_places": [0, 1],
            "control_refiner_layers_places": [0, 1], "add_control_noise_refiner": "control_noise_refiner",
        },
        of_transformer=False, spans=False,
    ),
)  # fmt: skip
every_row = pytest.mark.parametrize("row", [*ROWS, *VARIANTS], ids=lambda row: row.name)


@dataclass(frozen=True)
class Held:
    """Hold a family's model, its ControlNet's folder and a map."""

    row: Row
    model: Model
    network: str
    map: str

    def images(self, *controls: str, num_steps: int = 2) -> torch.Tensor:
        """Return the images of two prompts, held to controls `[WEIGHT[:START-END]]` of this map, in 0..1."""
        family = self.model.family
        texts = [f"{self.row.kind}=map:{self.map}:{each}" for each in controls]
        refs = make_controls(texts, {self.row.kind: self.network} if controls else {})
        inputs = ImageInputs(controls=prepare_controls(self.model, refs, (SIDE, SIDE)))
        start = noise_from_seeds([3, 4], family.latent_shape(SIDE, SIDE))
        settings = SamplerSettings(num_steps, self.row.scale, "euler")
        latents = sample_latents(family, PROMPTS, start, settings, inputs=inputs)
        return (family.decode_latents(latents) / 2 + 0.5).clamp(0, 1)

    def images_of_diffusers(self, weight: float, end: float) -> torch.Tensor:
        """Return those of diffusers' pipeline with the same networks."""
        family = self.model.family
        network = getattr(diffusers, self.row.network).from_pretrained(self.network)
        components = {**family.pipeline().components, "controlnet": network}
        pipeline = getattr(diffusers, self.row.pipeline)(
            **{name: part for name, part in components.items() if part is not None}
        )
        pipeline.set_progress_bar_config(disable=True)
        start = noise_from_seeds([3, 4], family.latent_shape(SIDE, SIDE))
        found: torch.Tensor = pipeline(
            prompt=[*PROMPTS], control_image=Image.open(self.map), num_inference_steps=2, height=SIDE, width=SIDE,
            controlnet_conditioning_scale=weight, output_type="pt", **self.row.call,
            **({"control_guidance_end": end} if self.row.spans else {}),
            **family.pipeline_arguments(start.noise_BCHW, self.row.scale),
        ).images  # fmt: skip
        return found


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photo = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(photo).ellipse((10, 14, 50, 54), fill="green")
    path = tmp_path_factory.mktemp("map") / "edges.png"
    canny(photo).save(path)
    return path


@pytest.fixture(scope="module")
def held(
    flow_base: Callable[[str], Path], edges: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Held]:
    """Return a function that loads a row's model and makes its ControlNet. The VAE is certain of its latents:
    diffusers draws a sample of them, of the map too, where we take the mean."""

    def make(row: Row, **how: Any) -> Held:
        model = load_model(str(flow_base(row.family)), "cpu", **how)
        whole = model if not how else load_model(str(flow_base(row.family)), "cpu")
        folder = row.make(whole.family.denoiser, tmp_path_factory.mktemp("control") / row.name)
        last = model.family.vae.quant_conv
        half = len(last.weight) // 2
        if not how:
            last.weight.data[half:], last.bias.data[half:] = 0, -30
        return Held(row, model, str(folder), str(edges))

    return make


def assert_those_of_diffusers(held: Held) -> None:
    weight, end = (0.7, 0.5) if held.row.spans else (0.7, 1)
    ours = held.images(f"{weight}:0-{end}")
    theirs = held.images_of_diffusers(weight, end)
    print(f"{held.row.name}: largest difference {(ours - theirs).abs().max():.1e}")
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (held.images() - theirs).abs().max() > 0.01, "the ControlNet acts"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_images_are_those_of_diffusers_own_pipeline(row: Row, held: Callable[..., Held]) -> None:
    assert_those_of_diffusers(held(row))


@pytest.mark.slow
@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row.name)
def test_other_kinds_of_controlnets_are_those_of_diffusers_too(row: Row, held: Callable[..., Held]) -> None:
    assert_those_of_diffusers(held(row))


@pytest.mark.slow
@every_row
def test_limits_of_weights_and_spans(row: Row, held: Callable[..., Held]) -> None:
    own = held(row)
    plain, whole = own.images(), own.images("1")
    assert torch.equal(own.images("0"), plain)
    assert torch.equal(own.images("1:0.1-0.2"), plain), "no whole step of two lies in it"
    assert torch.equal(own.images("1:0-1"), whole)
    if "add_control_noise_refiner" not in row.config:  # whose weight acts within the ControlNet too
        torch.testing.assert_close(own.images("0.5", "0.5"), whole, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["parts", "blocks"])
@pytest.mark.parametrize("row", [ROWS[3], VARIANTS[2]], ids=lambda row: row.name)
def test_a_base_whose_weights_wait_elsewhere_gives_the_same_images(
    row: Row, how: str, held: Callable[..., Held]
) -> None:
    """Such ControlNets use a part of the base's transformer without calling it."""
    whole, waiting = held(row), held(row, offload=how)
    for own in (whole, waiting):
        own.model.family.vae.quant_conv.bias.data[:] = 0
        own.model.family.vae.quant_conv.weight.data[:] = 0.1
    images = Held(row, waiting.model, whole.network, whole.map).images("1")
    assert torch.equal(images, whole.images("1"))


def test_stability_reads_edges_in_another_range(flow_base: Callable[[str], Path], tmp_path: Path) -> None:
    """As the code on the card of stabilityai/stable-diffusion-3.5-large-controlnet-canny makes them."""
    model = load_model(str(flow_base("sd3")), "cpu")
    family: Any = model.family
    network = diffusers.SD3ControlNetModel.from_pretrained(VARIANTS[2].make(family.denoiser, tmp_path / "network"))
    map_1CHW = torch.ones(1, 3, SIDE, SIDE)
    found = family.control_condition(network, "canny", map_1CHW)["map"]
    torch.testing.assert_close(found, family.encode_images(map_1CHW * 128)[0])
    depth = family.control_condition(network, "depth", map_1CHW)["map"]
    torch.testing.assert_close(depth, family.encode_images(map_1CHW)[0])


def test_the_blocks_of_a_controlnet_come_over_the_base_as_in_diffusers() -> None:
    found = {number: torch.tensor(number) for number in range(3)}
    assert [int(each) for each in in_runs(found, 8).values()] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [int(each) for each in in_proportion(found, 8).values()] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [int(each) for each in in_turn(found, 8).values()] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [int(each) for each in in_runs(found, 5).values()] == [0, 0, 1, 1, 2]
    assert [int(each) for each in in_proportion(found, 5).values()] == [0, 0, 1, 1, 2]


# wrong input


FLUX = {"_class_name": "FluxTransformer2DModel", "num_attention_heads": 24, "joint_attention_dim": 4096}
NETWORK = {"_class_name": "FluxControlNetModel", "num_attention_heads": 24, "joint_attention_dim": 4096}


@pytest.mark.parametrize(
    ("config", "kind", "named"),
    [
        ({**NETWORK, "_class_name": "SD3ControlNetModel"}, "canny", "a SD3ControlNetModel, this base takes a Flux"),
        ({**NETWORK, "_class_name": "FluxTransformer2DModel"}, "canny", "of FluxTransformer2DModel, which is no Contr"),
        ({**NETWORK, "num_attention_heads": 8}, "canny", "its num_attention_heads is 8, this base has 24"),
        ({**NETWORK, "extra_conditioning_channels": 1}, "canny", "fills masks (extra_conditioning_channels is 1)"),
        ({**NETWORK, "num_mode": 10}, "seg", "a union that knows no seg; its kinds are canny, tile, depth, blur, pose"),
    ],
)  # fmt: skip
def test_a_controlnet_that_does_not_fit_is_refused_before_anything_is_loaded(
    config: dict[str, Any], kind: str, named: str, edges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base has the transformer's config and no weights, which would be another error."""
    for path, content in (
        ("base/model_index.json", {"_class_name": "FluxPipeline"}),
        ("base/transformer/config.json", FLUX),
        ("network/config.json", config),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(content))
    options = ["--control", f"{kind}=map:{edges}", "--control-model", f"{kind}={tmp_path / 'network'}"]
    assert main(["sample", str(tmp_path / "base"), "a dog", "--out", str(tmp_path / "out"), *options]) == 3
    error = capsys.readouterr().err
    assert named in error
    assert len(error.strip().splitlines()) == 1


def test_a_controlnet_of_another_class_is_refused_when_it_is_loaded(held: Callable[..., Held], tmp_path: Path) -> None:
    own = held(ROWS[0])
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "QwenImageControlNetModel"}))
    refs = make_controls([f"canny=map:{own.map}"], {"canny": str(tmp_path)})
    with pytest.raises(ModelError, match="is of QwenImageControlNetModel, this base takes a FluxControlNetModel"):
        prepare_controls(own.model, refs, (SIDE, SIDE))


def test_a_controlnet_loads_without_a_word_of_diffusers_about_itself(held: Callable[..., Held]) -> None:
    folder = held(ROWS[0]).network
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert load_control(folder, torch.float32, diffusers.FluxControlNetModel).config.num_layers == 1


def test_the_tables_name_classes_and_kinds_that_there_are() -> None:
    for name, fit in FITS.items():
        assert hasattr(diffusers, name)
        assert hasattr(diffusers, fit.network)
    assert {network for network, _ in PUBLISHED} <= {fit.network for fit in FITS.values()}
    assert all(set(kinds) <= set(KINDS) for kinds in PUBLISHED.values())
    assert misfit("canny", NETWORK, FLUX) is None
    assert misfit("canny", NETWORK, None) is None
