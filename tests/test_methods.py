"""Methods: each trains what it names and nothing else, leaves the base as it is, and comes back from its own files."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.exporting.adapter import kohya_state
from dreambooth.families import Family, evaluation_mode, load_family
from dreambooth.generation.grids.grid import cut
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.settings import SamplerSettings
from dreambooth.methods import adapter_files
from dreambooth.methods.adapter_files import LORA_FILE
from dreambooth.methods.adapters import frozen_base, merge
from dreambooth.methods.base import MethodSettings
from dreambooth.methods.table import METHODS
from dreambooth.methods.textual_inversion import WORD_FILE
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.run.folder import RunFolder

ADAPTERS = [name for name, method in METHODS.items() if method.facts.is_adapter]
WORDS = ("textual_inversion", "pivotal")
# What a method names, as (network, part of a weight's name).
NAMED = {
    "full": (("denoiser", ""), ("text_encoder_0", "")),
    "lora": (("denoiser", ".lora_"), ("text_encoder_0", ".lora_")),
    "loha": (("denoiser", ".hada_"), ("text_encoder_0", ".hada_")),
    "lokr": (("denoiser", ".lokr_"), ("text_encoder_0", ".lokr_")),
    "textual_inversion": (("text_encoder_0", "trainable_tokens_delta"),),
    "pivotal": (("denoiser", ".lora_"), ("text_encoder_0", "trainable_tokens_delta")),
    "custom_diffusion": (("denoiser", ".modules_to_save."),),
}
PROMPTS = ["a photo of <sks> dog", "a photo of a dog"]


def settings(**changes: Any) -> MethodSettings:
    everything = {
        "rank": 2,
        "targets": ("attention", "convolutions"),
        "words": ("<sks>",),
        "start_words": (("dog",),),
    }
    return MethodSettings(**{**everything, "seed": 3, **changes})


def prediction(family: Family) -> Tensor:
    """Return what a family predicts, in evaluation mode: in training mode a convolution may take another kernel."""
    noisy_BCHW = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), evaluation_mode(family):
        return family.predict(noisy_BCHW, torch.tensor([5, 500]), family.encode_prompts(PROMPTS))


def trained_weights(parts: dict[str, torch.nn.Module]) -> dict[tuple[str, str], Tensor]:
    return {
        (part, name): weight
        for part, network in parts.items()
        for name, weight in network.named_parameters()
        if weight.requires_grad
    }


def shake(parts: dict[str, torch.nn.Module]) -> None:
    """Stands for training: every weight that trains moves."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trained_weights(parts).values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)


@pytest.fixture(params=ADAPTERS)
def adapted(request: pytest.FixtureRequest, tiny_base: Path) -> tuple[str, Family]:
    """A method's name, and a family that has learned something by it."""
    family = load_family(str(tiny_base))
    shake(METHODS[request.param].attach(family, settings(num_vectors=2)))
    return request.param, family


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_what_it_names_and_nothing_else(name: str, family: Family) -> None:
    parts = METHODS[name].attach(family, settings(start_words=() if name == "full" else (("dog",),)))
    everywhere = {"denoiser": family.denoiser, "text_encoder_0": family.text_encoders[0]}
    trains = trained_weights(everywhere)
    assert trains
    assert trains.keys() == trained_weights(parts).keys()
    assert {part for part, _ in trains} == {part for part, _ in NAMED[name]}
    for part, weight in trains:
        assert any(part == each and named in weight for each, named in NAMED[name]), f"{part}: {weight} trains"
    before = {part: {n: w.clone() for n, w in network.named_parameters()} for part, network in everywhere.items()}
    family.predict(
        torch.randn(2, 4, 8, 8), torch.tensor([5, 500]), family.encode_prompts(PROMPTS)
    ).square().sum().backward()
    optimizer = torch.optim.SGD([w for network in everywhere.values() for w in network.parameters()], lr=1.0)
    optimizer.step()
    moved = {
        (part, n) for part, old in before.items() for n, w in everywhere[part].named_parameters() if (w != old[n]).any()
    }
    assert moved
    assert moved <= trains.keys()


