"""Files of adapters: each dialect, read by its own rules, gives the trained weights, and can be started from."""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth.errors import ModelError, UserError
from dreambooth.exporting.adapter import kohya_state
from dreambooth.families import Family, ModelSource, components, load_family
from dreambooth.methods import adapter_files, adapters, lora_files
from dreambooth.methods.adapter_files import LORA_FILE
from dreambooth.methods.base import MethodSettings
from dreambooth.methods.table import METHODS

KINDS = {
    "lora": {"alpha": 5.0},
    "lora-rslora": {"rslora": True},
    "lora-dora": {"dora": True},
    "loha": {"alpha": 1.0},
    "lokr": {"alpha": 1.0},
    "lokr-whole": {"alpha": 3.0, "rank": 64},
}


def settings(**changes: object) -> MethodSettings:
    return MethodSettings(**({"rank": 2, "targets": ("attention", "feed-forward", "convolutions")} | changes))  # type: ignore[arg-type]


def trained(base: Path, kind: str) -> Family:
    """Return a family whose adapter has learned something."""
    family = load_family(ModelSource(str(base)))
    method = METHODS[kind.split("-")[0]]
    generator = torch.Generator().manual_seed(1)
    for part in method.attach(family, settings(**KINDS[kind])).values():
        part.eval()
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return family


def write_peft_names(family: Family, path: Path) -> None:
    adapter_files.save_lora(family, path.parent, file=path.name)


def write_kohya_names(family: Family, path: Path) -> None:
    save_file(kohya_state(family), path, metadata=adapter_files.stated_alpha(family))


WRITERS = {"peft": write_peft_names, "kohya": write_kohya_names}
CELLS = [("peft", kind) for kind in KINDS if kind.startswith("lora")] + [("kohya", kind) for kind in KINDS]
QUICK = {"tiny_base": set(KINDS), "tiny_base_v": {"lora-dora", "loha"}, "tiny_xl_base": {"lora", "lokr"}}


@dataclass(frozen=True)
class Learned:
    """Hold an adapter's file in each dialect, and the weights of base and adapter merged."""

    files: dict[str, Path]
    weights: dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Learned]:
    """Return what a kind of adapter has learned on a base, made once for all cells."""

    @functools.cache
    def learn(base: Path, kind: str) -> Learned:
        folder, family, files = tmp_path_factory.mktemp(kind), trained(base, kind), {}
        for dialect in (dialect for dialect, each in CELLS if each == kind):
            files[dialect] = folder / f"{dialect}.safetensors"
            WRITERS[dialect](family, files[dialect])
        adapters.merge(family)
        return Learned(files, {name: part.state_dict() for name, part in components(family).items()})

    return learn


Learn = Callable[[Path, str], Learned]


@functools.cache
def untouched_unet(base: Path) -> dict[str, Tensor]:
    return load_family(ModelSource(str(base))).denoiser.state_dict()


@pytest.mark.parametrize(
    ("base_name", "kind", "dialect"),
    [
        pytest.param(base, kind, dialect, marks=() if kind in kinds else pytest.mark.slow)
        for base, kinds in QUICK.items()
        for dialect, kind in CELLS
    ],
)
def test_each_dialect_read_by_its_own_rules_gives_the_trained_weights(
    dialect: str, base_name: str, kind: str, request: pytest.FixtureRequest, learned: Learn
) -> None:
    base = request.getfixturevalue(base_name)
    expected, reader = learned(base, kind), load_family(ModelSource(str(base)))
    lora_files.apply(reader, expected.files[dialect])
    for name, part in components(reader).items():
        torch.testing.assert_close(dict(part.state_dict()), dict(expected.weights[name]), atol=1e-6, rtol=1e-5)
    moved = [
        name for name, tensor in untouched_unet(base).items() if not torch.equal(tensor, expected.weights["unet"][name])
    ]
    assert len(moved) > 10


@pytest.mark.parametrize(("dialect", "kind"), CELLS)
def test_training_can_start_from_each_dialect_where_it_ended(
    dialect: str, kind: str, tiny_base: Path, learned: Learn
) -> None:
    """Also where strength went into the matrices: the file states the alpha that they were trained with."""
    expected, family = learned(tiny_base, kind), load_family(ModelSource(str(tiny_base)))
    METHODS[kind.split("-")[0]].attach(family, settings(**KINDS[kind], start=expected.files[dialect]))
    adapters.merge(family)
    for name, weights in expected.weights.items():
        torch.testing.assert_close(dict(components(family)[name].state_dict()), dict(weights), atol=1e-6, rtol=1e-5)


def test_a_lora_of_peft_names_needs_no_metadata_to_have_its_strength(
    tiny_base: Path, learned: Learn, tmp_path: Path
) -> None:
    """diffusers before 0.35 reads none, and peft before 0.21 refuses the config of today's."""
    save_file(load_file(learned(tiny_base, "lora").files["peft"]), tmp_path / "bare.safetensors")
    family = load_family(ModelSource(str(tiny_base)))
    family.pipeline().load_lora_weights(tmp_path, weight_name="bare.safetensors", adapter_name="default")
    adapters.merge(family)
    expected = learned(tiny_base, "lora").weights["unet"]
    torch.testing.assert_close(dict(family.denoiser.state_dict()), dict(expected), atol=1e-6, rtol=1e-5)


