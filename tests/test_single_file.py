"""A base in the original Stable Diffusion layout, one `.safetensors`: loads, and is the same model."""

import dataclasses
import functools
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from dreambooth.cli import main
from dreambooth.errors import ModelError
from dreambooth.exporting.original import original_state, original_unet_name, text_state, vae_state
from dreambooth.families import Conditioning, Family, ModelSource, fingerprint, load_family
from dreambooth.families.builtin_configs import BUILTIN_CONFIGS, config_folder
from dreambooth.families.sd import StableDiffusion, detect_prediction_type
from dreambooth.families.single_file import measured_prediction, read_header
from dreambooth.generation.schedulers import make_scheduler


def nested_text_encoder(base: Path) -> dict[str, torch.Tensor]:
    """The text encoder's weights under the names that published models use; transformers has since flattened them."""
    weights = load_file(next((base / "text_encoder").glob("*.safetensors")))
    return {f"text_model.{key.removeprefix('text_model.')}": value for key, value in weights.items()}


@pytest.fixture
def single_file(tiny_base: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(original_state(load_family(str(tiny_base))), path)
    return path


def same_prediction(first: Family, second: Family) -> bool:
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 800])
    with torch.no_grad():
        one, other = (family.predict(noisy, t, family.encode_prompts(["a dog", "a cat"])) for family in (first, second))
    return torch.allclose(one, other, atol=1e-6)


def test_a_single_file_is_the_same_model_as_its_folder(single_file: Path, tiny_base: Path) -> None:
    loaded, expected = load_family(ModelSource(str(single_file), config=str(tiny_base))), load_family(str(tiny_base))
    assert same_prediction(loaded, expected)
    assert fingerprint(loaded) == fingerprint(expected)
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.encode_images(pixels), expected.encode_images(pixels))
    assert loaded.scheduler_config["_class_name"] == "DDIMScheduler"


