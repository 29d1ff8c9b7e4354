"""Files of adapters: each dialect, read by its own rules, gives the trained weights, and can be started from."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth.errors import ModelError, UserError
from dreambooth.export.adapter import kohya_state
from dreambooth.families import Family, ModelSource, components, load_family
from dreambooth.methods import adapters, lora_files
from dreambooth.methods.adapters import LORA_FILE
from dreambooth.methods.base import MethodSettings
from dreambooth.methods.table import METHODS

BASES = ("tiny_base", "tiny_base_v", "tiny_xl_base")
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


def merged_weights(base: Path, kind: str) -> dict[str, dict[str, Tensor]]:
    family = trained(base, kind)
    adapters.merge(family)
    return {name: part.state_dict() for name, part in components(family).items()}


def write_peft_names(family: Family, path: Path) -> None:
    adapters.save_lora(family, path.parent, file=path.name)


def write_kohya_names(family: Family, path: Path) -> None:
    save_file(kohya_state(family), path, metadata=adapters.stated_alpha(family))


WRITERS = {"peft": write_peft_names, "kohya": write_kohya_names}
Write = Callable[[Family, Path], None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base_name", BASES)
@pytest.mark.parametrize("dialect", WRITERS)
def test_each_dialect_read_by_its_own_rules_gives_the_trained_weights(
    dialect: str, base_name: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if dialect == "peft" and not kind.startswith("lora"):
        return
    base = request.getfixturevalue(base_name)
    WRITERS[dialect](trained(base, kind), tmp_path / "a.safetensors")
    reader, expected = load_family(ModelSource(str(base))), merged_weights(base, kind)
    lora_files.apply(reader, tmp_path / "a.safetensors")
    for name, part in components(reader).items():
        torch.testing.assert_close(dict(part.state_dict()), dict(expected[name]), atol=1e-6, rtol=1e-5)
    moved = [name for name, tensor in load_family(ModelSource(str(base))).denoiser.state_dict().items()
             if not torch.equal(tensor, expected["unet"][name])]  # fmt: skip
    assert len(moved) > 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dialect", WRITERS)
def test_training_can_start_from_each_dialect_where_it_ended(
    dialect: str, kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    """Also where strength went into the matrices: the file states the alpha that they were trained with."""
    if dialect == "peft" and not kind.startswith("lora"):
        return
    WRITERS[dialect](trained(tiny_base, kind), tmp_path / "a.safetensors")
    family = load_family(ModelSource(str(tiny_base)))
    METHODS[kind.split("-")[0]].attach(family, settings(**KINDS[kind], start=tmp_path / "a.safetensors"))
    adapters.merge(family)
    for name, expected in merged_weights(tiny_base, kind).items():
        torch.testing.assert_close(dict(components(family)[name].state_dict()), dict(expected), atol=1e-6, rtol=1e-5)


def test_a_lora_of_peft_names_needs_no_metadata_to_have_its_strength(tiny_base: Path, tmp_path: Path) -> None:
    """diffusers before 0.35 reads none, and peft before 0.21 refuses the config of today's."""
    adapters.save_lora(trained(tiny_base, "lora"), tmp_path)
    tensors = load_file(tmp_path / LORA_FILE)
    save_file(tensors, tmp_path / "bare.safetensors")
    family = load_family(ModelSource(str(tiny_base)))
    family.pipeline().load_lora_weights(tmp_path, weight_name="bare.safetensors", adapter_name="default")
    adapters.merge(family)
    expected = merged_weights(tiny_base, "lora")["unet"]
    torch.testing.assert_close(dict(family.denoiser.state_dict()), dict(expected), atol=1e-6, rtol=1e-5)


def test_a_lora_of_earlier_versions_has_its_alpha_in_pefts_config(tiny_base: Path, tmp_path: Path) -> None:
    family = trained(tiny_base, "lora")
    part = components(family)["unet"]
    tensors = {f"unet.{key}": tensor for key, tensor in adapters.adapter_state(part).items()}
    config = {f"unet.{key}": value for key, value in {"r": 2, "lora_alpha": 5.0, "alpha_pattern": {}}.items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    reader = load_family(ModelSource(str(tiny_base)))
    lora_files.apply(reader, tmp_path / "a.safetensors")
    expected = merged_weights(tiny_base, "lora")["unet"]
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
    adapters.save_lora(family, tmp_path)
    old = names_of_2023(load_file(tmp_path / LORA_FILE))
    save_file(old, tmp_path / "old.safetensors")
    again = load_family(ModelSource(str(tiny_base)))
    METHODS["lora"].attach(again, settings(**only, start=tmp_path / "old.safetensors"))
    assert len(old) == len(adapters.adapter_state(again.denoiser)) > 10


def test_modules_of_several_ranks_start_filled_up_to_the_largest(tiny_base: Path, tmp_path: Path) -> None:
    write_kohya_names(trained(tiny_base, "lora"), tmp_path / "a.safetensors")
    cut = {
        "lora_down.weight": lambda tensor: tensor[:1],
        "lora_up.weight": lambda tensor: tensor[:, :1],
        "alpha": lambda tensor: tensor / 2,
    }
    resized = {
        key: cut[key.split(".", 1)[1]](tensor).contiguous() if "down_blocks" in key else tensor
        for key, tensor in load_file(tmp_path / "a.safetensors").items()
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


def test_a_lora_of_the_text_encoder_alone_is_a_start(tiny_base: Path, tmp_path: Path) -> None:
    family = trained(tiny_base, "lora")
    tensors = {key: tensor for key, tensor in kohya_state(family).items() if key.startswith("lora_te_")}
    save_file(tensors, tmp_path / "text.safetensors")
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
