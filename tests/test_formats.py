"""Formats: what is written loads elsewhere to the same picture; the names are those that other tools look for."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.engine import RunFolder, train
from dreambooth.errors import UserError
from dreambooth.families import Family, load_family
from dreambooth.formats import FORMATS, find_format
from dreambooth.formats.adapter import KOHYA_FILE, kohya_state
from dreambooth.formats.original import MODEL_FILE, original_state, original_unet_name, vae_state
from dreambooth.methods import METHODS, MethodSettings
from dreambooth.methods.adapters import LORA_FILE
from dreambooth.methods.words import WORD_FILE
from dreambooth.pictures import load_model

PROMPTS = ["a photo of a sks dog", "a photo of a cat"]
SD_15 = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def prediction(family: Family, prompts: list[str] = PROMPTS) -> Tensor:
    noisy_BCHW = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return family.predict(noisy_BCHW, torch.tensor([5, 500]), family.condition(prompts))


def run_with(config_file: Path, base: Path, method: str, *overrides: str) -> str:
    """A run's folder, trained for two steps."""
    word = ["subject.identifier=<sks>", "method.num_vectors=2"] if METHODS[method].adds_word else []
    quick = ["optim.lr=1.0e-2", "optim.warmup_steps=0", "train.max_steps=2", "validate.every_steps=0"]
    changes = [f"model.base={base}", f"method.name={method}", "method.rank=2", *word, *quick, "prior.source=none"]
    config = load_config(config_file, [*changes, *overrides])
    assert train(config) == 0
    return str(RunFolder(config).path)


def exported(run: str, form: str, *arguments: str) -> Path:
    assert main(["export", run, "--format", form, *arguments]) == 0
    return Path(run) / "exports" / form


@pytest.fixture(params=["tiny_base", "tiny_base_v", "tiny_xl_base"], ids=["1.x", "2.x", "xl"])
def base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


# -------------------------------------------------------------------------------- whole models


def test_a_single_file_is_read_back_to_the_same_model(base: Path, config_file: Path) -> None:
    run = run_with(config_file, base, "full")
    path = exported(run, "single-file", "--dtype", "float32") / MODEL_FILE
    again, learned = load_family(str(path), config=str(base)), load_model(run, None, "cpu", None).family
    torch.testing.assert_close(prediction(again), prediction(learned), atol=1e-6, rtol=1e-5)
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again.encode_images(pixels), learned.encode_images(pixels), atol=1e-6, rtol=1e-5)


def test_half_precision_halves_the_file(tiny_base: Path, config_file: Path) -> None:
    run = run_with(config_file, tiny_base, "full")
    exact = (exported(run, "single-file", "--dtype", "float32") / MODEL_FILE).stat().st_size
    half = exported(run, "single-file") / MODEL_FILE
    assert half.stat().st_size < 0.6 * exact
    assert {tensor.dtype for tensor in load_file(half).values() if tensor.is_floating_point()} == {torch.float16}


@pytest.mark.parametrize(
    ("config", "num_weights", "names"),
    [
        (
            SD_15,
            686,
            {
                "conv_in.weight": "input_blocks.0.0.weight",
                "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (
                    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
                ),
                "down_blocks.1.downsamplers.0.conv.bias": "input_blocks.6.0.op.bias",
                "down_blocks.3.resnets.1.conv2.weight": "input_blocks.11.0.out_layers.3.weight",
                "mid_block.attentions.0.norm.weight": "middle_block.1.norm.weight",
                "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
                "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
                "up_blocks.3.resnets.2.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
                "up_blocks.3.attentions.2.proj_out.weight": "output_blocks.11.1.proj_out.weight",
                "conv_norm_out.weight": "out.0.weight",
            },
        ),
        (
            SDXL,
            1680,
            {
                "add_embedding.linear_1.weight": "label_emb.0.0.weight",
                "down_blocks.1.attentions.0.transformer_blocks.1.ff.net.0.proj.weight": (
                    "input_blocks.4.1.transformer_blocks.1.ff.net.0.proj.weight"
                ),
                "down_blocks.2.resnets.0.time_emb_proj.weight": "input_blocks.7.0.emb_layers.1.weight",
                "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.2.conv.weight",
                "up_blocks.1.attentions.2.proj_in.weight": "output_blocks.5.1.proj_in.weight",
            },
        ),
    ],
    ids=["sd-1.5", "sdxl"],
)
def test_names_at_the_real_shapes_are_those_of_the_published_files(
    config: dict[str, Any], num_weights: int, names: dict[str, str]
) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    renamed = {name: original_unet_name(unet, name) for name in unet.state_dict()}
    assert len(set(renamed.values())) == len(renamed) == num_weights
    assert {name: renamed[name] for name in names} == names


