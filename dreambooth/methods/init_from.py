"""Training on from what an adapter's files hold (`method.start`), instead of from an adapter that changes nothing yet.

The files say what they adapt and how strongly; the settings must say the same, or the first step would be of another
model than the file's. Beneath lies the untouched base, as ever.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dreambooth.errors import ModelError, UserError
from dreambooth.families import Family
from dreambooth.methods import adapters
from dreambooth.methods.adapters import ADAPTER, TARGETS, MakeConfig
from dreambooth.methods.base import MethodSettings

Load = Callable[[Family, Path], None]


@dataclass(frozen=True)
class Learned:
    """The adapters of one network: tensors by peft's names, and rank and scale of each adapted module."""

    tensors: dict[str, Tensor]
    ranks: dict[str, int]
    scales: dict[str, float]


def attach(make_config: MakeConfig, load: Load, family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    """`adapters.attach`; with settings.start the adapters begin as its files have them.

    Raises UserError for settings that the files contradict, ModelError for files that are of another base.
    """
    if settings.start is None:
        return adapters.attach(make_config, family, settings)
    load(family, settings.start)
    started = take_out(family)
    trained = adapters.attach(make_config, family, settings)
    check_settings(started, {name: learned_by(part) for name, part in _adapted(family).items()}, settings)
    for name, part in _adapted(family).items():
        set_peft_model_state_dict(part, started[name].tensors, ADAPTER)
    return trained


def take_out(family: Family) -> dict[str, Learned]:
    """What has been loaded into a family, by the networks' names in the pipeline; it is untouched again afterwards."""
    learned = {name: learned_by(part) for name, part in _adapted(family).items()}
    adapters.unload_adapters(family)
    return learned


def learned_by(part: Any) -> Learned:
    layers = {name: cast(Any, each) for name, each in part.named_modules() if isinstance(each, BaseTunerLayer)}
    tensors = {key: tensor.detach().clone() for key, tensor in adapters.adapter_state(part).items()}
    ranks = {name: layer.r[ADAPTER] for name, layer in layers.items()}
    return Learned(tensors, ranks, {name: layer.scaling[ADAPTER] for name, layer in layers.items()})


def _adapted(family: Family) -> dict[str, Any]:
    return adapters.adapted_components(family)


# -------------------------------------------------------------------------------- do the settings say the same?


def check_settings(started: dict[str, Learned], own: dict[str, Learned], settings: MethodSettings) -> None:
    """Raises UserError that names the key, what it is and what the files have."""
    files = settings.start
    in_text = any(name != "unet" for name in started)
    if in_text != any(name != "unet" for name in own):
        raise UserError(
            f"method.train_text_encoder: {str(not in_text).lower()}, but {files} adapts "
            f"{'a' if in_text else 'no'} text encoder; set it to {str(in_text).lower()}"
        )
    if _modules(started) != _modules(own):
        raise UserError(
            f"method.targets: {', '.join(settings.targets)} are {len(_modules(own))} modules, {files} adapts "
            f"{len(_modules(started))}; set method.targets=[{','.join(groups_of(_modules(started)))}]"
        )
    ranks = {rank for learned in started.values() for rank in learned.ranks.values()}
    if ranks != {settings.rank}:
        raise UserError(f"method.rank: {settings.rank}, but {files} has {', '.join(map(str, sorted(ranks)))}")
    factors = [started[name].scales[module] / scale for name in own for module, scale in own[name].scales.items()]
    if not all(math.isclose(factor, 1, rel_tol=1e-3) for factor in factors):
        alpha = adapters.alpha_of(settings)
        told = ", ".join(sorted({f"{alpha * factor:g}" for factor in factors}))
        raise UserError(f"method.alpha: {alpha:g}, but {files} has {told}")
    check_tensors(started, own, settings)


def check_tensors(started: dict[str, Learned], own: dict[str, Learned], settings: MethodSettings) -> None:
    """Modules, ranks and scales agree. Raises UserError for DoRA on one side only, ModelError for other shapes."""
    for name, learned in own.items():
        if learned.tensors.keys() != started[name].tensors.keys():
            dora = str(settings.dora).lower()
            raise UserError(f"method.dora: {dora}, but {settings.start} has it otherwise; turn it round")
        for key, tensor in learned.tensors.items():
            if tensor.shape != started[name].tensors[key].shape:
                raise ModelError(f"{settings.start}: {name}: {key} does not fit this base; it was trained on another")


def _modules(learned: dict[str, Learned]) -> set[tuple[str, str]]:
    return {(name, module) for name, each in learned.items() for module in each.ranks}


def groups_of(modules: set[tuple[str, str]]) -> list[str]:
    """What to name in method.targets for these modules; ends of names where the groups are none of them."""
    names = {module for _, module in modules}
    groups = {group for group, ends in TARGETS.items() if any(adapters.ends_in(name, ends) for name in names)}
    rest = {name for name in names if not any(adapters.ends_in(name, TARGETS[group]) for group in groups)}
    return [*(group for group in TARGETS if group in groups), *sorted(rest)]