@pytest.mark.parametrize("name", ["lora", "loha", "lokr", "custom_diffusion"])
def test_before_anything_is_learned_an_adapter_changes_no_bit(name: str, family: Family) -> None:
    before = prediction(family)
    METHODS[name].attach(family, settings())
    assert torch.equal(prediction(family), before)


def test_the_untouched_base_lies_beneath_every_adapter(adapted: tuple[str, Family], tiny_base: Path) -> None:
    """Asked with a prompt without the new word, which the base does not know."""
    name, family = adapted
    base = prediction(load_family(str(tiny_base)))
    learned = prediction(family)
    assert not torch.equal(learned, base)
    assert torch.equal(prediction(frozen_base(family))[1], base[1])
    if name not in WORDS:
        assert torch.equal(prediction(frozen_base(family)), base)
    assert torch.equal(prediction(family), learned), "the adapter is back on"


def test_the_base_beneath_holds_no_second_copy(adapted: tuple[str, Family]) -> None:
    _, family = adapted
    assert frozen_base(family).denoiser is family.denoiser
    assert frozen_base(family).text_encoders[0] is family.text_encoders[0]


def test_looking_at_the_base_beneath_leaves_what_trains_and_the_mode_alone(adapted: tuple[str, Family]) -> None:
    _, family = adapted
    parts = {"denoiser": family.denoiser, "text_encoder_0": family.text_encoders[0]}
    before = trained_weights(parts).keys(), [part.training for part in parts.values()]
    prediction(frozen_base(family))
    assert before == (trained_weights(parts).keys(), [part.training for part in parts.values()])


def test_saved_and_loaded_again_it_predicts_the_same_bits(
    adapted: tuple[str, Family], tiny_base: Path, tmp_path: Path
) -> None:
    name, family = adapted
    save, load = METHODS[name].save, METHODS[name].load
    assert save is not None
    assert load is not None
    save(family, tmp_path)
    again = load_family(str(tiny_base))
    load(again, tmp_path)
    assert torch.equal(prediction(again), prediction(family))


def test_a_file_of_another_base_is_a_clear_error(adapted: tuple[str, Family], tmp_path: Path) -> None:
    name, family = adapted
    save, load = METHODS[name].save, METHODS[name].load
    assert save is not None
    assert load is not None
    save(family, tmp_path)
    other = load_family("checkpoints/toyworld")
    with pytest.raises(ModelError, match=str(tmp_path)):
        load(other, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ModelError, match=str(tmp_path)):
        load(other, tmp_path)


def test_merged_it_is_a_plain_model_that_predicts_the_same(adapted: tuple[str, Family]) -> None:
    _, family = adapted
    before = prediction(family)
    merge(family)
    torch.testing.assert_close(prediction(family), before, atol=1e-5, rtol=1e-4)
    kinds = {type(module).__module__ for part in (family.denoiser, *family.text_encoders) for module in part.modules()}
    assert not [kind for kind in kinds if kind.startswith("peft")]


# -------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize("changes", [{}, {"alpha": 5.0}, {"rslora": True, "rank": 4}, {"dora": True}, {"dropout": 0.5}])
def test_plain_diffusers_loads_the_lora_to_the_same_bits(
    changes: dict[str, Any], family: Family, tiny_base: Path, tmp_path: Path
) -> None:
    parts = METHODS["lora"].attach(family, settings(**changes))
    shake(parts)
    for part in parts.values():
        part.eval()
    assert METHODS["lora"].save is not None
    METHODS["lora"].save(family, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.load_lora_weights(tmp_path, weight_name=LORA_FILE)
    theirs = load_family(str(tiny_base))
    theirs.unet, theirs.text_encoder = pipeline.unet, pipeline.text_encoder  # type: ignore[attr-defined]
    torch.testing.assert_close(prediction(theirs), prediction(family), atol=1e-5, rtol=1e-4)


def test_plain_diffusers_loads_the_word(family: Family, tiny_base: Path, tmp_path: Path) -> None:
    shake(METHODS["textual_inversion"].attach(family, settings(num_vectors=3)))
    assert METHODS["textual_inversion"].save is not None
    METHODS["textual_inversion"].save(family, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.load_textual_inversion(tmp_path / WORD_FILE, token="<sks>")
    theirs = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    torch.testing.assert_close(theirs, family.encode_prompts(PROMPTS)["encoder_hidden_states"])


def test_a_word_of_three_vectors_is_three_tokens_that_start_as_the_class_noun(family: Family) -> None:
    before = family.encode_prompts(["a photo of dog dog dog dog"])
    METHODS["textual_inversion"].attach(family, settings(num_vectors=3))
    after = family.encode_prompts(["a photo of <sks> dog"])
    torch.testing.assert_close(after["encoder_hidden_states"], before["encoder_hidden_states"])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("textual_inversion", {"words": ("sks",)}, "subject.identifier.*'sks'.*<sks>"),
        ("pivotal", {"start_words": (("dogcatdog",),)}, "method.start_word.*'dogcatdog'"),
        ("lora", {"targets": ("attenshun",)}, "method.targets.*'attenshun'.*attention"),
    ],
)
def test_what_cannot_be_learned_is_refused(name: str, changes: dict[str, Any], message: str, family: Family) -> None:
    with pytest.raises(UserError, match=message):
        METHODS[name].attach(family, settings(**changes))


