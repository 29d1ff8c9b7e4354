"""The settings that decide a run's weights: what cards, reports and loggers list of a config."""

from typing import Any

from dreambooth.config.keys import default_of, field_of
from dreambooth.config.reading import flatten

# Sections and a key whose settings decide the weights, and keys that are listed even where they have their default.
SECTIONS = ("data", "prior", "method", "optim", "loss", "train")
QUANTIZE = "model.quantize"
ALWAYS = ("run.seed", "method.name", "prior.source", "prior.weight", "optim.lr", "train.max_steps", "train.batch_size")


def deciding_settings(config: dict[str, Any], lr: float) -> dict[str, Any]:
    """Return what decides the weights and differs from its default, by key of a run's config.yaml.

    Keys of ALWAYS are there in any case. lr: the method's learning rate, for a config that leaves it open.
    """
    settings = {
        key: value
        for key, value in flatten(config).items()
        if key in ALWAYS
        or (
            (key == QUANTIZE or key.split(".")[0] in SECTIONS)
            and value != (default_of(key) if field_of(key) is not None else None)
        )
    }
    if settings["optim.lr"] is None:
        settings["optim.lr"] = lr
    return settings
