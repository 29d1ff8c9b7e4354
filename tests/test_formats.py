"""Formats: what is written loads elsewhere to the same picture; the names are those that other tools look for."""

import functools
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIG, ROOT
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import run_model_card
from torch import Tensor

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.exporting.adapter import KOHYA_FILE, kohya_state
from dreambooth.exporting.formats import FORMATS, Format, find_format
from dreambooth.exporting.metadata import kohya_version
from dreambooth.exporting.original import MODEL_FILE, original_state, original_unet_name, vae_state
from dreambooth.exporting.verify import WEIGHT_LIMITS, relative_difference
from dreambooth.families import Family, ModelSource, components, fingerprint, load_family
from dreambooth.families.sd_graphs import PIPELINES
from dreambooth.families.single_file import read_header
from dreambooth.families.unet import TARGET_GROUPS
from dreambooth.generation.models.loading import load_model
from dreambooth.methods import FACTS, adapters
from dreambooth.methods.adapter_files import LORA_FILE
from dreambooth.methods.adapters import adaptable
from dreambooth.methods.base import MethodSettings
from dreambooth.methods.table import METHODS
from dreambooth.methods.textual_inversion import WORD_FILE
from dreambooth.run.folder import RunFolder

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
        return family.predict(noisy_BCHW, torch.tensor([5, 500]), family.encode_prompts(prompts))


def run_with(config_file: Path, base: Path, method: str, *overrides: str) -> str:
    """Return a run's folder, trained for two steps in which everything moves."""
    word = ["subject.identifier=<sks>", "method.num_vectors=2"] if FACTS[method].adds_tokens else []
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


# -------------------------------------------------------------------------------- every method, family and format

BASES = {"sd": "tiny_base", "sdxl": "tiny_xl_base"}
OF_WEIGHTS = [form for form in FORMATS if form not in PIPELINES]  # tests/test_graphs.py has the others
Quick = dict[str, tuple[str, set[str]]]
QUICK: Quick = {  # the family and the formats that each method is tried with in every run; the other cells are slow
    "full": ("sd", {"diffusers", "lora"}),
    "lora": ("sdxl", {"diffusers", "kohya", "comfyui"}),
    "loha": ("sd", {"kohya"}),
    "lokr": ("sdxl", {"kohya"}),
    "textual_inversion": ("sd", {"embedding"}),
    "pivotal": ("sdxl", {"single-file", "embedding"}),
    "custom_diffusion": ("sd", {"diffusers"}),
}
QUICK_IN_16_BITS: Quick = {"full": ("sd", {"lora"}), "pivotal": ("sdxl", {"diffusers"})}
Learned = Callable[[str, str], tuple[str, Path]]


@pytest.fixture(scope="module")
def learned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Learned:
    """Return a run of a method on a family, trained once for all cells, and its base."""
    folder, runs = tmp_path_factory.mktemp("cells"), {}

    def learn(method: str, family: str) -> tuple[str, Path]:
        base = request.getfixturevalue(BASES[family])
        if (method, family) not in runs:
            config_file = folder / "config.yaml"
            config_file.write_text(CONFIG.format(runs=folder, base=base, pictures=pictures))
            scored = ["validate.every_steps=2", "validate.num_images=1"]
            runs[method, family] = run_with(config_file, base, method, f"run.name={method}-{family}", *scored)
        return runs[method, family], base

    return learn


def read_as_its_card_says(folder: Path) -> DiffusionPipeline:
    """By the lines of README.md up to the image, which use nothing of this repository."""
    return run_model_card(folder, end="image =")["pipeline"]


def cells(quick: Quick) -> list[Any]:
    """Return method, family and format of each cell; those of one run are neighbours."""
    return [
        pytest.param(method, family, form, marks=() if family == own and form in forms else pytest.mark.slow)
        for method, (own, forms) in quick.items()
        for family, form in itertools.product(BASES, OF_WEIGHTS)
    ]


def out(folder: Path) -> list[str]:
    return ["--out", str(folder / "images")]


def drawn(pipeline: Any, prompt: str) -> Tensor:
    """Latents of a picture."""
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompt, latents=start, num_inference_steps=2, guidance_scale=2.0, output_type="latent").images


