"""Adapters as files: LoRA as diffusers reads it, LoHa and LoKr by peft's names; those of other tools are read too."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dreambooth.errors import ModelError, first_line
from dreambooth.families import Family, components
from dreambooth.families.inspection import LOADING_ERRORS
from dreambooth.methods import lora_files
from dreambooth.methods.adapters import ADAPTER, adapted_components, adapter_state
from dreambooth.methods.lora_files import Change

PEFT_FILE = "adapter.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
WHOLE_RANK = 2**16  # at this rank peft factors no matrix
STATED_ALPHA = "dreambooth_lora"  # the key in a LoRA's metadata


def save_lora(family: Family, folder: Path, metadata: Mapping[str, str] | None = None, file: str = LORA_FILE) -> None:
    """Write the file that diffusers' `load_lora_weights` reads. metadata: more of it. file: its name.

    Strengths are in the tensors, alpha equals the rank for every reader: diffusers before 0.35 knows no other place for
    alpha in these names than the config of peft, which it does not read, and peft before 0.21 refuses today's config.
    What alpha and rank were is kept for `method.start`, under a name of our own.
    """
    tensors = {
        f"{name}.{key}": tensor
        for name, part in adapted_components(family, LoraConfig).items()
        for key, tensor in portable_state(part, name).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / file, metadata={"format": "pt", **stated_alpha(family), **(metadata or {})})


def portable_state(part: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the tensors of a network's LoRA, its scale multiplied into lora_B, all modules of one rank.

    Zeros fill up a smaller rank: diffusers takes the most common rank for alpha, and so would scale the others.
    transformers 5.6 took the level "text_model" out of CLIP's text encoder; files keep it, for other readers.
    """
    prefix = "text_model." if name.startswith("text_encoder") and not hasattr(part, "text_model") else ""
    state = adapter_state(part)
    layers = {key: layer for key, layer in part.named_modules() if isinstance(layer, LoraLayer)}
    rank = max(layer.r[ADAPTER] for layer in layers.values())
    for key, layer in layers.items():
        missing, scale = rank - layer.r[ADAPTER], layer.scaling[ADAPTER]
        down, up = f"{key}.lora_A.weight", f"{key}.lora_B.weight"
        if scale != 1:
            state[up] = (state[up].float() * scale).to(state[up].dtype)
        if missing:
            state[down] = torch.cat([state[down], state[down].new_zeros(missing, *state[down].shape[1:])])
            outputs, _, *kernel = state[up].shape
            state[up] = torch.cat([state[up], state[up].new_zeros(outputs, missing, *kernel)], dim=1)
    return {f"{prefix}{key}": tensor.contiguous() for key, tensor in state.items()}


def stated_alpha(family: Family) -> dict[str, str]:
    """Return the metadata that say which rank and alpha an adapter was trained with."""
    configs = [cast(Any, part.peft_config[ADAPTER]) for part in adapted_components(family).values()]
    configs = [config for config in configs if isinstance(config, LoraConfig | LoHaConfig | LoKrConfig)]
    if not configs:
        return {}
    is_lora = isinstance(configs[0], LoraConfig)
    alpha, rslora = (configs[0].lora_alpha, configs[0].use_rslora) if is_lora else (configs[0].alpha, False)
    return {STATED_ALPHA: json.dumps({"rank": configs[0].r, "alpha": alpha, "rslora": rslora})}


def load_lora(family: Family, location: Path) -> None:
    """Load a LoRA into a family: of a file under any tool's names, or of a folder with `LORA_FILE`.

    Raises ModelError for one that is missing or does not fit the base.
    """
    path = adapter_file(location, LORA_FILE)
    changes = lora_files.read_changes(family, path)
    parts = components(family)
    for name, own in changes.items():
        kinds = {(change.kind, change.magnitude_O is not None) for change in own.values()}
        if kinds not in ({("lora", False)}, {("lora", True)}):
            raise ModelError(
                f"{path}: {name}: {', '.join(sorted({kind for kind, _ in kinds}))}, with and without magnitudes, where "
                "one LoRA is wanted; add it to a model with `sample.py MODEL --lora`"
            )
        inject_lora(parts[name], own)
    check_numbers(family, path)


def adapter_file(location: Path, own: str) -> Path:
    """Return the file of an adapter: the path itself, `location/own`, or the folder's only one that is no embedding."""
    if location.is_file() or (location / own).is_file():
        return location if location.is_file() else location / own
    words = set(location.glob("*_emb*.safetensors"))
    others = [path for path in location.glob("*.safetensors") if not path.is_symlink() and path not in words]
    return others[0] if len(others) == 1 else location / own


