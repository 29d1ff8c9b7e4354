"""Families of flow matching, a row each: latents, samples and files are those of diffusers, and runs go on exactly."""

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import CONFIG
from crashes import assert_equal, names
from diffusers import AutoencoderKLQwenImage, FluxPipeline
from diffusers.loaders.single_file_utils import swap_scale_shift
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_flow import FLOW_BASES
from warm import Warm

from dreambooth.cli import main
from dreambooth.config import Config, load_config
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.exporting.adapter import kohya_state
from dreambooth.exporting.formats import FORMATS
from dreambooth.families import FAMILIES, Family, ModelSource, fingerprint, half_of, load_family
from dreambooth.families.flux2_klein import EmpiricalShift
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.request import read_recipe
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.settings import SamplerSettings
from dreambooth.methods import adapter_files, adapters, lora_files
from dreambooth.methods.base import MethodSettings
from dreambooth.methods.table import METHODS
from dreambooth.preflight.memory_plan import Planner
from dreambooth.run.folder import RunFolder
from dreambooth.timesteps import ShiftBySize, TimestepDensity

PROMPTS = ["a photo of a dog on the beach", "a cat"]


@dataclass(frozen=True)
class Row:
    """Hold what is expected of a family.

    scale: of its guidance, beside none. adapted: matrices that the default targets give at tiny size. misfits: files
    of a base, changes to them and what is said. distilled: what makes a model a distilled one, in model_index.json or
    in the folder's name. own_vae: another VAE cannot take its place.
    """

    name: str
    class_name: str
    scale: float
    adapted: int
    density: TimestepDensity
    misfits: tuple[tuple[str, dict[str, Any], str], ...]
    distilled: dict[str, Any] | str | None = None
    own_vae: bool = False
    not_here: tuple[str, ...] = ()  # formats that diffusers does not load at all, or in the real size alone
    none: float = 1.0
    parts: tuple[str, ...] = ("text_encoder", "tokenizer")


BY_SIZE = TimestepDensity("logit_normal", shift=ShiftBySize())
ROWS = {
    row.name: row
    for row in (
        Row(
            "z_image",
            "ZImage",
            3.0,
            2 * 4,
            BY_SIZE,
            (
                ("model_index.json", {"_class_name": "ZImageOmniPipeline"}, "a ZImageOmniPipeline is of no known fam"),
                ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "DDIMScheduler is not of flow"),
                ("text_encoder/config.json", {"hidden_size": 24}, "cap_feat_dim is 16, text_encoder/config.json: hid"),
                ("text_encoder/config.json", {"vocab_size": 100}, "tokenizer has 2.. entries, the text encoder 100"),
            ),
            "Z-Image-Turbo",
            none=0.0,
        ),
        Row(
            "flux2_klein",
            "Flux2Klein",
            3.0,
            8 + 2,
            TimestepDensity(shift=EmpiricalShift()),
            (
                ("text_encoder/config.json", {"hidden_size": 24}, "hidden_size is 24: the first must be 3 times"),
                ("text_encoder/config.json", {"num_hidden_layers": 9}, "layer 27"),
            ),
            {"is_distilled": True},
            own_vae=True,
        ),
        Row(
            "qwen_image",
            "QwenImage",
            3.0,
            2 * 8,
            TimestepDensity("logit_normal", shift=ShiftBySize(0.5, 0.9, 256, 8192)),
            (("transformer/config.json", {"guidance_embeds": True}, "guidance is distilled into this model"),),
            own_vae=True,
        ),
        Row(
            "krea2",
            "Krea2",
            2.0,
            2 * 5,
            TimestepDensity("logit_normal", shift=ShiftBySize(0.5, 1.15, 256, 6400)),
            (
                (
                    "model_index.json",
                    {"text_encoder_select_layers": [0, 1, 2, 2]},
                    "num_text_layers is 3, model_index.json",
                ),
                ("model_index.json", {"text_encoder_select_layers": [0, 1, 5]}, "of which layer 5 is read"),
            ),
            {"is_distilled": True},
            own_vae=True,
            none=0.0,
        ),
        Row(
            "flux1",
            "Flux1",
            3.5,
            8 + 3,
            BY_SIZE,
            (
                ("text_encoder_2/config.json", {"d_model": 24}, "joint_attention_dim is 32, text_encoder_2/config.js"),
                ("text_encoder_2/config.json", {"vocab_size": 20}, "tokenizer_2 has 3. entries"),
                ("text_encoder/config.json", {"hidden_size": 24}, "pooled_projection_dim is 16, the pooled states of"),
            ),
            "FLUX.1-schnell",
            not_here=("kohya",),
            parts=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        ),
        Row(
            "sd3",
            "StableDiffusion3",
            4.0,
            12 + 7,
            TimestepDensity("logit_normal", shift=3.0),
            (("text_encoder_2/config.json", {"projection_dim": 16}, "pooled_projection_dim is 40, the pooled state"),),
            "stable-diffusion-3.5-large-turbo",
            not_here=("kohya",),
            parts=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"),
        ),
    )
}


