"""`plan`: what it foretells is what a step with numbers takes, what it advises takes less, and nothing is written."""

import itertools
import re
from pathlib import Path

import pytest

from dreambooth.cli import main
from dreambooth.config import Config, load_config
from dreambooth.config.rules import joint_problems
from dreambooth.preflight.memory_plan import (
    GIB,
    SAVINGS,
    Planner,
    applies,
    device_memory,
    num_bytes,
    score_weights,
    with_changes,
    with_savings,
)

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
QUICK = {  # each change and each method; the other cells are slow
    ("prior.source=stream", "full"),
    ("train.gradient_checkpointing=true", "pivotal"),
    ("train.micro_batch_size=1", "pivotal"),
    ("optim.in_backward=true", "full"),
}


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
    foretold, found = (Planner(config, fake=fake).need(config) for fake in (True, False))
    assert foretold.step == pytest.approx(found.step, rel=0.02)
    assert foretold.step > 0


def test_a_validation_without_numbers_takes_what_one_with_numbers_does(config_file: Path) -> None:
    config = config_of(config_file, "pivotal")
    foretold, found = (Planner(config, fake=fake).peak_of_validation(config) for fake in (True, False))
    assert foretold == pytest.approx(found, rel=0.02)
    assert foretold > 0


def planner_of(config: Config) -> Planner:
    """Return one that goes through a step with numbers, which is far faster at this size and takes the same."""
    return Planner(config, fake=False)


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
    """Of pictures this small there is most in a step when backward is done: gradients, and no activations any more."""
    config = config_of(config_file, "full", "validate.every_steps=0", "data.resolution=16", "prior.source=none")
    advised = [change.split("=")[0] for change, _, _ in with_savings(planner_of(config), config)]
    assert advised == ["as configured", "+ optim.name", "+ optim.in_backward", "+ train.gradient_checkpointing"]


def test_the_encoders_of_the_scores_are_counted_where_a_run_validates() -> None:
    config = load_config(
        ROOT / "configs" / "toyworld.yaml", [f"model.base={ROOT / 'checkpoints' / 'toyworld'}", *ENCODERS]
    )
    files = [Path(name) / "model.safetensors" for name in (str(config.validate.dino), str(config.validate.clip))]
    weights = score_weights(config)
    assert num_bytes(weights) == pytest.approx(2 * sum(file.stat().st_size for file in files), rel=0.05), "from float16"
    config.validate.every_steps = 0
    assert score_weights(config) == []