def test_targets_are_groups_or_ends_of_names(family: Family) -> None:
    parts = METHODS["lora"].attach(family, settings(targets=("attn2.to_k", "fc1")))
    adapted = {name.split(".lora_")[0] for _, name in trained_weights(parts)}
    assert all(name.endswith(("attn2.to_k", "fc1")) for name in adapted)
    assert len(adapted) == 4 + 1  # four blocks of the denoiser, one layer of the text encoder


def test_the_adapters_first_values_are_of_the_seed_alone(family: Family, tiny_base: Path) -> None:
    first = trained_weights(METHODS["lora"].attach(family, settings()))
    torch.rand(5)
    again = trained_weights(METHODS["lora"].attach(load_family(str(tiny_base)), settings()))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    other = trained_weights(METHODS["lora"].attach(load_family(str(tiny_base)), settings(seed=4)))
    assert not all(torch.equal(weight, other[name]) for name, weight in first.items())


# -------------------------------------------------------------------------------- whole runs


def run_with(config_file: Path, method: str, *overrides: str) -> RunFolder:
    word = ["subject.identifier=<sks>"] if method in WORDS else []
    quick = [
        "optim.lr=1.0e-2",
        "optim.warmup_steps=0",
        "train.max_steps=4",
        "train.save_every_steps=4",
        "validate.every_steps=4",
        "prior.num_images=4",
    ]
    config = load_config(
        config_file, [f"method.name={method}", f"run.name={method}", "method.rank=2", *word, *quick, *overrides]
    )
    assert train(config) == 0
    return RunFolder(config)


def latents_of(run: RunFolder) -> Tensor:
    model = load_model(str(run.path), "cpu")
    start = noise_from_seeds([0], model.family.latent_shape(64, 64))
    return sample_latents(model.family, [model.fill("a photo of {subject}")], start, SamplerSettings(2, 2.0))


