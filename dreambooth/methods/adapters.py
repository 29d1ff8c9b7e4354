"""Adapters by peft: a few trained weights beside frozen ones. Switched off, the networks are the untouched base.

lora   W + alpha / rank * B A                  Hu et al. 2021, arXiv 2106.09685; B starts at 0
       with rslora alpha / sqrt(rank)          Kalajdzievski 2023, arXiv 2312.03732
       with dora   direction and magnitude     Liu et al. 2024, arXiv 2402.09353
loha   W + (B1 A1) * (B2 A2), elementwise      Hyeon-Woo et al. 2021, arXiv 2108.06098
lokr   W + C (x) (B A), a Kronecker product    Yeh et al. 2023, arXiv 2309.14859
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from diffusers.training_utils import cast_training_params
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from dreambooth.errors import UserError
from dreambooth.families import Conditioning, Family, components, evaluation_mode
from dreambooth.families.quantization import is_quantized
from dreambooth.methods.base import MethodSettings

ADAPTER = "default"
MakeConfig = Callable[[MethodSettings, list[str]], PeftConfig]


def networks(family: Family, train_text_encoder: bool = True) -> dict[str, nn.Module]:
    """Return the networks that may train: "denoiser", "text_encoder_0" ..."""
    text_encoders = family.text_encoders if train_text_encoder else []
    return {"denoiser": family.denoiser} | {f"text_encoder_{i}": part for i, part in enumerate(text_encoders)}


def freeze(family: Family, dtype: torch.dtype) -> None:
    """Freeze every weight of the denoiser and the text encoders, and cast it to `dtype`."""
    for part in networks(family).values():
        part.requires_grad_(False).to(dtype)


def lora_config(settings: MethodSettings, targets: list[str]) -> PeftConfig:
    return LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, alpha_of(settings)),
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        target_modules=targets,
    )


def loha_config(settings: MethodSettings, targets: list[str]) -> PeftConfig:
    return LoHaConfig(
        r=settings.rank, alpha=cast(int, alpha_of(settings)), module_dropout=settings.dropout, target_modules=targets
    )


def lokr_config(settings: MethodSettings, targets: list[str]) -> PeftConfig:
    return LoKrConfig(
        r=settings.rank, alpha=cast(int, alpha_of(settings)), module_dropout=settings.dropout, target_modules=targets
    )


def alpha_of(settings: MethodSettings) -> float:
    """Return the setting's alpha, or the rank, with which the product of the matrices is added as it is."""
    return settings.rank if settings.alpha is None else settings.alpha


def attach(make_config: MakeConfig, family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    """Freeze the family and add trainable float32 matrices to the targets.

    DoRA is used in the denoiser alone: transformers 5 drops the magnitudes of a text encoder's LoRA without an error.

    Raises UserError for a target that is in none of the networks.
    """
    freeze(family, settings.base_dtype)
    trained = networks(family, settings.train_text_encoder)
    targets = find_targets(trained, settings.targets, family.target_groups)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        for name, part in trained.items():
            if targets[name]:
                dora = settings.dora and name == "denoiser"
                inject_adapter_in_model(make_config(replace(settings, dora=dora), targets[name]), part, ADAPTER)
    return prepare_trainable(trained)


def prepare_trainable(trained: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the networks with trainable weights, in training mode; those weights are cast to float32."""
    trained = {name: part for name, part in trained.items() if any(p.requires_grad for p in part.parameters())}
    for part in trained.values():
        cast_training_params(part, torch.float32)
        part.train()
    return trained


def cast_trained(family: Family, dtype: torch.dtype) -> None:
    """Cast the weights that train to `dtype`."""
    for part in networks(family).values():
        cast_training_params(part, dtype)


def find_targets(
    parts: Mapping[str, nn.Module], requested: tuple[str, ...], groups: Mapping[str, tuple[str, ...]]
) -> dict[str, list[str]]:
    """Return, by network, the full names of the linear and convolutional modules that end in a requested name.

    A group stands for the ends of names that it has. Raises UserError for a request that fits no module.
    """
    found: dict[str, list[str]] = {name: [] for name in parts}
    for name_end in requested:
        ends = groups.get(name_end, (name_end,))
        matching = {name: adaptable(part, ends) for name, part in parts.items()}
        if not any(matching.values()):
            examples = ", ".join(adaptable(next(iter(parts.values())), None)[:3])
            raise UserError(
                f"method.targets: no module's name ends in {name_end!r}; groups are {', '.join(groups)}; names are "
                f"like {examples}"
            )
        for name, names in matching.items():
            found[name] += [each for each in names if each not in found[name]]
    return found


def adaptable(part: nn.Module, ends: tuple[str, ...] | None) -> list[str]:
    """Return full names of the linear and convolutional modules that end in one of `ends`; None: of all."""
    names = [name for name, module in part.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return names if ends is None else [name for name in names if ends_in(name, ends)]


def ends_in(name: str, ends: tuple[str, ...]) -> bool:
    """Return whether a name ends in one of these, by whole parts; * stands for any number of a list's."""
    return any(fnmatchcase(f".{name}", f"*.{end}") for end in ends)


# -------------------------------------------------------------------------------- the frozen base


@contextlib.contextmanager
def adapters_off(family: Family) -> Iterator[None]:
    """Switch the adapters off in this block: the networks compute what the untouched base does."""
    layers = adapted_layers(family)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapted_layers(family: Family) -> list[Any]:
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [layer for part in networks(family).values() for layer in part.modules() if isinstance(layer, kinds)]


class _FrozenBase:
    """A family that computes with its adapters off and out of training mode; all else is the family's own."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        with adapters_off(self._family), evaluation_mode(self._family):
            return self._family.encode_prompts(prompts)

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        with adapters_off(self._family), evaluation_mode(self._family):
            return self._family.predict(noisy_BCHW, t_B, conditioning)


def frozen_base(family: Family) -> Family:
    """Return the untouched base without a second copy of it: the same networks with their adapters off."""
    return cast(Family, _FrozenBase(family))


@torch.no_grad()
def merge(family: Family) -> None:
    """Merge the adapters into the weights, which are not quantized, and remove them: a plain model is left."""
    assert not any(map(is_quantized, networks(family).values())), "nothing can be written into quantized weights"
    for layer in adapted_layers(family):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
    unload_adapters(family)


def unload_adapters(family: Family) -> None:
    """Remove the adapters, merged or not."""
    for part in networks(family).values():
        vars(part).pop("peft_config", None)  # transformers would look for the adapter when it saves
        vars(part).pop("_hf_peft_config_loaded", None)
        for name, layer in list(part.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                part.set_submodule(name, layer.get_base_layer())
            elif isinstance(layer, AuxiliaryTrainingWrapper):
                part.set_submodule(name, cast(Any, layer).modules_to_save[ADAPTER])


# -------------------------------------------------------------------------------- what they hold


def adapter_state(part: nn.Module) -> dict[str, Tensor]:
    state = get_peft_model_state_dict(part, adapter_name=ADAPTER, save_embedding_layers=False)
    return {key: tensor.contiguous() for key, tensor in state.items()}


def adapted_components(family: Family, kind: type[PeftConfig] = PeftConfig) -> dict[str, Any]:
    """Return the networks that have adapters of this kind, by their names in the pipeline."""
    parts: dict[str, Any] = components(family)
    return {
        name: part
        for name, part in parts.items()
        if hasattr(part, "peft_config") and isinstance(part.peft_config[ADAPTER], kind)
    }
