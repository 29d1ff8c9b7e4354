"""Start training from an adapter's files (`method.start`), instead of from an adapter that changes nothing yet.

The files say what they adapt and how strongly; the settings must say the same, or the first step would be of another
model than the file's. The base itself stays untouched.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dreambooth.errors import ModelError, UserError
from dreambooth.families import Family, components
from dreambooth.methods import adapter_files, adapters
from dreambooth.methods.adapters import ADAPTER, MakeConfig
from dreambooth.methods.base import MethodSettings

Load = Callable[[Family, Path], None]
# For each kind of adapter: the tensor that is scaled with it, and those that are zero before training.
STRENGTHS = ("lora_B", "hada_w2_a", "lokr_w1", "lokr_w1_a")
ZEROS = ("lora_B", "hada_w1_a", "hada_w2_a", "lokr_w1_a", "lokr_w2_a")


@dataclass(frozen=True)
class Learned:
    """Hold the adapters of one network: tensors by peft's names, and rank and scale of each adapted module."""

    tensors: dict[str, Tensor]
    ranks: dict[str, int]
    scales: dict[str, float]


def attach(make_config: MakeConfig, load: Load, family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    """Attach adapters as `adapters.attach` does; with settings.start they begin as its files have them.

    A network that the files do not adapt, as in a LoRA of the text encoder alone, begins as any new adapter.
    Raises UserError for settings that the files contradict, ModelError for files that are of another base.
    """
    if settings.start is None:
        return adapters.attach(make_config, family, settings)
    load(family, settings.start)
    started = unload(family)
    trained = adapters.attach(make_config, family, settings)
    own = {name: learned_by(part) for name, part in adapters.adapted_components(family).items()}
    check_settings(started, own, settings, family.target_groups)
    for name, learned in started.items():
        set_peft_model_state_dict(components(family)[name], fitted(learned, own[name]), ADAPTER)
    return trained


def unload(family: Family) -> dict[str, Learned]:
    """Return what has been loaded into a family, by the networks' names in the pipeline, and leave it untouched."""
    learned = {name: learned_by(part) for name, part in adapters.adapted_components(family).items()}
    adapters.unload_adapters(family)
    return learned


def learned_by(part: Any) -> Learned:
    """Return the adapters that a network has."""
    layers = {name: cast(Any, each) for name, each in part.named_modules() if isinstance(each, BaseTunerLayer)}
    tensors = {key: tensor.detach().clone() for key, tensor in adapters.adapter_state(part).items()}
    ranks = {name: layer.r[ADAPTER] for name, layer in layers.items()}
    return Learned(tensors, ranks, {name: layer.scaling[ADAPTER] for name, layer in layers.items()})


def fitted(started: Learned, own: Learned) -> dict[str, Tensor]:
    """Return a file's tensors for layers of these settings, which give the same change.

    The quotient of the two scales goes into the matrix that starts at zero. A smaller rank is filled up as a new
    adapter begins: one matrix of each product random, its partner zero, so that it adds nothing yet and learns.
    """
    tensors = {}
    for key, tensor in started.tensors.items():
        module, leaf = split_key(key)
        factor = started.scales[module] / own.scales[module]
        if leaf in STRENGTHS and not math.isclose(factor, 1, rel_tol=1e-12):
            tensor = tensor * factor
        if tensor.shape != own.tensors[key].shape:
            filled = torch.zeros_like(own.tensors[key]) if leaf in ZEROS else own.tensors[key].clone()
            filled[tuple(slice(size) for size in tensor.shape)] = tensor
            tensor = filled
        tensors[key] = tensor
    return tensors


def split_key(key: str) -> tuple[str, str]:
    """Split "mid_block.attentions.0.proj_in.lora_A.weight" into the module and "lora_A"."""
    module, _, leaf = key.removesuffix(".weight").rpartition(".")
    return module, leaf


# -------------------------------------------------------------------------------- settings against files


def check_settings(
    started: dict[str, Learned],
    own: dict[str, Learned],
    settings: MethodSettings,
    groups: Mapping[str, tuple[str, ...]],
) -> None:
    """Raise UserError where settings contradict the files, naming the key, its value and what the files have."""
    files = settings.start
    in_text = any(name.startswith("text_encoder") for name in started)
    if in_text != any(name.startswith("text_encoder") for name in own):
        raise UserError(
            f"method.train_text_encoder: {str(not in_text).lower()}, but {files} adapts "
            f"{'a' if in_text else 'no'} text encoder; set it to {str(in_text).lower()}"
        )
    common = {name: learned for name, learned in own.items() if name in started}
    if _modules(started) != _modules(common):
        raise UserError(
            f"method.targets: {', '.join(settings.targets)} are {len(_modules(common))} modules, {files} adapts "
            f"{len(_modules(started))}; set method.targets=[{','.join(target_names(_modules(started), groups))}]"
        )
    check_rank(started, settings)
    check_alpha(started, common, settings)
    check_tensors(started, common, settings)


def check_rank(started: dict[str, Learned], settings: MethodSettings) -> None:
    """Raise UserError where method.rank is not the largest rank of the file, to which `fitted` fills up the others."""
    ranks = {rank for learned in started.values() for rank in learned.ranks.values()} - {adapter_files.WHOLE_RANK}
    if ranks and max(ranks) != settings.rank:
        listed = ", ".join(map(str, sorted(ranks)))
        hint = f"; set it to {max(ranks)}, to which the others are filled up" if len(ranks) > 1 else ""
        raise UserError(f"method.rank: {settings.rank}, but {settings.start} has {listed}{hint}")


def check_alpha(started: dict[str, Learned], own: dict[str, Learned], settings: MethodSettings) -> None:
    """Compare with the scale that the files state or have; where it differs by module no one alpha is right."""
    assert settings.start is not None
    stated = adapter_files.stated_scale(settings.start)
    scales = {module: scale for learned in started.values() for module, scale in learned.scales.items()}
    factors = {
        f"{(stated or scales[module]) / scale:.6g}"
        for learned in own.values()
        for module, scale in learned.scales.items()
    }
    if len(factors) == 1 and not math.isclose(factor := float(*factors), 1, rel_tol=1e-3):
        alpha = adapters.alpha_of(settings)
        raise UserError(f"method.alpha: {alpha:g}, but {settings.start} has {alpha * factor:g}")


def check_tensors(started: dict[str, Learned], own: dict[str, Learned], settings: MethodSettings) -> None:
    """Raise UserError for DoRA on one side only, ModelError for tensors that do not fit."""
    for name, learned in own.items():
        different = learned.tensors.keys() ^ started[name].tensors.keys()
        if any(key.endswith("lora_magnitude_vector") for key in different):
            dora, other = str(settings.dora).lower(), str(not settings.dora).lower()
            with_or_without = "without" if settings.dora else "with"
            raise UserError(
                f"method.dora={dora}: {settings.start} was trained {with_or_without} DoRA; set method.dora={other}"
            )
        if different:
            raise ModelError(f"{settings.start}: {name}: {min(different)} is on one side alone; another rank or factor")
        for key, tensor in learned.tensors.items():
            theirs = started[name].tensors[key]
            if theirs.ndim != tensor.ndim or any(a > b for a, b in zip(theirs.shape, tensor.shape, strict=True)):
                raise ModelError(f"{settings.start}: {name}: {key} does not fit this base; it was trained on another")


def _modules(learned: dict[str, Learned]) -> set[tuple[str, str]]:
    return {(name, module) for name, each in learned.items() for module in each.ranks}


def target_names(modules: set[tuple[str, str]], groups: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return what to name in method.targets for these modules; ends of names where the groups are none of them."""
    names = {module for _, module in modules}
    found = [group for group, ends in groups.items() if any(adapters.ends_in(name, ends) for name in names)]
    rest = {name for name in names if not any(adapters.ends_in(name, groups[group]) for group in found)}
    return [*found, *sorted(rest)]