QUICK = ("lora", "textual_inversion")  # what the others write is sampled by tests/test_formats.py too


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS]
)
def test_a_run_of_every_method_is_sampled_from_its_own_files(method: str, config_file: Path, tmp_path: Path) -> None:
    """It has learned something, and another folder with the same files gives the same picture."""
    run = run_with(config_file, method)
    picture = latents_of(run)
    shutil.copytree(run.path, tmp_path / "moved")
    shutil.rmtree(run.path / "state")
    assert torch.equal(latents_of(run), picture)
    still = ("optim.lr=1.0e-30", "train.max_steps=1", "prior.source=none", "validate.every_steps=0")
    untouched = run_with(config_file, method, *still, "run.name=untouched")
    assert not torch.equal(latents_of(untouched), picture)


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(method, marks=pytest.mark.slow) for method in ("pivotal", "custom_diffusion"))]
)
def test_an_adapter_run_that_was_interrupted_comes_to_the_same_bits(method: str, config_file: Path) -> None:
    straight = run_with(config_file, method, "optim.schedule=constant", "run.name=straight")
    run_with(config_file, method, "optim.schedule=constant", "train.max_steps=2")
    resumed = run_with(config_file, method, "optim.schedule=constant")
    states = [torch.load(run.state, weights_only=True)["state_dict"] for run in (straight, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())


def test_the_state_of_an_adapter_run_holds_what_trains_and_no_more(config_file: Path) -> None:
    run = run_with(config_file, "lora")
    state = torch.load(run.state, weights_only=True)["state_dict"]
    assert all(".lora_" in name for name in state)
    written = load_file(run.model / LORA_FILE)
    assert len(written) == len(state)


@pytest.mark.slow
def test_class_pictures_made_beneath_an_adapter_are_those_of_full_fine_tuning(config_file: Path) -> None:
    blocks = [sorted(run_with(config_file, method).prior.rglob("*.safetensors")) for method in ("full", "lora")]
    assert [path.name for path in blocks[0]] == [path.name for path in blocks[1]]
    assert blocks[0]
    for one, other in zip(*blocks, strict=True):
        assert torch.equal(load_file(one)["latents"], load_file(other)["latents"])


def test_the_teacher_beneath_an_adapter_has_nothing_to_teach_at_first(config_file: Path) -> None:
    lines = (
        run_with(config_file, "lora", "prior.source=teacher", "optim.warmup_steps=1").metrics.read_text().splitlines()
    )
    header, _, first, second, *_ = (line.split(",") for line in lines)
    prior = header.index("train/loss_prior")
    assert float(first[prior]) < 1e-10 < float(second[prior]), "the teacher is in evaluation mode, so rounding is left"


def test_another_method_in_the_same_run_folder_is_refused(config_file: Path) -> None:
    run_with(config_file, "lora", "run.name=one")
    with pytest.raises(UserError, match=r"method.name: 'lora' -> 'loha'"):
        run_with(config_file, "loha", "run.name=one", "train.max_steps=6")


def test_an_adapter_whose_base_is_gone_says_which(config_file: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    run = run_with(config_file, "lora", f"model.base={base}")
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=f"lora of the base {base}"):
        load_model(str(run.path), "cpu")
    assert load_model(ModelRef(str(run.path), base=str(tiny_base)), "cpu").card is not None


# -------------------------------------------------------------------------------- training on from files


STARTS = [("lora", {"train_text_encoder": False}), *((name, {}) for name in ("lora", "loha", "lokr", *WORDS))]
ODD = {"alpha": 4.0, "num_vectors": 2}  # a scale of 2, which goes into a matrix and out again without rounding


def learned_files(method: str, base: Path, folder: Path, **changes: Any) -> tuple[Path, Tensor]:
    """A method's own files of something learned, and what that predicts."""
    family = load_family(str(base))
    shake(METHODS[method].attach(family, settings(**changes)))
    save = METHODS[method].save
    assert save is not None
    save(family, folder)
    return folder, prediction(family)


@pytest.mark.parametrize(("method", "changes"), STARTS)
def test_a_start_predicts_from_the_first_step_what_its_files_do(
    method: str, changes: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    files, learned = learned_files(method, tiny_base, tmp_path, **ODD, **changes)
    family = load_family(str(tiny_base))
    parts = METHODS[method].attach(family, settings(**ODD, **changes, start=files, seed=8))
    assert torch.equal(prediction(family), learned)
    fresh = METHODS[method].attach(load_family(str(tiny_base)), settings(**ODD, **changes))
    started = trained_weights(parts)
    assert {name: weight.dtype for name, weight in started.items()} == {
        name: weight.dtype for name, weight in trained_weights(fresh).items()
    }
    if method not in WORDS:
        assert torch.equal(prediction(frozen_base(family)), prediction(load_family(str(tiny_base))))


KOHYA_QUICK = (({}, False), ({"alpha": 3.0}, True))
KOHYA_SLOW = (({}, True), ({"alpha": 3.0}, False), ({"rslora": True}, False), ({"rslora": True}, True))


@pytest.mark.parametrize(
    ("changes", "xl"), [*KOHYA_QUICK, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in KOHYA_SLOW)]
)
def test_kohyas_file_and_diffusers_file_start_the_same(
    xl: bool, changes: dict[str, Any], tiny_base: Path, tiny_xl_base: Path, tmp_path: Path
) -> None:
    base = tiny_xl_base if xl else tiny_base
    family = load_family(str(base))
    shake(METHODS["lora"].attach(family, settings(**changes)))
    adapter_files.save_lora(family, tmp_path)
    save_file(kohya_state(family), tmp_path / "kohya.safetensors")
    learned = prediction(family)
    for file in (LORA_FILE, "kohya.safetensors"):
        again = load_family(str(base))
        METHODS["lora"].attach(again, settings(**changes, start=tmp_path / file))
        torch.testing.assert_close(prediction(again), learned, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 4}, "method.rank: 4, but .* has 2"),
        ({"alpha": 5.0}, "method.alpha: 5, but .* has 2"),
        ({"rslora": True}, "method.alpha: 2, but .* has 1.41421"),
        ({"targets": ("attention",)}, r"method.targets: .*; set method.targets=\[attention,convolutions\]"),
        (
            {"train_text_encoder": False},
            "method.train_text_encoder: false, but .* adapts a text encoder; set it to true",
        ),
        ({"dora": True}, "method.dora=true: .* was trained without DoRA; set method.dora=false"),
    ],
)
def test_settings_that_the_files_contradict_are_told(
    changes: dict[str, Any], message: str, tiny_base: Path, tmp_path: Path
) -> None:
    files, _ = learned_files("lora", tiny_base, tmp_path)
    with pytest.raises(UserError, match=message):
        METHODS["lora"].attach(load_family(str(tiny_base)), settings(**changes, start=files))