def test_every_family_of_flow_matching_has_a_row() -> None:
    assert set(ROWS) == set(FLOW_BASES) == set(FAMILIES) - {"sd", "sdxl", "sd_graphs"}


EXPORTED_OFTEN = ("z_image",)  # what trains and is loaded again; the others are slow


@pytest.fixture(scope="module", params=ROWS.values(), ids=list(ROWS))
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
    return found


@pytest.fixture(scope="module")
def base(row: Row, flow_base: Callable[[str], Path]) -> Path:
    return flow_base(row.name)


@pytest.fixture(scope="module")
def flow(base: Path) -> Family:
    return load_family(str(base))


def test_the_family_is_read_from_the_files(row: Row, flow: Family) -> None:
    assert type(flow).__name__ == row.class_name
    assert flow.text_encoders == []
    assert flow.size_step == 16
    assert flow.schedule.density == row.density
    assert flow.guidance.none == row.none


def test_transformers_are_sampled_in_bfloat16_where_unets_are_in_float16(base: Path, tiny_base: Path) -> None:
    assert half_of(ModelSource(str(base))) == "bfloat16"
    assert half_of(ModelSource(str(tiny_base))) == "float16"


@pytest.mark.parametrize("name", ["flux1", "sd3"])
def test_t5_keeps_in_float32_what_would_overflow_in_float16(name: str, flow_base: Callable[[str], Path]) -> None:
    flow = load_family(ModelSource(str(flow_base(name)), dtype=torch.float16))
    t5, encoder = flow.frozen_encoders[-1], flow.loaded_encoders()[-1]  # type: ignore[attr-defined]
    dtypes = {each: weight.dtype for each, weight in encoder.named_parameters()}
    assert {dtype for each, dtype in dtypes.items() if each.endswith(".wo.weight")} == {torch.float32}
    assert dtypes["shared.weight"] == torch.float16
    assert t5.num_bytes(torch.float16) == sum(weight.numel() * weight.itemsize for weight in encoder.parameters())
    assert flow.run_text_encoders(["a dog"])["prompt"].isfinite().all()  # type: ignore[attr-defined]


def test_samples_are_those_of_the_pipeline(row: Row, flow: Family) -> None:
    """From the same noise the same image: guidance, shift, steps, template and tokens are its own."""
    start = noise_from_seeds([0, 1], flow.latent_shape(32, 48))
    pipeline: Any = flow.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for scale in (row.none, row.scale):
        ours = flow.decode_latents(sample_latents(flow, PROMPTS, start, SamplerSettings(3, scale, "euler")))
        images.append(ours)
        theirs = pipeline(
            prompt=[*PROMPTS], num_inference_steps=3, height=32, width=48, output_type="pt",
            **flow.pipeline_arguments(start.noise_BCHW, scale),
        ).images  # fmt: skip
        torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(*images, atol=1e-3), "the scale has a say"