def test_attention_of_the_vae_is_a_convolution_there(family: Family) -> None:
    state = vae_state(family.pipeline().vae)
    assert state["decoder.mid.attn_1.q.weight"].shape == (8, 8, 1, 1)
    assert state["encoder.mid.attn_1.norm.weight"].shape == (8,)
    assert "decoder.up.3.block.0.norm1.weight" in state


def test_text_encoders_have_the_names_of_their_generation(base: Path) -> None:
    family = load_family(str(base))
    names = {re.sub(r"\d+", "0", name) for name in original_state(family) if "model.diffusion" not in name}
    expected = {
        "StableDiffusion": "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        "StableDiffusionXL": "conditioner.embedders.0.model.transformer.resblocks.0.attn.in_proj_weight",
    }[type(family).__name__]
    if family.schedule.prediction == "v_prediction":
        expected = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    assert expected in names


# -------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_merged_into_a_plain_pipeline(method: str, tiny_base: Path, config_file: Path) -> None:
    run = run_with(config_file, tiny_base, method)
    merged = load_model(str(exported(run, "diffusers", "--dtype", "float32")), None, "cpu", None)
    learned = load_model(run, None, "cpu", None)
    prompts = [learned.fill("a photo of {subject}"), learned.fill("a photo of a {class}")]
    assert merged.fill("{subject}") == learned.fill("{subject}")
    torch.testing.assert_close(
        prediction(merged.family, prompts), prediction(learned.family, prompts), atol=1e-5, rtol=1e-4
    )


VARIANTS = [(), ("method.alpha=5",), ("method.rslora=true",), ("method.dora=true",)]


@pytest.mark.parametrize(
    ("form", "changes"),
    [("lora", changes) for changes in VARIANTS] + [("kohya", changes) for changes in VARIANTS[:3]],
)
def test_plain_diffusers_loads_a_lora_of_either_naming(
    base: Path, form: str, changes: tuple[str, ...], config_file: Path
) -> None:
    run = run_with(config_file, base, "lora", "method.targets=[attention,convolutions]", *changes)
    folder = exported(run, form, "--dtype", "float32")
    untouched = load_family(str(base))
    pipeline = untouched.pipeline()
    pipeline.load_lora_weights(folder, weight_name={"lora": LORA_FILE, "kohya": KOHYA_FILE}[form])
    learned = prediction(load_model(run, None, "cpu", None).family)
    torch.testing.assert_close(prediction(untouched), learned, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(prediction(load_family(str(base))), learned, atol=1e-3)


@pytest.mark.parametrize("changes", VARIANTS)
def test_kohyas_file_gives_the_merged_weights_by_the_rule_of_those_who_read_it(
    changes: tuple[str, ...], tiny_base: Path, config_file: Path
) -> None:
    """W + alpha / rank * up down; with a dora_scale each row of that scaled to this length. (diffusers 0.42 does not
    read kohya's DoRA.)"""
    run = run_with(config_file, tiny_base, "lora", "method.targets=[attention,convolutions]", *changes)
    tensors = load_file(exported(run, "kohya", "--dtype", "float32") / KOHYA_FILE)
    merged = load_family(str(exported(run, "diffusers", "--dtype", "float32")))
    before = load_family(str(tiny_base))
    moved = 0
    for name, weight in before.denoiser.state_dict().items():
        prefix = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        if f"{prefix}.alpha" not in tensors:
            continue
        down, up, alpha = (tensors[f"{prefix}.{key}"] for key in ("lora_down.weight", "lora_up.weight", "alpha"))
        change = (up.flatten(1) @ down.flatten(1)).view_as(weight) * alpha / len(down)
        expected = weight + change
        if (scale := tensors.get(f"{prefix}.dora_scale")) is not None:
            lengths = expected.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))
            expected = expected * scale / lengths
        torch.testing.assert_close(merged.denoiser.state_dict()[name], expected, atol=1e-5, rtol=1e-4)
        moved += int(not torch.equal(weight, expected))
    assert moved > 20