def test_dora_starts_from_diffusers_names_and_from_kohyas(tiny_base: Path, tmp_path: Path) -> None:
    files, learned = learned_files("lora", tiny_base, tmp_path, dora=True)
    family = load_family(str(tiny_base))
    METHODS["lora"].attach(family, settings(dora=True, start=files))
    torch.testing.assert_close(prediction(family), learned, atol=1e-6, rtol=1e-5)
    save_file(kohya_state(family), tmp_path / "kohya.safetensors")
    again = load_family(str(tiny_base))
    METHODS["lora"].attach(again, settings(dora=True, start=tmp_path / "kohya.safetensors"))
    torch.testing.assert_close(prediction(again), learned, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("change", [{"words": ("<other>",)}, {"num_vectors": 3}])
@pytest.mark.parametrize("method", WORDS)
def test_another_word_than_the_files_is_told(
    method: str, change: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    files, _ = learned_files(method, tiny_base, tmp_path, num_vectors=2)
    with pytest.raises(UserError, match=r"subject.identifier: '<other>'.*'<sks>'|method.num_vectors: 3, but .* has 2"):
        METHODS[method].attach(load_family(str(tiny_base)), settings(**{"num_vectors": 2, **change}, start=files))


def test_a_file_that_adapts_more_than_the_base_has_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """diffusers loads the rest and says nothing."""
    files, _ = learned_files("lora", tiny_base, tmp_path)
    tensors = load_file(files / LORA_FILE)
    module = next(name for name in tensors if name.startswith("unet.") and ".lora_A" in name).split(".lora_A")[0]
    more = {
        f"unet.nowhere.to_q.{half}": tensors[f"{module}.{half}"].clone() for half in ("lora_A.weight", "lora_B.weight")
    }
    save_file({**tensors, **more}, tmp_path / "more.safetensors")
    num_modules = sum(".lora_A" in name for name in tensors)
    with pytest.raises(ModelError, match=f"adapts {num_modules + 1} modules, of which this base has {num_modules}"):
        METHODS["lora"].attach(load_family(str(tiny_base)), settings(start=tmp_path / "more.safetensors"))


@pytest.mark.parametrize("names", ["diffusers", "kohya"])
@pytest.mark.parametrize("other", ["checkpoints/toyworld", "xl"])
def test_a_start_of_another_base_exits_with_3_and_writes_nothing(
    names: str, other: str, tiny_base: Path, tiny_xl_base: Path, config_file: Path, tmp_path: Path
) -> None:
    family = load_family(str(tiny_xl_base if other == "xl" else other))
    METHODS["lora"].attach(family, settings())
    adapter_files.save_lora(family, tmp_path / "files")
    path = tmp_path / "files" / LORA_FILE
    if names == "kohya":
        save_file(kohya_state(family), path)
    overrides = ["method.name=lora", "method.rank=2", "method.targets=[attention,convolutions]"]
    assert main(["train", str(config_file), *overrides, f"method.start={path}"]) == 3
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.name=lora", "method.start=nowhere"], "method.start=nowhere: no such file"),
        (["method.name=full", "method.start=nowhere"], "method.start: full starts from model.base"),
        (["method.name=pivotal", "subject.identifier=<sks>", "method.start={file}"], "is a file; pivotal starts"),
        (["method.name=loha", "method.start={run}"], "was trained with lora, not loha"),
        (["method.name=loha", "method.start={base}"], ": no result of loha"),
    ],
)
def test_what_cannot_be_a_start_is_told(
    overrides: list[str], message: str, config_file: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(config_file, "lora", "train.max_steps=1", "validate.every_steps=0", "prior.source=none")
    names = {"run": run.path, "base": tiny_base, "file": run.model / LORA_FILE}
    filled = [each.format(**names) for each in overrides]
    assert main(["train", str(config_file), "run.name=second", *filled]) == 2
    assert message in capsys.readouterr().err
    assert not run.path.with_name("second").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "pivotal"])
