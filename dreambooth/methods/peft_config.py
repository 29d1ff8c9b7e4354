"""Read how strong a peft adapter is: rank and alpha of its config, in a file's metadata or beside the file.

in the metadata            {"unet.r": 4, "unet.lora_alpha": 8 ...} as diffusers writes it, and this toolkit once did;
                           {"r": 4, "alpha": 8 ...} under "unet" in this toolkit's own files of LoHa and LoKr
adapter_config.json        beside the adapter_model.safetensors that peft's `save_pretrained` writes
"""

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dreambooth.errors import ModelError, first_line

METADATA = "lora_adapter_metadata"  # the key under which diffusers keeps peft's config
PREFIX = "base_model.model."  # before each name in a file that peft wrote
WEIGHTS, CONFIG = "adapter_model", "adapter_config.json"
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
CHANGE_THE_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")  # initializations that also change its weights

logger = logging.getLogger(__name__)


def find_config(path: Path, metadata: dict[str, str], keys: Iterable[str]) -> dict[str, Any]:
    """Return peft's config by "unet.lora_alpha" ...: of a file's metadata, or adapter_config.json beside peft's own.

    keys: the names in the file. Empty where nothing says it: alpha then stands in the file, or is the rank, of which
    a file of peft's own that has neither is warned. Raises ModelError for an adapter_config.json that cannot be read.
    """
    keys = list(keys)
    if config := config_in(metadata):
        return config
    if path.stem != WEIGHTS and not any(key.startswith(PREFIX) for key in keys):
        return {}
    beside = path.with_name(CONFIG)
    if beside.is_file():
        return by_parts(read_config(beside))
    if not any(key.endswith(".alpha") for key in keys):
        logger.warning(
            f"{path}: is of peft, which keeps alpha in {CONFIG}, and there is none beside it; its scale is taken as 1"
        )
    return {}


def config_in(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the config that a file's metadata hold, of each network."""
    found = dict(json.loads(metadata[METADATA])) if METADATA in metadata else {}
    for part in PARTS:
        if metadata.get(part, "").startswith("{"):
            found |= by_parts(json.loads(metadata[part]), (part,))
    return found


def by_parts(config: dict[str, Any], parts: Iterable[str] = PARTS) -> dict[str, Any]:
    """Return a config of one network by "unet.lora_alpha" ...; that of LoHa and LoKr has alpha as `alpha`."""
    config = {"lora_alpha": config.get("alpha"), **config}
    return {f"{part}.{key}": value for part in parts for key, value in config.items()}


def read_config(path: Path) -> dict[str, Any]:
    """Return what an adapter_config.json holds. Raises ModelError where that says no strength."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern, value in (config.get(key) or {}).items():
                re.compile(pattern)
                float(value)
        alpha, rank = float(config.get("lora_alpha", config.get("alpha"))), int(config["r"])
    except (AttributeError, KeyError, OSError, TypeError, ValueError, re.error) as error:
        raise ModelError(
            f"{path}: cannot be read as peft's config, which has r and alpha: {first_line(error)}"
        ) from error
    if rank < 1:
        raise ModelError(f"{path}: r={rank}, alpha={alpha:g}: the rank must be at least 1")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(CHANGE_THE_BASE):
        raise ModelError(
            f"{path}: init_lora_weights={start} has changed the base's weights too; save it from peft with "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    return dict(config)


def whole_scale(name: str, config: dict[str, Any]) -> float:
    """Return alpha / r of peft's config for a Kronecker product of two whole matrices, 1 where there is none."""
    part, _, module = name.partition(".")
    r = of_module(config.get(f"{part}.rank_pattern"), module, config.get(f"{part}.r"))
    return 1.0 if r is None else scale_in_config(name, r, config)


def scale_in_config(name: str, rank: int, config: dict[str, Any]) -> float:
    """Return alpha / rank, with rank stabilization alpha / sqrt(rank); 1 where the file does not say."""
    part, _, module = name.partition(".")
    alpha = of_module(config.get(f"{part}.alpha_pattern"), module, config.get(f"{part}.lora_alpha"))
    if alpha is None:
        return 1.0
    return float(alpha) / (rank**0.5 if config.get(f"{part}.use_rslora") else rank)


def of_module(patterns: dict[str, Any] | None, module: str, usual: Any) -> Any:
    """Return the value of the first pattern, a regular expression, that a module's name ends in; else the usual one.

    transformers 5.6 took the level "text_model" out of one of its classes; patterns of before have it.
    """
    for pattern, value in (patterns or {}).items():
        if any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in (module, f"text_model.{module}")):
            return value
    return usual