def test_kohyas_names_are_those_that_other_tools_look_for(base: Path) -> None:
    """AUTOMATIC1111 and ComfyUI: lora_unet_ and, of 1.x and 2.x, lora_te_; of XL lora_te1_ and lora_te2_."""
    family = load_family(str(base))
    METHODS["lora"].attach(family, MethodSettings(rank=2))
    modules = {name.split(".")[0] for name in kohya_state(family)}
    text = {re.match(r"lora_te\d?_", name)[0] for name in modules if name.startswith("lora_te")}  # type: ignore[index]
    is_xl = len(family.text_encoders) == 2
    assert text == ({"lora_te1_", "lora_te2_"} if is_xl else {"lora_te_"})
    unet = "lora_unet_input_blocks_3_1" if is_xl else "lora_unet_down_blocks_1_attentions_0"
    assert f"{unet}_transformer_blocks_0_attn1_to_q" in modules
    clip = "lora_te1" if is_xl else "lora_te"
    assert f"{clip}_text_model_encoder_layers_0_self_attn_q_proj" in modules
    kinds = {name.split(".", 1)[1] for name in kohya_state(family)}
    assert kinds == {"lora_down.weight", "lora_up.weight", "alpha"}


def test_a_words_file_is_read_by_plain_diffusers(tiny_base: Path, config_file: Path) -> None:
    run = run_with(config_file, tiny_base, "textual_inversion")
    folder = exported(run, "embedding", "--dtype", "float32")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.load_textual_inversion(folder / WORD_FILE, token="<sks>")
    learned = load_model(run, None, "cpu", None).family.condition(["a <sks> dog"])["encoder_hidden_states"]
    torch.testing.assert_close(pipeline.encode_prompt("a <sks> dog", "cpu", 1, False)[0], learned)


@pytest.mark.parametrize(("form", "file"), [("lora", LORA_FILE), ("kohya", KOHYA_FILE), ("single-file", MODEL_FILE)])
def test_the_file_says_what_it_has_learned(form: str, file: str, tiny_base: Path, config_file: Path) -> None:
    folder = exported(run_with(config_file, tiny_base, "lora"), form)
    with safe_open(folder / file, "pt") as opened:
        card = json.loads(opened.metadata()["dreambooth"])
    assert (card["identifier"], card["class_noun"], card["base"]) == ("sks", "dog", str(tiny_base))
    assert len(card["base_fingerprint"]) == 64


# -------------------------------------------------------------------------------- what is refused


def test_a_format_that_a_result_cannot_take_names_those_it_can(tiny_base: Path, config_file: Path) -> None:
    with pytest.raises(
        UserError, match="kohya is for lora and pivotal, this was trained with full; use diffusers, sin"
    ):
        find_format("kohya", "full")
    with pytest.raises(UserError, match=f"'gguf' is not known; one of {', '.join(FORMATS)}"):
        find_format("gguf", "full")
    run = run_with(config_file, tiny_base, "full")
    assert main(["export", run, "--format", "kohya"]) == 2
    assert not (Path(run) / "exports").exists()


def test_a_folder_that_is_there_is_never_written_over(
    tiny_base: Path, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mine = run_with(config_file, tiny_base, "full"), tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    assert main(["export", run, "--format", "diffusers", "--out", str(mine)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (mine / "thesis.txt").read_text() == "all of it"
    assert main(["export", run, "--format", "diffusers", "--out", str(tmp_path / "new")]) == 0
    assert load_model(str(tmp_path / "new"), None, "cpu", None).card is not None


def test_a_plain_base_is_no_result(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tiny_base), "--format", "single-file"]) == 2
    assert "nothing to export" in capsys.readouterr().err