def test_a_run_goes_on_from_another_runs_result(method: str, config_file: Path) -> None:
    """At step 0 it draws what the other drew at its end, and it ends elsewhere."""
    quick = ["validate.keep_best=false", "validate.every_steps=2", "prior.source=teacher"]
    first = run_with(config_file, method, *quick)
    start = f"method.start={first.path}"
    second = run_with(config_file, method, *quick, start, "run.name=second", "train.max_steps=2")
    assert drawn(second, "step-000000") == drawn(first, "step-000004")
    assert drawn(second, "step-000002") != drawn(second, "step-000000")
    assert not torch.equal(latents_of(second), latents_of(first))


def drawn(run: RunFolder, name: str) -> list[bytes]:
    """Return the images of a grid, without what is written beside them."""
    with Image.open(run.samples / f"{name}.png") as sheet:
        return [image.tobytes() for image in cut(sheet, side=64)]


def test_a_run_whose_start_has_changed_is_not_resumed(config_file: Path, tmp_path: Path) -> None:
    run = run_with(config_file, "lora", "validate.every_steps=0", "prior.source=none")
    path = Path(shutil.copy(run.model / LORA_FILE, tmp_path / "start.safetensors"))
    overrides = ["run.name=second", f"method.start={path}", "validate.every_steps=0", "prior.source=none"]
    run_with(config_file, "lora", *overrides, "train.max_steps=1")
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match=r"start: changed .since this run was started"):
        run_with(config_file, "lora", *overrides)


def test_a_start_of_a_base_with_other_weights_is_told(
    config_file: Path, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_with(config_file, "lora", "validate.every_steps=0", "prior.source=none")
    family = load_family(str(tiny_base))
    with torch.no_grad():
        family.denoiser.conv_in.bias += 1
    family.pipeline().save_pretrained(tmp_path / "other")
    quick = ["validate.every_steps=0", "prior.source=none", f"method.start={run.path}"]
    caplog.clear()
    run_with(config_file, "lora", *quick, "run.name=same")
    assert "another base" not in caplog.text
    run_with(config_file, "lora", *quick, "run.name=second", f"model.base={tmp_path / 'other'}")
    assert f"was trained on another base ({tiny_base})" in caplog.text


@pytest.mark.slow
def test_scores_of_a_run_with_a_start_are_measured_against_the_untouched_base(config_file: Path) -> None:
    encoders = Path("checkpoints/toyworld-encoders")
    measured = [f"validate.dino={encoders / 'vit'}", f"validate.clip={encoders / 'clip'}", "prior.source=none"]
    first = run_with(config_file, "lora", *measured, "optim.lr=0.1")
    second = run_with(config_file, "lora", *measured, f"method.start={first.path}", "run.name=second")
    assert drawn(second, "base") == drawn(first, "step-000000")
    anchors = [ValidationLog(run.scores, last_step=4).anchors for run in (first, second)]
    assert anchors[0] is not None
    assert anchors[0] == anchors[1]
    assert ValidationLog(second.scores, last_step=4).entries[0].metrics()["eval/drift"] > 0