def read(pipeline: Any, prompt: str) -> Tensor:
    """Return what the text encoders make of it."""
    return pipeline.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]


@functools.cache
def drawn_by(model: str, prompt: str) -> Tensor:
    """Return what a run or a base draws; it is loaded once for all cells."""
    return drawn(load_model(model, "cpu").family.pipeline(), prompt)


def without_what_no_lora_holds(family: Family, base: Path) -> None:
    """Norms, biases, embeddings, first and last layers as they were, but for the identifier's row."""
    ends = tuple(end for group in TARGET_GROUPS.values() for end in group)
    (row,) = family.tokenize("sks")
    with torch.no_grad():
        for before, after in zip(components(load_family(str(base))).values(), components(family).values(), strict=True):
            held = {f"{name}.weight" for name in adaptable(before, ends)}
            for name, weight in before.named_parameters():
                if name.endswith("token_embedding.weight"):
                    weight[row] = after.get_parameter(name)[row]
                if name not in held:
                    after.get_parameter(name).copy_(weight)


@pytest.mark.parametrize(("method", "family_name", "form"), cells(QUICK))
def test_what_is_written_draws_the_same_in_plain_diffusers_and_all_else_is_refused(
    method: str, family_name: str, form: str, learned: Learned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = learned(method, family_name)
    if not FORMATS[form].takes(method):
        assert main(["export", run, "--format", form]) == 2
        assert f"{form} is for" in capsys.readouterr().err
        assert not (Path(run) / "exports" / form).exists()
        return
    is_extracted = method in FORMATS[form].extracted
    rank = ["--rank", "100"] if is_extracted else []
    folder = exported(run, form, "--dtype", "float32", "--verify", *rank)
    assert re.search(r"verified: (all of \d+ adapted modules arrive, )?largest difference of", capsys.readouterr().err)
    assert (
        main(["sample", str(folder), "a photo of {subject}", "--num-images", "1", "--steps", "1", *out(tmp_path)]) == 0
    )
    if form in ("kohya", "comfyui") and method in ("loha", "lokr"):
        assert "it does not read Lo" in (folder / "README.md").read_text()
        return
    theirs = read_as_its_card_says(folder)
    subject = "a photo of <sks> dog" if FACTS[method].adds_tokens else "a photo of sks dog"
    if form == "embedding":  # a word alone; the LoRA that a pivotal run has besides is another file
        torch.testing.assert_close(read(theirs, subject), read(load_model(run, "cpu").family.pipeline(), subject))
        return
    if is_extracted and method == "full":
        ours = load_model(run, "cpu").family
        without_what_no_lora_holds(ours, base)
        said, expected = "a photo of <sks> dog", drawn(ours.pipeline(), subject)
    else:
        said, expected = subject, drawn_by(run, subject)
    torch.testing.assert_close(drawn(theirs, said), expected, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(drawn_by(str(base), "a photo of sks dog"), expected, atol=1e-3)


@pytest.mark.parametrize(("method", "family_name", "form"), cells(QUICK_IN_16_BITS))
def test_the_code_of_the_card_draws_what_is_written_in_16_bits(
    method: str, family_name: str, form: str, learned: Learned, tmp_path: Path
) -> None:
    run, _ = learned(method, family_name)
    if not FORMATS[form].takes(method):
        return
    rank = ["--rank", "4"] if method in FORMATS[form].extracted else []
    assert main(["export", run, "--format", form, "--verify", "--out", str(tmp_path / "out"), *rank]) == 0
    assert run_model_card(tmp_path / "out")["image"].size == (64, 64)


def test_every_method_is_in_the_table_of_the_quick_cells() -> None:
    assert set(QUICK) == set(METHODS)


def test_the_table_of_methods_and_formats_says_what_the_code_does() -> None:
    lines = (ROOT / "docs" / "methods-and-files.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head = next(number for number, row in enumerate(rows) if row[1:] == list(FORMATS))
    told = {row[0]: row[1:] for row in rows[head + 2 : head + 2 + len(METHODS)]}
    assert told == {method: [in_the_table(form, method) for form in FORMATS.values()] for method in METHODS}


def in_the_table(form: Format, method: str) -> str:
    if form.methods is None:
        return "merged" if FACTS[method].is_adapter else "yes"
    if method in form.extracted:
        return "--rank"
    return "yes" if method in form.methods else "-"


# -------------------------------------------------------------------------------- whole models


def test_a_single_file_of_a_2x_model_is_read_back_to_the_same_model(tiny_base_v: Path, config_file: Path) -> None:
    """Its text encoder has other names than those of 1.x and XL, which the cells above read."""
    run = run_with(config_file, tiny_base_v, "full")
    path = exported(run, "single-file", "--dtype", "float32") / MODEL_FILE
    again, learned = (
        load_family(ModelSource(str(path), config=str(tiny_base_v))),
        load_model(run, "cpu").family,
    )
    assert read_header(path).prediction == "v_prediction"
    torch.testing.assert_close(prediction(again), prediction(learned), atol=1e-6, rtol=1e-5)
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again.encode_images(pixels), learned.encode_images(pixels), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-3, 1.0])
def test_float16s_rounding_is_no_difference_however_small_a_tensor_is_and_a_lost_one_is(size: float) -> None:
    tensor = size * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert relative_difference(tensor, tensor.half()) <= WEIGHT_LIMITS["float16"]
    assert size < 1e-6 or relative_difference(tensor, torch.zeros(1000)) > WEIGHT_LIMITS["float16"]


def test_half_precision_halves_the_file(learned: Learned, tmp_path: Path) -> None:
    run, _ = learned("full", "sd")
    sizes = {}
    for dtype in ("float32", "float16"):
        arguments = ["--format", "single-file", "--dtype", dtype, "--out", str(tmp_path / dtype)]
        assert main(["export", run, *arguments]) == 0
        sizes[dtype] = (tmp_path / dtype / MODEL_FILE).stat().st_size
    assert sizes["float16"] < 0.6 * sizes["float32"]
    half = load_file(tmp_path / "float16" / MODEL_FILE)
    assert {tensor.dtype for tensor in half.values() if tensor.is_floating_point()} == {torch.float16}


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


VARIANTS = ["method.alpha=5", "method.rslora=true", "method.dora=true"]
LearnedLora = Callable[[str], str]


@pytest.fixture(scope="module")
def lora_of_2x(tmp_path_factory: pytest.TempPathFactory, tiny_base_v: Path, pictures: Path) -> LearnedLora:
    """Return a run of a kind of LoRA on 2.x, trained once for all that is written of it."""
    config_file = tmp_path_factory.mktemp("variants") / "config.yaml"
    config_file.write_text(CONFIG.format(runs=config_file.parent, base=tiny_base_v, pictures=pictures))

    @functools.cache
    def learn(change: str) -> str:
        own = ["method.targets=[attention,convolutions]", change, f"run.name={VARIANTS.index(change)}"]
        return run_with(config_file, tiny_base_v, "lora", *own)

    return learn


@pytest.mark.parametrize(
    ("form", "change"),
    [pytest.param("lora", change, marks=() if change == VARIANTS[0] else pytest.mark.slow) for change in VARIANTS]
    + [("kohya", change) for change in VARIANTS[:2]],
)
def test_plain_diffusers_loads_every_kind_of_lora_of_either_naming(
    tiny_base_v: Path, form: str, change: str, lora_of_2x: LearnedLora
) -> None:
    """On 2.x; the cells above have 1.x and XL."""
    run = lora_of_2x(change)
    folder = exported(run, form, "--dtype", "float32")
    family = load_family(str(tiny_base_v))
    untouched = prediction(family)
    family.pipeline().load_lora_weights(folder, weight_name={"lora": LORA_FILE, "kohya": KOHYA_FILE}[form])
    learned = prediction(load_model(run, "cpu").family)
    torch.testing.assert_close(prediction(family), learned, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(untouched, learned, atol=1e-3)


@pytest.mark.parametrize("change", VARIANTS)
def test_kohyas_file_gives_the_merged_weights_by_the_rule_of_those_who_read_it(
    change: str, tiny_base_v: Path, lora_of_2x: LearnedLora
) -> None:
    """W + alpha / rank * up down; with a dora_scale each row of that scaled to this length. (diffusers 0.42 does not
    read kohya's DoRA.)"""
    run = lora_of_2x(change)
    tensors = load_file(exported(run, "kohya", "--dtype", "float32") / KOHYA_FILE)
    merged = load_model(run, "cpu").family
    adapters.merge(merged)
    before = load_family(str(tiny_base_v))
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


METADATA = {
    "single-file": ("lora", MODEL_FILE, "stable-diffusion-xl-v1-base", "sgm"),
    "lora": ("lora", LORA_FILE, "stable-diffusion-xl-v1-base-lora", "diffusers"),
    "kohya": ("lora", KOHYA_FILE, "stable-diffusion-xl-v1-base-lora", "sd-scripts"),
    "embedding": ("pivotal", WORD_FILE, "stable-diffusion-xl-v1-base-textual-inversion", "diffusers"),
}


@pytest.mark.parametrize("form", METADATA)
def test_a_file_says_what_it_has_learned_on_which_base_how_and_how_well(form: str, learned: Learned) -> None:
    method, file, architecture, implementation = METADATA[form]
    run, base = learned(method, "sdxl")
    with safe_open(exported(run, form) / file, "pt") as opened:
        metadata = opened.metadata()
    card = json.loads(metadata["dreambooth"])
    word = "<sks>" if method == "pivotal" else "sks"
    (subject,) = card["subjects"]
    assert (subject["identifier"], subject["class_noun"], subject["prompt"]) == (word, "dog", "a photo of {subject}")
    assert (card["step"], card["base"]) == (2, str(base))
    assert card["base_fingerprint"] == fingerprint(load_family(str(base)))
    decided = {"method.name": method, "method.rank": 2, "optim.lr": 1e-2, "train.max_steps": 2, "prior.source": "none"}
    assert decided.items() <= card["settings"].items()
    assert card["scores"].keys() == {"eval/loss"}
    assert metadata["modelspec.architecture"] == architecture
    assert metadata["modelspec.implementation"] == implementation
    assert metadata["modelspec.trigger_phrase"] == f"{word} dog"
    assert (metadata["modelspec.resolution"], metadata["modelspec.prediction_type"]) == ("64x64", "epsilon")


def test_kohyas_file_says_which_generation_it_is_for(base: Path) -> None:
    """As AUTOMATIC1111 reads it, which takes a file that says nothing for one of 1.x and hides it beside others."""
    said = kohya_version(load_family(str(base)))
    is_xl, is_v2 = said["ss_base_model_version"].startswith("sdxl_"), said["ss_v2"] == "True"
    assert (is_xl, is_v2) == {"epsilon": (False, False), "v": (False, True), "xl": (True, False)}[base.name]


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("form", "method", "rank", "message"),
    [
        ("gguf", "full", None, f"--format: 'gguf' is not known; one of {', '.join(FORMATS)}"),
        ("embedding", "full", None, "embedding is for textual_inversion and pivotal, .* full; use diffusers, single-f"),
        ("kohya", "full", None, "--rank: required for kohya of a run that was trained with full"),
        ("kohya", "lora", 4, "--rank: 4, but kohya of lora is written as it was trained"),
        ("diffusers", "full", 4, "--rank: 4, but diffusers of full"),
        ("lora", "full", 0, "--rank: 0 is too small; at least 1"),
    ],
)
def test_what_cannot_be_written_is_told_with_what_can(form: str, method: str, rank: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_format(form, method, rank)


def test_a_folder_that_is_there_is_never_written_over(
    learned: Learned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mine = learned("full", "sd")[0], tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    assert main(["export", run, "--format", "diffusers", "--out", str(mine)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (mine / "thesis.txt").read_text() == "all of it"
    assert main(["export", run, "--format", "diffusers", "--out", str(tmp_path / "new")]) == 0
    assert load_model(str(tmp_path / "new"), "cpu").card is not None


def test_a_plain_base_is_no_result(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tiny_base), "--format", "single-file"]) == 2
    assert "nothing to export" in capsys.readouterr().err
