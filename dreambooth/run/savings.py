"""Settings that take less memory, the most effective first, and what each costs."""

from typing import Any

from dreambooth.config import Config
from dreambooth.methods import find_facts

SAVINGS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"train.gradient_checkpointing": True}, "a third more time per step"),
    ({"train.micro_batch_size": 1}, "subject and class one after the other: a fifth more time per step"),
    ({"prior.source": "ahead"}, "class images are generated first: the first step comes later"),
    ({"optim.name": "adamw8bit"}, "coarser moments (extra '8bit'; slow on a CPU)"),
    ({"model.quantize": "int8"}, "frozen weights in a byte each, off by 1 % of the largest in their row at most"),
    ({"train.offload": "parts"}, "denoiser and VAE take turns on the GPU: validations take longer"),
    ({"model.quantize": "nf4"}, "frozen weights in half a byte each: a coarser base (extra 'quantize')"),
    (
        {"train.offload": "blocks", "train.gradient_checkpointing": True},
        "blocks of the denoiser wait in main memory: slower, by how much the bus decides",
    ),
    (
        {"optim.in_backward": True, "optim.max_grad_norm": 0, "train.micro_batch_size": None},
        "weights are updated during backward: gradients are not clipped",
    ),
)


def written(value: Any) -> str:
    """Return a value as YAML writes it."""
    return "null" if value is None else str(value).lower()


def applies(key: str, config: Config) -> bool:
    """Return whether the row of `SAVINGS` that begins with this key would take less memory with this config."""
    is_adapter, train = find_facts(config.method.name).is_adapter, config.train
    if key == "prior.source":
        return config.prior.source == "stream" and not is_adapter
    if key == "model.quantize":
        return is_adapter and config.method.name != "custom_diffusion" and config.model.quantize in ("none", "int8")
    if key == "train.offload":
        is_alone = train.devices * train.num_nodes == 1
        return config.method.name != "full" and is_alone and not train.compile and train.offload != "blocks"
    if key == "optim.in_backward":
        is_alone = train.accumulate * train.devices * train.num_nodes == 1
        if is_adapter or not is_alone or train.precision in ("auto", "16-mixed"):  # which the config refuses together
            return False
    if key == "train.micro_batch_size" and config.optim.in_backward:
        return False
    section, name = key.split(".")
    return getattr(getattr(config, section), name) in (False, None, "adamw")
