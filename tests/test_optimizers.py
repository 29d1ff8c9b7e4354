"""Optimizers beside AdamW: what each keeps of a weight, and runs that go on with the same bits."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crashes import assert_equal
from safetensors.torch import load_file
from torch import nn

from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.methods import FACTS, default_lr
from dreambooth.run.cleaning import weights_of
from dreambooth.run.folder import RunFolder
from dreambooth.training.average import ScheduleFreeAverage, WeightAverage
from dreambooth.training.optimizer import OptimSettings, make_optimizer
from dreambooth.training.optimizers import OPTIMIZERS

NAMES = ["adafactor", "prodigy", "schedulefree"]


def require(name: str) -> None:
    package = OPTIMIZERS[name].package
    if package is not None:
        pytest.importorskip(package[0])


def stepped(name: str, num_steps: int = 1) -> tuple[nn.Module, Any]:
    """Return a network, and its optimizer after some steps."""
    require(name)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 64))
    optimizer, _ = make_optimizer({"denoiser": network}, OptimSettings(0.01, 0.01, name), False, lambda: False)
    for _ in range(num_steps):
        optimizer.zero_grad()
        network(torch.randn(2, 3, 3, 3)).square().mean().backward()
        optimizer.step()
    return network, optimizer


@pytest.mark.parametrize("name", ["adamw", *NAMES])
def test_a_plan_counts_the_bytes_that_an_optimizer_keeps(name: str) -> None:
    network, optimizer = stepped(name)
    tensors = [each for own in optimizer.state.values() for each in own.values() if torch.is_tensor(each)]
    kept = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.ndim)
    assert kept == sum(map(OPTIMIZERS[name].state_bytes, network.parameters()))


def test_the_average_of_a_schedule_free_optimizer_comes_and_goes_without_a_bit_changed() -> None:
    network, optimizer = stepped("schedulefree", 3)
    before = [weight.detach().clone() for weight in network.parameters()]
    average = ScheduleFreeAverage(lambda: list(network.parameters()), optimizer)
    with average.applied():
        averaged = [weight.detach().clone() for weight in network.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))
    optimizer.eval()
    for ours, theirs in zip(averaged, network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not all(torch.equal(one, other) for one, other in zip(before, averaged, strict=True))


def test_an_average_goes_on_where_the_weights_are() -> None:
    """As on a GPU, where a state is loaded before Lightning tells the module its device."""
    saved: dict[str, Any] = {}
    WeightAverage(lambda: [torch.ones(3)], 0.5).save(saved)
    elsewhere = [torch.ones(3, device="meta")]
    average = WeightAverage(lambda: elsewhere, 0.5)
    average.load(saved)
    average.update()
    average.save(saved)
    assert [each.device.type for each in saved["average"]["shadow_params"]] == ["meta"]


@pytest.fixture
def run(config_file: Path) -> Callable[..., RunFolder]:
    def run(name: str, *settings: str) -> RunFolder:
        quick = ["method.name=lora", "method.rank=2", "prior.source=none", "train.save_every_steps=2"]
        shown = ["train.max_steps=4", "validate.every_steps=2", "validate.num_images=1", "optim.schedule=constant"]
        rate = ["optim.lr=null", "optim.warmup_steps=1"]
        config = load_config(config_file, [*quick, *shown, *rate, f"run.name={name}", *settings])
        assert train(config) == 0
        return RunFolder(config)

    return run


@pytest.mark.parametrize(
    "name",
    [pytest.param("adafactor", marks=pytest.mark.slow), pytest.param("prodigy", marks=pytest.mark.slow), NAMES[2]],
)
def test_a_run_that_goes_on_has_the_bits_of_one_that_never_stopped(name: str, run: Callable[..., RunFolder]) -> None:
    require(name)
    whole = run("whole", f"optim.name={name}")
    run("half", f"optim.name={name}", "train.max_steps=2")
    half = run("half", f"optim.name={name}")
    assert whole.metrics.read_text() == half.metrics.read_text()
    assert_equal(*(torch.load(each.state, weights_only=True) for each in (whole, half)), "last.ckpt")
    for path in sorted(whole.model.glob("*.safetensors")):
        assert_equal(load_file(path), load_file(half.model / path.name.replace("whole", "half")), path.name)


def test_validations_change_nothing_in_a_schedule_free_run_and_its_model_is_the_average(
    run: Callable[..., RunFolder],
) -> None:
    require("schedulefree")
    shown = run("shown", "optim.name=schedulefree", "validate.keep_weights=true", "validate.keep_best=false")
    silent = run("silent", "optim.name=schedulefree", "validate.every_steps=0")
    states = [torch.load(each.state, weights_only=True) for each in (shown, silent)]
    assert_equal(states[0]["state_dict"], states[1]["state_dict"], "weights")
    assert_equal(load_file(shown.model / "shown.safetensors"), load_file(silent.model / "silent.safetensors"), "model")
    validated = torch.load(shown.steps / "000004.ckpt", weights_only=True)["state_dict"]
    trained = {name.removeprefix("trained."): weight for name, weight in states[0]["state_dict"].items()}
    assert any(not torch.equal(weight, trained[name]) for name, weight in validated.items())
    assert_equal(weights_of(states[0]), validated, "last.ckpt, as validations look at it")


def test_the_rate_of_the_first_step_is_the_one_that_the_optimizer_wants(run: Callable[..., RunFolder]) -> None:
    require("prodigy")
    rows = list(csv.DictReader(run("rated", "optim.name=prodigy", "optim.warmup_steps=0").metrics.open()))
    assert {float(row["optim/lr"]) for row in rows if row["optim/lr"]} == {1.0}
    assert default_lr("lora", "schedulefree") == 2 * default_lr("lora", "adamw") == 2 * FACTS["lora"].lr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["optim.name=prodigy", "optim.text_encoder_lr=1e-5"], "optim.text_encoder_lr: 1e-05, but prodigy takes one"),
        (["optim.name=prodigy", "optim.text_encoder_stop_step=2"], "optim.text_encoder_stop_step: 2, but prodigy"),
        (["optim.name=schedulefree", "optim.schedule=cosine"], "optim.schedule: cosine, but schedulefree averages"),
        (["optim.name=schedulefree", "optim.schedule=constant", "train.ema_decay=0.9"], "set it to 0"),
        (["optim.name=schedulefree", "optim.schedule=constant", "optim.beta1=0"], "schedulefree divides by it"),
        (["optim.name=adafactor", "optim.beta1=0.8"], "optim.beta1: 0.8, but adafactor keeps no mean gradient"),
        (
            ["optim.name=prodigy", "optim.in_backward=true", "optim.max_grad_norm=0"],
            "optim.in_backward: True, but prodigy takes the gradients of all weights together; set it to False",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_an_optimizer_does_not_take_is_refused_by_name(settings: list[str], said: str, config_file: Path) -> None:
    with pytest.raises(UserError, match=said):
        load_config(config_file, settings)
