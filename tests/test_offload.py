"""Frozen weights that stay in main memory until they compute: the same bits, and few at a time on the device.

On a CPU the device's copy is a second one in main memory; what waits for a copy on its way is not seen here.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CONFIG
from crashes import assert_equal
from diffusers import ZImageTransformer2DModel
from torch import nn

from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.families import load_family
from dreambooth.families.offload import Offload, blocks_of, frozen_weights, offload
from dreambooth.methods import find_method
from dreambooth.methods.base import MethodSettings
from dreambooth.run.folder import RunFolder

CPU = torch.device("cpu")


class Block(nn.Module):
    """A linear layer that does not train, beside one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.frozen(x) + self.trained(x))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(5)))


def is_there(block: nn.Module) -> bool:
    return bool(block.frozen.weight.untyped_storage().nbytes() == 8 * 8 * 4)


@pytest.mark.parametrize(("ahead", "at_once"), [(True, 2), (False, 1)], ids=["ahead", "alone"])
def test_few_blocks_are_on_the_device_and_gradients_are_the_same_bits(ahead: bool, at_once: int) -> None:
    plain, streamed = network(), network()
    Offload(list(streamed), CPU, ahead)
    seen: list[list[int]] = []
    for block in streamed:
        block.trained.register_forward_hook(
            lambda *_: seen.append([number for number, each in enumerate(streamed) if is_there(each)])
        )
    x = torch.randn(3, 8)
    outputs = [each(x) for each in (plain, streamed)]
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(*outputs)
    for one, other in zip(plain, streamed, strict=True):
        assert torch.equal(one.trained.weight.grad, other.trained.weight.grad)
    assert len(seen) == 5
    assert all(number in there for number, there in enumerate(seen))
    assert max(map(len, seen)) == at_once
    assert sum(map(is_there, streamed)) == 1, "after backward the first block alone"


def test_a_weight_that_is_away_has_its_shape_and_no_numbers() -> None:
    streamed = network()
    Offload(list(streamed), CPU, ahead=False)
    away = streamed[0].frozen.weight
    assert away.shape == (8, 8)
    assert bool(away.isnan().all())


QUICK = [
    "method.name=lora", "method.rank=2", "subject.identifier=sks", "train.max_steps=2", "optim.warmup_steps=0",
    "train.gradient_checkpointing=true", "validate.every_steps=2", "validate.num_images=1",
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, pictures: Path) -> Callable[..., RunFolder]:
    def run(base: Path, name: str, *settings: str) -> RunFolder:
        path = tmp_path / "config.yaml"
        path.write_text(CONFIG.format(runs=tmp_path / "runs", base=base, pictures=pictures))
        config = load_config(path, [*QUICK, f"run.name={name}", *settings])
        assert train(config) == 0
        return RunFolder(config)

    return run


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        pytest.param("sd", (), marks=pytest.mark.slow),
        ("z_image", ("model.quantize=int8", "prior.source=teacher")),
        pytest.param("flux2_klein", (), marks=pytest.mark.slow),
    ],
    ids=["sd", "z_image", "flux2_klein"],
)
def test_a_run_has_the_same_bits_wherever_its_frozen_weights_wait(
    base: str,
    settings: tuple[str, ...],
    run: Callable[..., RunFolder],
    tiny_base: Path,
    flow_base: Callable[[str], Path],
) -> None:
    folder = tiny_base if base == "sd" else flow_base(base)
    plain, *others = (run(folder, how, f"train.offload={how}", *settings) for how in ("none", "parts", "blocks"))
    for other in others:
        assert plain.metrics.read_text() == other.metrics.read_text()
        assert_equal(*(torch.load(each.state, weights_only=True) for each in (plain, other)), "last.ckpt")
        for path in plain.samples.iterdir():
            assert path.read_bytes() == (other.samples / path.name).read_bytes()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("flux2_klein", "qwen_image", "krea2", "flux1", "sd3")]


@pytest.mark.parametrize("base", ["sd", "z_image", *SLOW])
def test_all_that_is_in_blocks_waits_and_a_state_dict_has_it_all_the_same(
    base: str, tiny_base: Path, flow_base: Callable[[str], Path]
) -> None:
    family = load_family(str(tiny_base if base == "sd" else flow_base(base)))
    find_method("lora").attach(family, MethodSettings(rank=1))
    network, blocks = family.denoiser, blocks_of(family.denoiser)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    waiting = {id(weight) for block in blocks for weight in frozen_weights(block)}
    offload(family, "blocks", CPU)
    for weight in network.parameters():
        assert (weight.untyped_storage().nbytes() <= 4) == (id(weight) in waiting and weight.numel() > 0)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_the_blocks_hold_nearly_all_that_a_denoiser_of_real_size_has() -> None:
    with torch.device("meta"):
        network = ZImageTransformer2DModel()
    in_blocks = sum(weight.numel() for block in blocks_of(network) for weight in block.parameters())
    assert in_blocks > 0.98 * sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.offload=blocks"], "train.offload: blocks, without train.gradient_checkpointing backward keeps"),
        (["train.offload=parts", "method.name=full"], "train.offload: full trains all weights"),
        (["train.offload=parts", "train.compile=true"], "train.compile: a compiled network knows no weights that come"),
        (["train.offload=parts", "train.devices=2"], "train.offload: is for one process"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_wait_in_main_memory_is_refused_by_name(settings: list[str], said: str, config_file: Path) -> None:
    with pytest.raises(UserError, match=said):
        load_config(config_file, ["method.name=lora", *settings])
