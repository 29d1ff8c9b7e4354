"""Quantized bases: what a layer computes, what is loaded, and runs on them, which go on with the same bits."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIG
from crashes import assert_equal
from torch import nn

from dreambooth.config import Config, load_config
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.families import ModelSource, fingerprint, load_family
from dreambooth.families.loading import stored_dtype
from dreambooth.families.quantization import (
    QUANTIZERS,
    QuantizedLinear,
    is_quantized,
    num_weights,
    quantize,
    stored_tensors,
)
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.settings import SamplerSettings
from dreambooth.methods.adapters import adapted_layers
from dreambooth.preflight.memory_plan import Planner
from dreambooth.run.folder import RunFolder

# Of the largest value that shares a scale: half a step of int8, of float8 between 256 and 448, of nf4's widest gap.
LARGEST_ERROR = {"int8": 0.5 / 127, "fp8": 16 / 448, "nf4": 0.152}


def linear(rows: int = 12, columns: int = 32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(columns, rows)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_no_weight_is_off_by_more_than_half_a_step_of_its_format(name: str) -> None:
    layer = linear(7, 34).requires_grad_(False)
    error = (QuantizedLinear(layer, name).weight - layer.weight).abs().max()
    assert 0 < float(error) <= 1.01 * LARGEST_ERROR[name] * float(layer.weight.abs().max())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantized_layer_computes_and_leads_gradients_back_as_a_plain_one_with_its_matrix(name: str) -> None:
    layer = QuantizedLinear(linear(), name)
    x, gradient = torch.randn(2, 3, 32, requires_grad=True), torch.randn(2, 3, 12)
    layer(x).backward(gradient)
    found, x.grad = x.grad, None
    expected = F.linear(x, layer.weight, layer.bias)
    expected.backward(gradient)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(found, x.grad)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_casts_and_copies_leave_the_codes_alone(name: str) -> None:
    layer = QuantizedLinear(linear(), name)
    before = layer.weight
    other = copy.deepcopy(layer).to(torch.bfloat16)
    assert other.weight.dtype == other.bias.dtype == torch.bfloat16
    assert torch.equal(other.float().weight, before)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 32)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", QUANTIZERS)
def test_shapes_alone_take_the_bytes_that_the_format_promises(name: str) -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ModuleList([nn.Linear(1024, 1024, bias=False)]))
    quantize(network, name)
    assert num_weights(network) == 64 * 64 + 1024 * 1024
    found = sum(tensor.numel() * tensor.element_size() for tensor in stored_tensors(network)) - 64 * 64 * 4
    assert found == {"int8": 1024 * 1028, "fp8": 1024 * 1028, "nf4": 1024 * 1024 // 16 * 9}[name]


def test_weights_that_are_not_finite_are_reported_by_name() -> None:
    network = nn.ModuleDict({"blocks": nn.ModuleList([linear()])})
    network["blocks"][0].weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="0: weights hold numbers that are not finite"):
        quantize(network, "int8")


# -------------------------------------------------------------------------------- bases


def test_the_blocks_of_denoiser_and_text_encoder_are_quantized_and_the_base_is_another(tiny_base: Path) -> None:
    plain, found = load_family(str(tiny_base)), load_family(ModelSource(str(tiny_base), quantize="int8"))
    for part, before in zip(
        (found.denoiser, *found.text_encoders), (plain.denoiser, *plain.text_encoders), strict=True
    ):
        assert num_weights(part) == num_weights(before)
        assert is_quantized(part)
    assert not is_quantized(found.vae)
    assert type(found.denoiser.time_embedding.linear_1) is nn.Linear, "it is in no block"
    assert fingerprint(found) != fingerprint(plain), "class latents and states of one are not the other's"


def test_a_network_is_read_in_the_format_of_its_files(tiny_base: Path, tmp_path: Path) -> None:
    load_family(str(tiny_base)).pipeline().to(torch.float16).save_pretrained(tmp_path)
    assert stored_dtype(tmp_path / "unet", torch.float32) == torch.float16
    found = load_family(ModelSource(str(tmp_path), quantize="nf4"))
    assert next(found.denoiser.parameters()).dtype == torch.float32, "what is not quantized has the source's format"


def test_a_frozen_text_encoder_is_another_where_it_is_quantized(tiny_z_image_base: Path) -> None:
    plain, found = (load_family(ModelSource(str(tiny_z_image_base), quantize=name)) for name in (None, "int8"))
    assert plain.text_digest != found.text_digest
    assert found.num_text_bytes(torch.float32) < plain.num_text_bytes(torch.float32)
    (one,), (other,) = (each.encode_prompts(["a dog"]).rows("prompt") for each in (plain, found))
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


# -------------------------------------------------------------------------------- runs

QUICK = [
    "method.name=lora", "method.rank=2", "optim.lr=1.0e-2", "subject.identifier=sks", "train.max_steps=4",
    "train.save_every_steps=2", "validate.every_steps=0", "optim.schedule=constant", "optim.warmup_steps=1",
]  # fmt: skip


def config_at(folder: Path, base: Path, pictures: Path, *settings: str) -> Config:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(runs=folder / "runs", base=base, pictures=pictures))
    return load_config(path, [*QUICK, *settings])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_z_image_base: Path, pictures: Path) -> Config:
    folder = tmp_path_factory.mktemp("quantized")
    config = config_at(folder, tiny_z_image_base, pictures, "model.quantize=nf4", "train.gradient_checkpointing=true")
    assert train(config) == 0
    return config


def test_a_run_on_a_quantized_base_goes_on_with_the_same_bits(learned: Config) -> None:
    half = replace(learned, run=replace(learned.run, name="half"), train=replace(learned.train, max_steps=2))
    whole, run = RunFolder(learned), RunFolder(half)
    assert train(half) == 0
    longer = replace(half, train=learned.train)
    assert train(longer) == 0
    states = [torch.load(each.state, weights_only=True) for each in (whole, run)]
    assert_equal(states[0]["state_dict"], states[1]["state_dict"], "weights")
    assert not any("codes" in name for name in states[0]["state_dict"]), "a state holds what trains alone"
    assert [path.name for path in whole.prior.iterdir()] == [path.name for path in run.prior.iterdir()]
    with pytest.raises(UserError, match=r"model\.quantize: 'nf4' -> 'int8'"):
        train(replace(longer, model=replace(longer.model, quantize="int8")))


def test_its_result_is_laid_over_the_unquantized_base(learned: Config, tiny_z_image_base: Path) -> None:
    model = load_model(str(RunFolder(learned).path), "cpu")
    assert not is_quantized(model.family.denoiser)
    assert model.card is not None
    assert model.card.base_fingerprint is None, "that of quantized weights is no other program's"
    base = load_family(str(tiny_z_image_base))
    start, sampler = noise_from_seeds([0], base.latent_shape(64, 64)), SamplerSettings(2, 2.0)
    found, untouched = (sample_latents(each, ["a photo of sks"], start, sampler) for each in (model.family, base))
    assert not torch.equal(found, untouched)


@pytest.mark.parametrize(
    "settings",
    [
        ["method.dora=true", "prior.source=teacher"],
        pytest.param(["method.name=lokr", "train.precision=bf16-mixed"], marks=pytest.mark.slow),
        pytest.param(
            ["method.name=pivotal", "subject.identifier=<sks>", "model.quantize=int8"], marks=pytest.mark.slow
        ),
    ],
    ids=["dora", "lokr", "pivotal"],
)
def test_methods_that_train_beside_the_base_train_beside_a_quantized_one(
    settings: list[str], tmp_path: Path, tiny_base: Path, pictures: Path
) -> None:
    config = config_at(
        tmp_path, tiny_base, pictures, "model.quantize=nf4", "train.max_steps=1", "optim.warmup_steps=0", *settings
    )
    assert train(config) == 0


@pytest.mark.parametrize("method", ["full", "custom_diffusion"])
def test_methods_that_train_the_bases_own_weights_are_refused(
    method: str, tmp_path: Path, tiny_base: Path, pictures: Path
) -> None:
    with pytest.raises(UserError, match=f"model.quantize: {method} trains the base's own weights"):
        config_at(tmp_path, tiny_base, pictures, "model.quantize=int8", f"method.name={method}")


@pytest.mark.slow
def test_a_plan_counts_codes_and_not_the_weights_that_they_stand_for(
    tmp_path: Path, tiny_base: Path, pictures: Path
) -> None:
    needs = [
        Planner(config).need(config)
        for name in ("none", "nf4")
        for config in [config_at(tmp_path, tiny_base, pictures, f"model.quantize={name}")]
    ]
    family = load_family(ModelSource(str(tiny_base), quantize="nf4"))
    networks = (family.denoiser, *family.text_encoders)  # no image is to be decoded: the VAE is let go
    assert needs[1].frozen < needs[0].frozen
    assert needs[1].frozen == sum(t.numel() * t.element_size() for part in networks for t in stored_tensors(part))


def test_a_result_is_sampled_on_a_quantized_base_too(learned: Config) -> None:
    name = str(RunFolder(learned).path)
    found, plain = load_model(ModelRef(name, quantize="nf4"), "cpu").family, load_model(name, "cpu").family
    assert is_quantized(found.denoiser)
    assert len(adapted_layers(found)) == len(adapted_layers(plain)) > 0
    start, sampler = noise_from_seeds([0], plain.latent_shape(64, 64)), SamplerSettings(2, 2.0)
    pair = [sample_latents(each, ["a photo of sks"], start, sampler) for each in (found, plain)]
    assert not torch.equal(*pair)