def test_a_lora_of_earlier_versions_has_its_alpha_in_pefts_config(
    tiny_base: Path, learned: Learn, tmp_path: Path
) -> None:
    family = trained(tiny_base, "lora")
    part = components(family)["unet"]
    tensors = {f"unet.{key}": tensor for key, tensor in adapters.adapter_state(part).items()}
    config = {f"unet.{key}": value for key, value in {"r": 2, "lora_alpha": 5.0, "alpha_pattern": {}}.items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    reader = load_family(ModelSource(str(tiny_base)))
    lora_files.apply(reader, tmp_path / "a.safetensors")
    expected = learned(tiny_base, "lora").weights["unet"]
    torch.testing.assert_close(dict(reader.denoiser.state_dict()), dict(expected), atol=1e-6, rtol=1e-5)


def names_of_2023(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA under the names of attention processors, without the pipeline's level."""
    ends = {"A": "down", "B": "up"}
    pattern = r"unet\.(.*)\.(to_\w+?)(\.0)?\.lora_([AB])\.weight"
    found = {re.fullmatch(pattern, key): tensor for key, tensor in state.items()}
    return {f"{m[1]}.processor.{m[2]}_lora.{ends[m[4]]}.weight": tensor for m, tensor in found.items() if m is not None}


def test_training_starts_from_the_names_of_attention_processors(tiny_base: Path, tmp_path: Path) -> None:
    only = {"targets": ("attention",), "train_text_encoder": False}
    family = load_family(ModelSource(str(tiny_base)))
    METHODS["lora"].attach(family, settings(**only))
    adapter_files.save_lora(family, tmp_path)
    old = names_of_2023(load_file(tmp_path / LORA_FILE))
    save_file(old, tmp_path / "old.safetensors")
    again = load_family(ModelSource(str(tiny_base)))
    METHODS["lora"].attach(again, settings(**only, start=tmp_path / "old.safetensors"))
    assert len(old) == len(adapters.adapter_state(again.denoiser)) > 10


def test_modules_of_several_ranks_start_filled_up_to_the_largest(
    tiny_base: Path, learned: Learn, tmp_path: Path
) -> None:
    cut = {
        "lora_down.weight": lambda tensor: tensor[:1],
        "lora_up.weight": lambda tensor: tensor[:, :1],
        "alpha": lambda tensor: tensor / 2,
    }
    resized = {
        key: cut[key.split(".", 1)[1]](tensor).contiguous() if "down_blocks" in key else tensor
        for key, tensor in load_file(learned(tiny_base, "lora").files["kohya"]).items()
    }
    save_file(resized, tmp_path / "resized.safetensors")
    expected, family = (load_family(ModelSource(str(tiny_base))) for _ in range(2))
    lora_files.apply(expected, tmp_path / "resized.safetensors")
    start = tmp_path / "resized.safetensors"
    with pytest.raises(UserError, match=r"method\.rank: 1, but .* has 1, 2; set it to 2"):
        METHODS["lora"].attach(family, settings(alpha=2.5, rank=1, start=start))
    adapters.unload_adapters(family)
    METHODS["lora"].attach(family, settings(alpha=5.0, start=start))
    downs = [tensor for key, tensor in adapters.adapter_state(family.denoiser).items() if "lora_A" in key]
    assert all(bool(tensor[1].any()) for tensor in downs), "what is filled up can learn"
    adapters.merge(family)
    state = dict(expected.denoiser.state_dict())
    torch.testing.assert_close(dict(family.denoiser.state_dict()), state, atol=1e-6, rtol=1e-5)


def test_a_lora_of_the_text_encoder_alone_is_a_start(tiny_base: Path, learned: Learn, tmp_path: Path) -> None:
    tensors = load_file(learned(tiny_base, "lora").files["kohya"])
    save_file(
        {key: tensor for key, tensor in tensors.items() if key.startswith("lora_te_")}, tmp_path / "text.safetensors"
    )
    again = load_family(ModelSource(str(tiny_base)))
    METHODS["lora"].attach(again, settings(**KINDS["lora"], start=tmp_path / "text.safetensors"))
    text, unet = adapters.adapter_state(again.text_encoders[0]), adapters.adapter_state(again.denoiser)
    assert any(bool(tensor.any()) for key, tensor in text.items() if "lora_B" in key)
    assert not any(bool(tensor.any()) for key, tensor in unet.items() if "lora_B" in key), "begins as a new one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"lora_unet_nowhere.lora_down.weight": torch.zeros(2, 4)},
            "of which this base has 0, and not lora_unet_nowhere",
        ),
        ({"lora_unet_conv_in.lora_down.weight": torch.zeros(2, 4, 3, 3)}, "unet.conv_in has lora_A alone"),
        ({"lora_unet_conv_in.oft_blocks": torch.zeros(2)}, "is of no LoRA, LoHa or LoKr"),
    ],
)
def test_what_is_no_whole_lora_of_this_base_is_refused(
    change: dict[str, Tensor], message: str, tiny_base: Path, tmp_path: Path
) -> None:
    save_file(change, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=message):
        lora_files.apply(load_family(ModelSource(str(tiny_base))), tmp_path / "a.safetensors")