def inject_lora(part: Any, changes: Mapping[str, Change]) -> None:
    """Give a network LoRA layers that hold these changes, each with its own rank and alpha."""
    ranks = {name: cast(int, change.rank) for name, change in changes.items()}
    alphas = {name: change.scale * ranks[name] for name, change in changes.items()}
    rank, alpha = most_common(ranks.values()), most_common(alphas.values())
    has_magnitudes = any(change.magnitude_O is not None for change in changes.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        rank_pattern={name: own for name, own in ranks.items() if own != rank},
        alpha_pattern={name: own for name, own in alphas.items() if own != alpha},
        target_modules=list(changes),
        use_dora=has_magnitudes,
    )
    inject_adapter_in_model(config, part, ADAPTER)
    set_peft_model_state_dict(part, peft_state(part, changes), ADAPTER)


def peft_state(part: nn.Module, changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """Return the tensors of changes by peft's names, in the dtype and shape that the injected layers have."""
    expected = adapter_state(part)
    state: dict[str, Tensor] = {}
    for name, change in changes.items():
        suffix = ".weight" if change.kind == "lora" else ""
        state |= {f"{name}.{leaf}{suffix}": tensor for leaf, tensor in change.tensors.items()}
        if change.magnitude_O is not None:
            state[f"{name}.lora_magnitude_vector"] = change.magnitude_O
    return {key: tensor.to(expected[key].dtype).reshape(expected[key].shape) for key, tensor in state.items()}


def stated_scale(location: Path) -> float | None:
    """Return the scale that a file's adapter was trained with; None for a file that does not say."""
    path = adapter_file(location, LORA_FILE)
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(STATED_ALPHA)
    if text is None:
        return None
    stated = json.loads(text)
    return float(stated["alpha"]) / (stated["rank"] ** 0.5 if stated["rslora"] else stated["rank"])


def most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def check_numbers(family: Family, path: Path) -> None:
    """Raise ModelError where what has been loaded lacks a tensor, or holds numbers that are not finite."""
    for name, part in adapted_components(family).items():
        for key, tensor in adapter_state(part).items():
            if tensor.is_meta:
                raise ModelError(f"{path}: {name}: {key} is not in it: incomplete, or of another base")
            if not bool(tensor.isfinite().all()):
                raise ModelError(f"{path}: {name}: {key} holds numbers that are not finite")


def save_peft(family: Family, folder: Path) -> None:
    """Write every adapter into one file: tensors as peft names them behind the network's name, configs as metadata."""
    parts = adapted_components(family)
    tensors = {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in adapter_state(part).items()}
    configs = {name: json.dumps(part.peft_config[ADAPTER].to_dict(), default=sorted) for name, part in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / PEFT_FILE, metadata={"format": "pt", **configs})


def load_peft(family: Family, location: Path) -> None:
    """Load a LoHa or LoKr into a family: of a folder with `PEFT_FILE`, or of a file under LyCORIS' names.

    Raises ModelError for a file that is missing or does not fit the base.
    """
    path = adapter_file(location, PEFT_FILE)
    if path.name != PEFT_FILE:
        load_lycoris(family, path)
        return
    try:
        with safe_open(path, "pt") as file:
            configs, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for name, part in components(family).items():
            if name in configs:
                config = PeftConfig.from_peft_type(**json.loads(configs[name]))
                inject_adapter_in_model(config, part, ADAPTER)
                own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
                set_peft_model_state_dict(part, own, ADAPTER)
    except LOADING_ERRORS as error:
        raise ModelError(f"{path}: cannot be loaded into this base: {first_line(error)}") from error
    check_numbers(family, path)


def load_lycoris(family: Family, path: Path) -> None:
    """Load a LoHa or LoKr under LyCORIS' names into a family, as far as peft has its shapes. Raises ModelError."""
    for name, own in lora_files.read_changes(family, path).items():
        if len(kinds := {change.kind for change in own.values()}) > 1:
            raise ModelError(f"{path}: {name}: {' and '.join(sorted(kinds))} in one file cannot be trained on")
        try:
            inject_lycoris(components(family)[name], own)
        except (RuntimeError, KeyError) as error:
            raise ModelError(
                f"{path}: {name}: its factorization cannot be trained here ({first_line(error)}); it can be added "
                "to a model with `sample.py MODEL --lora`, not trained on"
            ) from error
    check_numbers(family, path)


def inject_lycoris(part: nn.Module, changes: Mapping[str, Change]) -> None:
    """Give a network LoHa or LoKr layers that hold these changes, each with its own rank and alpha."""
    is_loha = next(iter(changes.values())).kind == "loha"
    ranks = {name: change.rank or WHOLE_RANK for name, change in changes.items()}
    alphas = {name: change.scale * ranks[name] for name, change in changes.items()}
    rank, alpha = most_common(ranks.values()), most_common(alphas.values())
    arguments: dict[str, Any] = {
        "r": rank,
        "alpha": alpha,
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "target_modules": list(changes),
    }
    inject_adapter_in_model(LoHaConfig(**arguments) if is_loha else LoKrConfig(**arguments), cast(Any, part), ADAPTER)
    set_peft_model_state_dict(cast(Any, part), peft_state(part, changes), ADAPTER)
