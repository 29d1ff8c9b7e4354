"""Files that peft itself wrote: as strong as peft has them, of the UNet or a text encoder, and a start of training."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import Tensor

from dreambooth.errors import ModelError
from dreambooth.families import Family, components, load_family
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.models.reference import LoraRef, ModelRef
from dreambooth.methods import adapters, lora_files
from dreambooth.methods.base import MethodSettings
from dreambooth.methods.table import METHODS

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
WITH_CONVOLUTIONS = [*ATTENTION, "conv1"]
PATTERNS = {"rank_pattern": {"attn1.to_q": 2}, "alpha_pattern": {r"attn\d.to_k": 24, "down_blocks.*to_q": 6}}
CONFIGS = {
    "lora": LoraConfig(r=4, lora_alpha=16, target_modules=WITH_CONVOLUTIONS),
    "lora-stabilized": LoraConfig(r=4, lora_alpha=16, use_rslora=True, target_modules=ATTENTION, **PATTERNS),
    "lora-patterns": LoraConfig(r=4, lora_alpha=16, target_modules=ATTENTION, **PATTERNS),
    "lora-dora": LoraConfig(r=4, lora_alpha=16, use_dora=True, target_modules=ATTENTION),
    "loha": LoHaConfig(r=4, alpha=16, target_modules=WITH_CONVOLUTIONS),
    "loha-patterns": LoHaConfig(r=4, alpha=16, target_modules=ATTENTION, **PATTERNS),
    "lokr": LoKrConfig(r=4, alpha=16, target_modules=WITH_CONVOLUTIONS),
    "lokr-patterns": LoKrConfig(r=4, alpha=16, target_modules=ATTENTION, **PATTERNS),
    "lokr-whole": LoKrConfig(r=64, alpha=16, target_modules=ATTENTION, rank_pattern={"to_q": 128}),
}
LORA = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"])
WEIGHTS = "adapter_model.safetensors"


def written(network: torch.nn.Module, config: object, folder: Path) -> dict[str, Tensor]:
    """Let peft write an adapter that has learned something, and return the weights with which peft merges it."""
    model = get_peft_model(copy.deepcopy(network), copy.deepcopy(config))  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws)
    model.save_pretrained(folder)
    return dict(model.merge_and_unload().state_dict())


def assert_merged(family: Family, part: str, expected: dict[str, Tensor], tiny_base: Path) -> None:
    torch.testing.assert_close(dict(components(family)[part].state_dict()), expected, atol=1e-5, rtol=1e-5)
    before = components(load_family(str(tiny_base)))[part].state_dict()
    assert sum(not torch.equal(before[name], expected[name]) for name in before) > 1


@pytest.mark.parametrize("kind", CONFIGS)
def test_pefts_own_folder_is_as_strong_as_peft_merges_it(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    expected = written(load_family(str(tiny_base)).denoiser, CONFIGS[kind], tmp_path)
    found = load_model(ModelRef(str(tiny_base), loras=(LoraRef(str(tmp_path)),)), "cpu")
    assert_merged(found.family, "unet", expected, tiny_base)


@pytest.mark.parametrize("kind", ["lora", "lora-dora", "loha", "lokr"])
def test_training_starts_where_pefts_own_folder_ended(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIGS[kind])
    config.target_modules = set(ATTENTION)
    family = load_family(str(tiny_base))
    expected = written(family.denoiser, config, tmp_path)
    shared = {"targets": ("attention",), "train_text_encoder": False, "dora": kind == "lora-dora"}
    settings = MethodSettings(rank=4, alpha=16.0, start=tmp_path, **shared)  # type: ignore[arg-type]
    METHODS[kind.split("-")[0]].attach(family, settings)
    adapters.merge(family)
    assert_merged(family, "unet", expected, tiny_base)


def test_pefts_own_folder_of_the_text_encoder_is_read(tiny_base: Path, tmp_path: Path) -> None:
    expected = written(load_family(str(tiny_base)).text_encoders[0], LORA, tmp_path)
    found = load_model(ModelRef(str(tiny_base), loras=(LoraRef(str(tmp_path / WEIGHTS)),)), "cpu")
    assert_merged(found.family, "text_encoder", expected, tiny_base)


def test_pefts_own_folder_of_one_of_two_text_encoders_is_refused(tiny_xl_base: Path, tmp_path: Path) -> None:
    family = load_family(str(tiny_xl_base))
    written(family.text_encoders[1], LORA, tmp_path)
    message = r"adapts .*q_proj of a text encoder, .* in 2; write text_encoder\. or text_encoder_2\. before its names"
    with pytest.raises(ModelError, match=message):
        lora_files.apply(family, tmp_path / WEIGHTS)


def test_a_file_of_peft_without_its_config_is_warned_of(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = load_family(str(tiny_base))
    written(family.denoiser, CONFIGS["lora"], tmp_path / "peft")
    lora_files.apply(family, Path(shutil.move(tmp_path / "peft" / WEIGHTS, tmp_path / "dog.safetensors")))
    assert [record.message for record in caplog.records if "dog.safetensors" in record.message] == [
        f"{tmp_path}/dog.safetensors: is of peft, which keeps alpha in adapter_config.json, and there is none beside "
        "it; its scale is taken as 1"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "cannot be read as peft's config"),
        ({"lora_alpha": None}, "cannot be read as peft's config"),
        ({"r": 0}, "the rank must be at least 1"),
        ({"alpha_pattern": {"(": 1}}, "cannot be read as peft's config"),
        ({"init_lora_weights": "pissa_niter_4"}, "has changed the base's weights too"),
    ],
)
def test_a_config_that_says_no_strength_is_refused(
    changes: dict[str, object] | None, message: str, tiny_base: Path, tmp_path: Path
) -> None:
    family = load_family(str(tiny_base))
    written(family.denoiser, CONFIGS["lora"], tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text("{" if changes is None else json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        lora_files.apply(family, tmp_path / WEIGHTS)