@pytest.mark.parametrize("base_name", ["tiny_base", "tiny_xl_base"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clip_may_lack_the_level_that_transformers_has_taken_out(
    base_name: str, dtype: torch.dtype, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Names of 1.x and of the first encoder in XL lack it, as tools write them that save the class as it is."""
    base = str(request.getfixturevalue(base_name))
    state = original_state(load_family(base))
    flat = {name.replace(".transformer.text_model.", ".transformer."): tensor for name, tensor in state.items()}
    assert flat.keys() != state.keys()
    save_file(flat, tmp_path / "model.safetensors")
    loaded = load_family(ModelSource(str(tmp_path / "model.safetensors"), config=base, dtype=dtype))
    assert fingerprint(loaded) == fingerprint(load_family(ModelSource(base, dtype=dtype)))


def test_the_sampler_of_a_single_file_is_that_of_its_config_and_can_be_changed(
    single_file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """That holds for what the config leaves open too: published ones are short."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "short"))
    path = folder / "scheduler" / "scheduler_config.json"
    short = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
    path.write_text(json.dumps(short))
    family = load_family(ModelSource(str(single_file), config=str(folder)))
    assert family.scheduler_config == short
    family.set_scheduler({"prediction_type": "v_prediction", "timestep_spacing": "trailing"})
    assert family.schedule.prediction == "v_prediction"
    assert make_scheduler(family, "ddim").config.timestep_spacing == "trailing"


def test_a_single_file_can_be_trained_and_sampled(single_file: Path, tiny_base: Path, config_file: Path) -> None:
    base = [f"model.base={single_file}", f"model.config={tiny_base}"]
    assert main(["train", str(config_file), *base, "train.max_steps=3", "validate.every_steps=0"]) == 0
    out = str(single_file.parent / "out")
    arguments = ["--config", str(tiny_base), "--steps", "1", "--num-images", "1", "--out", out]
    assert main(["sample", str(single_file), "a dog", *arguments]) == 0


def test_a_file_that_is_no_model_is_told_in_a_line(tiny_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"nothing": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"model\.safetensors: holds no model of a known family"):
        load_family(ModelSource(str(path), config=str(tiny_base)))
    save_file({"transformer_blocks.0.img_mod.1.weight": torch.zeros(1), "a.scale_weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"model\.safetensors: its weights are 8-bit codes with scales"):
        load_family(ModelSource(str(path), config=str(tiny_base)))
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        load_family(ModelSource(str(path), config=str(tiny_base)))


def test_without_its_configs_and_without_the_network_a_single_file_says_what_to_do(single_file: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.config, --config"):
        load_family(str(single_file))


def test_a_text_encoder_saved_by_an_older_transformers_is_read_whole(tiny_base: Path, tmp_path: Path) -> None:
    """As in the published Stable Diffusion 1.5: nested names, and a table of positions that is no weight any more."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "published"))
    weights = nested_text_encoder(tiny_base)
    weights["text_model.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(weights, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(load_family(str(folder))) == fingerprint(load_family(str(tiny_base)))


# -------------------------------------------------------------------------------- without configs of its own


@functools.cache
def shipped_networks(name: str) -> dict[str, Any]:
    """The networks of built-in configs, at their real shapes and without memory."""
    networks: dict[str, Any] = {}
    with config_folder(name) as folder, torch.device("meta"):
        index = json.loads((folder / "model_index.json").read_text())
        for part in ("unet", "vae"):
            kind = getattr(diffusers, index[part][1])
            networks[part] = kind.from_config(kind.load_config(folder, subfolder=part))
        for part in sorted(index.keys() & {"text_encoder", "text_encoder_2"}):
            kind = getattr(transformers, index[part][1])
            networks[part] = kind(kind.config_class.from_pretrained(folder / part))
    return networks


def real_shapes(name: str) -> dict[str, Tensor]:
    """All names of an original-layout file at their real shapes."""
    parts = shipped_networks(name)
    state = {
        f"model.diffusion_model.{original_unet_name(parts['unet'], key)}": tensor
        for key, tensor in parts["unet"].state_dict().items()
    }
    return (
        state | {f"first_stage_model.{key}": each for key, each in vae_state(parts["vae"]).items()} | text_state(parts)
    )


def write_zeros(path: Path, state: dict[str, Tensor], **metadata: str) -> Path:
    """A float16 file of these shapes: gigabytes of zeros that take no room on the disk."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in state.items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("sd1", {"unet": 859.5, "vae": 83.65, "text_encoder": 123.06}),
        ("sd2", {"unet": 865.9, "vae": 83.65, "text_encoder": 340.4}),
        ("sdxl", {"unet": 2567.5, "vae": 83.65, "text_encoder": 123.06, "text_encoder_2": 694.66}),
    ],
)
def test_shipped_configs_make_networks_of_the_published_sizes(name: str, millions: dict[str, float]) -> None:
    sizes = {part: sum(p.numel() for p in each.parameters()) / 1e6 for part, each in shipped_networks(name).items()}
    assert sizes == pytest.approx(millions, rel=1e-4)


@pytest.mark.parametrize("name", BUILTIN_CONFIGS)
def test_any_sampler_made_of_a_shipped_config_has_the_models_noise_schedule(name: str) -> None:
    unet, own = (BUILTIN_CONFIGS[name].parts[part] for part in ("unet", "scheduler"))
    ddim = DDIMScheduler.from_config(getattr(diffusers, own["_class_name"]).from_config(own).config)
    assert not ddim.config.clip_sample
    assert not ddim.config.set_alpha_to_one
    assert ddim.config.steps_offset == 1
    assert ddim.config.prediction_type == ("v_prediction" if "-v" in name else "epsilon")
    assert ddim.alphas_cumprod[-1] == pytest.approx(0.0 if "ztsnr" in name else 0.00466, abs=1e-5)
    sides = {"sd1": 512, "sd2": 512, "sdxl": 1024}
    assert unet["sample_size"] * 8 == (768 if name == "sd2-v" else sides[name.split("-")[0]])


@pytest.mark.parametrize(("name", "pads"), [("sd1", [49407]), ("sd2", [0]), ("sdxl", [49407, 0])])
def test_the_shipped_tokenizer_is_clips(name: str, pads: list[int]) -> None:
    with config_folder(name) as folder:
        tokenizers = [CLIPTokenizer.from_pretrained(folder / part) for part in BUILTIN_CONFIGS[name].pad_tokens]
    for tokenizer, pad in zip(tokenizers, pads, strict=True):
        assert len(tokenizer) == 49408
        assert tokenizer("sks", add_special_tokens=False).input_ids == [48136]
        ids = tokenizer("A photo of  a dog", padding="max_length").input_ids
        assert ids == [49406, 320, 1125, 539, 320, 1929, 49407, *[pad] * 70]


@pytest.mark.parametrize(
    ("name", "tensors", "metadata"),
    [
        ("sd1", (), {}),
        ("sd1-v", ("v_pred",), {}),
        ("sd2", (), {}),
        ("sd2", (), {"modelspec.architecture": "stable-diffusion-v2-512"}),
        ("sd2-v", (), {"modelspec.architecture": "stable-diffusion-v2-768-v"}),
        ("sd2-v", (), {"modelspec.prediction_type": "v"}),
        ("sd2-v", ("v_pred",), {}),
        ("sdxl", (), {"modelspec.architecture": "stable-diffusion-xl-v1-base", "modelspec.predict_key": "epsilon"}),
        ("sdxl-v", (), {"modelspec.predict_key": "v"}),
        ("sdxl-v-ztsnr", ("v_pred", "ztsnr"), {}),
    ],
)
def test_a_file_is_recognised_by_its_names_its_shapes_and_what_it_says(
    name: str, tensors: tuple[str, ...], metadata: dict[str, str], tmp_path: Path
) -> None:
    state = real_shapes(name.split("-")[0]) | dict.fromkeys(tensors, torch.zeros(0))
    header = read_header(write_zeros(tmp_path / "model.safetensors", state, **metadata))
    assert header.config == name
    assert header.family == ("sdxl" if "xl" in name else "sd")
    assert header.prediction == (
        None if not tensors and not metadata else "v_prediction" if "-v" in name else "epsilon"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edm_vpred.sigma_max": (1,)}, "of the EDM kind"),
        ({"conditioner.embedders.0.model.ln_final.weight": (1280,)}, "refiner"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 5, 3, 3)}, "reads 5 channels"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_name(
    changes: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    state = real_shapes("sd1") | {name: torch.empty(shape, device="meta") for name, shape in changes.items()}
    path = write_zeros(tmp_path / "model.safetensors", state)
    with pytest.raises(ModelError, match=rf"model\.safetensors: .*{message}"):
        load_family(str(path))


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_an_inpainting_model_is_recognised_by_its_channels(name: str, tmp_path: Path) -> None:
    state = real_shapes(name)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    state[first] = torch.empty(state[first].shape[0], 9, 3, 3, device="meta")
    header = read_header(write_zeros(tmp_path / "model.safetensors", state))
    assert header.config == f"{name}-inpaint"
    with config_folder(header.config) as folder:
        assert json.loads((folder / "unet" / "config.json").read_text())["in_channels"] == 9


class PredictsTheNoise(StableDiffusion):
    """The same model, its answers said as noise: epsilon = alpha * v + sigma * noisy."""

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        alpha, sigma = self.schedule.coefficients(t_B)
        return alpha * super().predict(noisy_BCHW, t_B, conditioning) + sigma * noisy_BCHW


def test_what_a_network_predicts_is_told_by_its_answer_to_noise(
    shipped_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The embedded base is trained to predict v."""
    family = load_family(str(shipped_base))
    assert isinstance(family, StableDiffusion)
    assert family.schedule.prediction == measured_prediction(family) == "v_prediction"
    same = {each.name: getattr(family, each.name) for each in dataclasses.fields(family) if each.init}
    assert measured_prediction(PredictsTheNoise(**same)) == "epsilon"
    family.set_scheduler({"prediction_type": "epsilon"})
    detect_prediction_type(family, Path("model.safetensors"))
    assert family.schedule.prediction == "v_prediction"
    assert "model.safetensors does not say what it predicts" in caplog.text


def test_shipped_configs_can_be_named(single_file: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read as a single-file StableDiffusionPipeline"):
        load_family(ModelSource(str(single_file), config="sd1"))  # a tiny file, so that it does not fit


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
def test_a_file_at_real_size_loads_without_configs_and_without_the_network(tmp_path: Path) -> None:
    """All of Stable Diffusion 1.5, with zeros for weights: 5 GB of memory."""
    family = load_family(str(write_zeros(tmp_path / "model.safetensors", real_shapes("sd1"))))
    assert (family.resolution, family.schedule.prediction) == (512, "epsilon")
    assert family.tokenize("sks") == [48136]
    assert family.encode_prompts(["a photo of a dog"])["encoder_hidden_states"].shape == (1, 77, 768)