def test_an_image_comes_back_from_its_latents_as_the_vae_has_it(flow: Family) -> None:
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    mean, std = flow.encode_images(pixels)
    assert mean.shape == std.shape == (2, *flow.latent_shape(32, 48))
    is_film = isinstance(flow.vae, AutoencoderKLQwenImage)
    with torch.no_grad():
        again = flow.vae.decode(flow.vae.encode(pixels.unsqueeze(2) if is_film else pixels).latent_dist.mode()).sample
    expected = again.squeeze(2) if is_film else again
    torch.testing.assert_close(flow.decode_latents(mean), expected, atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------------- what a base must have


def linked(base: Path, folder: Path, without: str = "") -> Path:
    """Make a folder with links to the parts of a base but one."""
    folder.mkdir()
    for path in base.iterdir():
        if path.name != without:
            (folder / path.name).symlink_to(path)
    return folder


def changed(base: Path, folder: Path, file: str, changes: dict[str, Any]) -> Path:
    """Make a folder like a base, in one of whose files these keys are changed."""
    part = file.split("/")[0]
    linked(base, folder, without=part)
    original = json.loads((base / file).read_text())
    if "/" in file:
        linked(base / part, folder / part, without=file.split("/")[1])
    (folder / file).write_text(json.dumps({**original, **changes}))
    return folder


def test_a_base_without_one_of_its_parts_is_refused_by_name(row: Row, base: Path, tmp_path: Path) -> None:
    for part in ("transformer", "vae", "scheduler", *row.parts):
        with pytest.raises(ModelError, match=part):
            load_family(str(linked(base, tmp_path / f"no-{part}", without=part)))


def test_a_base_of_parts_that_do_not_fit_is_refused(row: Row, base: Path, tmp_path: Path) -> None:
    for number, (file, changes, said) in enumerate(row.misfits):
        with pytest.raises(ModelError, match=said):
            load_family(str(changed(base, tmp_path / str(number), file, changes)))


def test_a_distilled_model_is_named(row: Row, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if isinstance(row.distilled, dict):
        load_family(str(changed(base, tmp_path / "distilled", "model_index.json", row.distilled)))
    elif row.distilled:
        load_family(str(linked(base, tmp_path / row.distilled)))
    assert ("a distilled model, which loses its few steps when it is trained" in caplog.text) == bool(row.distilled)


def test_a_vae_of_its_own_kind_cannot_be_replaced(row: Row, base: Path) -> None:
    if row.own_vae:
        with pytest.raises(UserError, match=r"model\.vae=x: this family has a VAE of its own kind"):
            load_family(ModelSource(str(base), vae="x"))


def test_a_prompt_is_read_as_far_as_it_fits_by_whole_words(flow: Family) -> None:
    assert flow.truncate("a photo") == ("a photo", "")
    kept, dropped = flow.truncate("photo " * 1100)
    assert flow.count_tokens(kept) <= flow.max_tokens < flow.count_tokens(f"{kept} photo")
    assert len(kept.split()) + len(dropped.split()) == 1100


def original_z_image(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name Z-Image's weights as ComfyUI's file does, in which query, key and value are one matrix."""
    renamed = {}
    for name, weight in state.items():
        for here, original in (
            ("all_final_layer.2-1.", "final_layer."), ("all_x_embedder.2-1.", "x_embedder."),
            ("attention.to_out.0.", "attention.out."), ("norm_q", "q_norm"), ("norm_k", "k_norm"),
        ):  # fmt: skip
            name = name.replace(here, original)
        renamed[f"model.diffusion_model.{name}"] = weight
    for name in [name for name in renamed if name.endswith(".to_q.weight")]:
        parts = [renamed.pop(name.replace("to_q", part)) for part in ("to_q", "to_k", "to_v")]
        renamed[name.replace("to_q", "qkv")] = torch.cat(parts)
    return renamed


@pytest.mark.parametrize("form", ["z_image, original", "flux1"])
def test_a_transformer_alone_is_loaded_beside_the_other_parts(
    form: str, flow_base: Callable[[str], Path], tmp_path: Path
) -> None:
    name, _, layout = form.partition(", ")
    base = flow_base(name)
    state = load_file(base / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(original_z_image(state) if layout else state, tmp_path / "model.safetensors")
    alone = ModelSource(str(tmp_path / "model.safetensors"), config=str(base))
    loaded, whole = load_family(alone), load_family(str(base))
    assert fingerprint(loaded) == fingerprint(whole)
    with pytest.raises(UserError, match=r"holds a transformer alone; name a pipeline's folder or hub id"):
        load_family(alone.base)
    other = flow_base("sd3")
    with pytest.raises(ModelError, match=r"model\.safetensors: "):
        load_family(replace(alone, config=str(other)))


@pytest.mark.parametrize("num_steps", [4, 50])
@pytest.mark.parametrize("size", [(4, 4), (64, 64), (80, 64)])
def test_the_shift_of_klein_is_the_samplers(size: tuple[int, int], num_steps: int) -> None:
    mu = compute_empirical_mu(size[0] * size[1], num_steps)
    assert EmpiricalShift(num_steps)(size) == pytest.approx(torch.tensor(mu).exp().item(), rel=1e-6)


# -------------------------------------------------------------------------------- runs

LORA = ["method.name=lora", "method.rank=2", "optim.lr=1.0e-2", "optim.schedule=constant", "optim.warmup_steps=0"]
QUICK = ["train.max_steps=2", "train.save_every_steps=1", "validate.every_steps=2", "validate.num_images=1"]
QUICK += [
    "train.batch_size=1",
    'validate.prompts=["a photo of {subject}"]',
    "data.buckets=true",
    "data.bucket_step=16",
    "subject.identifier=sks",
]


def config_at(folder: Path, base: Path, pictures: Path, *settings: str) -> Config:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(runs=folder / "runs", base=base, pictures=pictures))
    return load_config(path, [*QUICK, *settings])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, base: Path, pictures: Path) -> Config:
    """Train a LoRA."""
    config = config_at(tmp_path_factory.mktemp("learned"), base, pictures, *LORA)
    assert train(config) == 0
    return config


@pytest.mark.parametrize(
    "row",
    [row if row.name in EXPORTED_OFTEN else pytest.param(row, marks=pytest.mark.slow) for row in ROWS.values()],
    ids=list(ROWS),
    indirect=True,
)
def test_a_lora_comes_back_from_its_run_and_from_its_files(row: Row, learned: Config, base: Path) -> None:
    """It comes back of its folder, by diffusers' own loader with every tensor, laid over the base, and as a start."""
    run, prompt, settings = RunFolder(learned), ["a photo of sks dog"], SamplerSettings(2, 2.0)
    trained = load_model(str(run.path), "cpu").family
    start = noise_from_seeds([0], trained.latent_shape(64, 64))
    expected = sample_latents(trained, prompt, start, settings)
    for form in ("lora", *(name for name in trained.layouts if name in ("kohya", "comfyui"))):
        assert main(["export", str(run.path), "--format", form, "--dtype", "float32", "--verify"]) == 0
        file = run.path / "exports" / form / "run.safetensors"
        if form not in row.not_here:
            pipeline = load_family(str(base)).pipeline()
            pipeline.load_lora_weights(file.parent, weight_name=file.name)
            loaded = [weight for name, weight in pipeline.transformer.named_parameters() if "lora_B" in name]
            assert len(loaded) == row.adapted
            assert any(bool(weight.any()) for weight in loaded)
        laid = load_family(str(base))
        lora_files.apply(laid, file)
        torch.testing.assert_close(sample_latents(laid, prompt, start, settings), expected, atol=1e-4, rtol=1e-3)
    begun = load_family(str(base))  # from the last file: the rank of joined matrices is the sum of theirs
    rank = max(change.rank or 0 for change in lora_files.read_changes(begun, file)["transformer"].values())
    METHODS["lora"].attach(begun, MethodSettings(rank=rank, start=file))
    for again in (load_model(str(run.path / "exports" / "lora"), "cpu").family, begun):
        torch.testing.assert_close(sample_latents(again, prompt, start, settings), expected, atol=1e-4, rtol=1e-3)
    untouched = sample_latents(load_family(str(base)), prompt, start, settings)
    assert not torch.equal(expected, untouched)


def test_kohyas_names_of_flux1_are_those_that_diffusers_knows(flow_base: Callable[[str], Path], tmp_path: Path) -> None:
    """Double blocks are compared: of single ones its converter knows the sizes of the real model alone."""
    family = load_family(str(flow_base("flux1")))
    METHODS["lora"].attach(family, MethodSettings(rank=2, alpha=3, targets=("transformer_blocks.*.attn.*",)))
    for name, weight in family.denoiser.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    expected = adapter_files.portable_state(family.denoiser, "transformer")
    found = FluxPipeline.lora_state_dict(kohya_state(family))
    assert {name.removeprefix("transformer.") for name in found} == expected.keys()
    for name, tensor in expected.items():
        if "lora_B" in name:
            down = name.replace("lora_B", "lora_A")
            ours, theirs = tensor @ expected[down], found[f"transformer.{name}"] @ found[f"transformer.{down}"]
            torch.testing.assert_close(theirs, ours)


def test_kohyas_modulations_of_sd3_have_their_rows_as_stability_has_them(
    flow_base: Callable[[str], Path], tmp_path: Path
) -> None:
    """The last one of the text has shift and scale the other way round; diffusers' converter says which."""
    family = load_family(str(flow_base("sd3")))
    METHODS["lora"].attach(family, MethodSettings(rank=2, alpha=2, targets=("modulation",)))
    for name, weight in family.denoiser.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    state, last = kohya_state(family), family.denoiser.config.num_layers - 1
    for number in range(last + 1):
        for side, norm in (("x", "norm1"), ("context", "norm1_context")):
            layer: Any = family.denoiser.get_submodule(f"transformer_blocks.{number}.{norm}.linear")
            module = f"lora_unet_joint_blocks_{number}_{side}_block_adaLN_modulation_1"
            change = state[f"{module}.lora_up.weight"] @ state[f"{module}.lora_down.weight"]
            is_last = (number, side) == (last, "context")
            as_here = swap_scale_shift(change, dim=len(change) // 2) if is_last else change
            torch.testing.assert_close(as_here, layer.get_delta_weight("default"))
    save_file(state, tmp_path / "kohya.safetensors")
    laid = load_family(str(flow_base("sd3")))
    lora_files.apply(laid, tmp_path / "kohya.safetensors")
    adapters.merge(family)
    for name, weight in family.denoiser.named_parameters():
        torch.testing.assert_close(laid.denoiser.get_parameter(name), weight)


def test_a_layout_that_the_family_does_not_have_is_refused(learned: Config, capsys: pytest.CaptureFixture[str]) -> None:
    family = load_model(str(RunFolder(learned).path), "cpu").family
    for form in ("single-file", "kohya", "comfyui"):
        if form not in family.layouts:
            assert main(["export", str(RunFolder(learned).path), "--format", form]) == 2
            assert f"{form} is not written for a {family.architecture}; use one of diffus" in capsys.readouterr().err
    assert set(family.layouts) <= set(FORMATS)


def test_the_file_of_a_run_is_the_one_for_comfyui(learned: Config) -> None:
    run = RunFolder(learned)
    family = load_model(str(run.path), "cpu").family
    file = run.path / "model" / "run.safetensors"
    assert file.is_file() == ("comfyui" in family.layouts)
    if file.is_file():
        changes = lora_files.read_changes(load_family(str(learned.model.base)), file)
        own = family.components()["transformer"].peft_config["default"]
        assert isinstance(own, LoraConfig)
        assert changes["transformer"].keys() == set(own.target_modules)


@pytest.mark.parametrize(
    "row",
    [row if row.name == "z_image" else pytest.param(row, marks=pytest.mark.slow) for row in ROWS.values()],
    ids=list(ROWS),
    indirect=True,
)
def test_a_run_killed_and_run_again_equals_one_that_was_never_killed(
    learned: Config, warm: Warm, caplog: pytest.LogCaptureFixture
) -> None:
    whole, elsewhere = RunFolder(learned), Path(learned.run.dir).with_name("killed")
    killed = replace(learned, run=replace(learned.run, dir=str(elsewhere)))
    run, config_file = RunFolder(killed), elsewhere.with_name("config.yaml")
    pid = warm.start(["train", str(config_file), *QUICK, *LORA, f"run.dir={elsewhere}"], config_file.with_name("log"))
    deadline = time.monotonic() + 120
    while not run.state.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    assert warm.wait(pid) == -signal.SIGKILL
    caplog.set_level("INFO")
    assert train(killed) == 0
    assert "resuming" in caplog.text
    assert "frozen text encoder" not in caplog.text, "the prompts are in the run's folder"
    assert whole.metrics.read_text() == run.metrics.read_text()
    assert_equal(*(torch.load(each.state, weights_only=True) for each in (whole, run)), "last.ckpt")
    for folder in ("samples", "model", "prior", "prompts"):
        assert names(whole.path / folder) == names(run.path / folder)
        for path in (whole.path / folder).rglob("*.*"):
            other = run.path / path.relative_to(whole.path)
            if path.suffix == ".safetensors":  # the order of its metadata is not always the same
                assert_equal(load_file(path), load_file(other), path.name)
            else:
                assert path.read_bytes() == other.read_bytes(), f"{path} differs"


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["method.name=full", "prior.source=teacher", "train.ema_decay=0.9"],
        ["method.name=lokr", "method.rank=2", "prior.source=none", "method.targets=[attention,feed-forward]"],
        [*LORA, "method.dora=true", "method.rslora=true", "prior.source=ahead", "train.micro_batch_size=1"],
    ],
    ids=["full", "lokr", "dora"],
)
def test_every_method_trains_and_is_sampled_from_its_own_files(
    settings: list[str], tmp_path: Path, base: Path, pictures: Path
) -> None:
    quick = ["validate.every_steps=0", "optim.lr=1.0e-2", "optim.warmup_steps=0"]
    config = config_at(tmp_path, base, pictures, *settings, *quick)
    assert train(config) == 0
    assert main(["export", str(RunFolder(config).path), "--format", "diffusers", "--dtype", "float32"]) == 0
    learned, untouched = load_model(str(RunFolder(config).path), "cpu").family, load_family(str(base))
    exported = load_family(str(RunFolder(config).path / "exports" / "diffusers"))
    start, sampler = noise_from_seeds([0], untouched.latent_shape(64, 64)), SamplerSettings(2, 2.0)
    images = [sample_latents(each, ["a photo of sks dog"], start, sampler) for each in (learned, untouched, exported)]
    assert not torch.equal(images[0], images[1])
    torch.testing.assert_close(images[2], images[0], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_plan_counts_the_frozen_text_encoders_without_loading_them(
    tmp_path: Path, base: Path, pictures: Path
) -> None:
    config = config_at(tmp_path, base, pictures, *LORA)
    planner = Planner(config)
    need = planner.need(config)
    assert min(need.step, need.validation, need.frozen) > 0
    encoders = planner.family.frozen_encoders
    assert [each.module for each in encoders] == [None] * len(encoders)
    loaded = [each.get(torch.float32, torch.device("cpu")) for each in encoders]
    tensors = [tensor for each in loaded for tensor in (*each.parameters(), *each.buffers())]
    assert need.prompts == sum(tensor.nbytes for tensor in tensors)


def cut_outs(pictures: Path, folder: Path, caption: str) -> Path:
    """Write pictures whose right half does not count, each with a caption of its own length."""
    folder.mkdir()
    for number, path in enumerate(sorted(pictures.glob("*.png"))):
        image = Image.open(path).convert("RGBA")
        image.paste((0, 0, 0, 0), (32, 0, 64, image.height))
        image.save(folder / path.name)
        (folder / path.name).with_suffix(".txt").write_text(f"{caption}{' in the snow' * number}, at night")
    return folder


@pytest.mark.parametrize(
    "row",
    [row if row.name == "flux1" else pytest.param(row, marks=pytest.mark.slow) for row in ROWS.values()],
    ids=list(ROWS),
    indirect=True,
)
def test_subjects_masks_captions_buckets_and_an_average_train_in_parts_as_in_whole_batches(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    folders = [
        cut_outs(pictures, tmp_path / word, f"a photo of {{subject{end}}}") for word, end in (("a", ""), ("b", "_2"))
    ]
    subjects = [
        {"images": str(folder), "identifier": word, "class_noun": noun}
        for folder, word, noun in zip(folders, ("sks", "olis"), ("dog", "cat"), strict=True)
    ]
    path = tmp_path / "config.yaml"
    values = yaml.safe_load(CONFIG.format(runs=tmp_path / "runs", base=base, pictures=pictures))
    path.write_text(
        yaml.safe_dump({key: value for key, value in values.items() if key != "subject"} | {"subjects": subjects})
    )
    settings = [
        *LORA, "data.mask=alpha", "data.captions=true", "data.shuffle_captions=true", "data.caption_dropout=0.3",
        "data.buckets=true", "data.bucket_step=16", "train.ema_decay=0.9", "train.batch_size=4", "train.max_steps=2",
        "train.save_every_steps=2", "validate.every_steps=0",
    ]  # fmt: skip
    lines = []
    for name, size in (("whole", []), ("parts", ["train.micro_batch_size=1"])):
        config = load_config(path, [*settings, f"run.name={name}", *size])
        assert train(config) == 0
        with RunFolder(config).metrics.open() as file:
            lines.append([{key: float(value or 0) for key, value in row.items()} for row in csv.DictReader(file)])
    for whole, parts in zip(*lines, strict=True):
        assert whole == pytest.approx(parts, rel=1e-3)
    assert lines[0][0]["train/loss_instance"] > 0


# -------------------------------------------------------------------------------- guidance as an input


def test_what_has_no_use_where_guidance_is_an_input_is_refused(
    tmp_path: Path, flow_base: Callable[[str], Path], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_at(tmp_path, flow_base("flux1"), pictures, *LORA, "prior.guidance_min_noise=0.3")
    with pytest.raises(UserError, match=r"prior\.guidance_min_noise=0\.3: this base reads the guidance scale itself"):
        train(config)
    assert main(["sample", str(flow_base("flux1")), "a cat", "--negative-prompt", "a dog"]) == 2
    assert "--negative-prompt 'a dog': this base reads the guidance scale itself" in capsys.readouterr().err
    styled = ["--style", "ink", "--steps", "1", "--size", "64x64", "--num-images", "1", "--out", str(tmp_path / "ink")]
    assert main(["sample", str(flow_base("flux1")), "a cat", *styled]) == 0
    (image,) = (tmp_path / "ink").iterdir()
    recipe = read_recipe(image)
    assert "ink drawing of a cat" in recipe["prompt"]
    assert recipe.get("negative_prompt", "") == "", "a style's words for it are left out"
