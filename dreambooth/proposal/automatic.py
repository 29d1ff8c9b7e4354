"""Fill in the keys of a config that say `auto`, by the rules, for the base and the photos that the config names.

A run that has begun keeps the values that it began with. What the user set is never changed.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dreambooth.config import Config, default_of, flatten, load_config
from dreambooth.config.plain_yaml import read
from dreambooth.config.values import is_automatic
from dreambooth.home_folder import with_home
from dreambooth.proposal.facts import base_facts
from dreambooth.proposal.rules import RULES, Case, choices

logger = logging.getLogger(__name__)
AUTO = "auto"
Report = Callable[[str], object]


def fill_automatic(settings: Mapping[str, Any], report: Report = logger.info) -> dict[str, Any]:
    """Return the values of the keys that say `auto`, and report each with its reason.

    settings: a config's values by key. Raises UserError for photos that are not there, unless the run has all values.
    """
    asked = [key for key in RULES if is_automatic(key, settings.get(key))]
    if not asked:
        return {}
    begun = _values_of_run(settings)
    chosen = {} if all(key in begun for key in asked) else choices(case_of(settings))
    values = {}
    for key in asked:
        values[key], reason = (begun[key], "as the run began") if key in begun else chosen[key]
        report(f"auto: {key}={values[key]}: {reason}")
    return values


def case_of(settings: Mapping[str, Any]) -> Case:
    """Return what the rules look at of a config's values. Raises UserError for photos that are not there."""
    from dreambooth.data.image_folder import sort_files  # loads numpy, which no --help needs

    folders = [value for key, value in settings.items() if key.startswith("subject") and key.endswith(".images")]
    method = settings.get("method.name", default_of("method.name"))
    trains_text = settings.get("method.train_text_encoder", default_of("method.train_text_encoder"))
    base = base_facts(str(settings.get("model.base", "")), str(settings.get("model.family", AUTO)))
    counts = [len(sort_files(with_home(str(folder))).images) for folder in folders]
    optimizer = settings.get("optim.name", default_of("optim.name"))
    kinds = {str(value) for key, value in settings.items() if key.startswith("subject") and key.endswith(".kind")}
    has_class, has_start_words = not kinds & {"style", "dataset"}, settings.get("method.start_word") is not None
    return Case(base, counts, str(method), bool(trains_text), str(optimizer), has_class, has_start_words)


def _values_of_run(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a run of this name has begun with; none where it is to start anew."""
    folder = Path(with_home(str(settings.get("run.dir", default_of("run.dir")))), str(settings.get("run.name", "")))
    if settings.get("run.resume") == "never" or not (folder / "config.yaml").is_file():
        return {}
    raw, _ = read(folder / "config.yaml")
    return flatten(raw, str(folder / "config.yaml")) if isinstance(raw, dict) else {}


def load_run_config(path: str | Path, overrides: Sequence[str] = (), report: Report = logger.info) -> Config:
    """Read a run's config as `load_config` does, and fill in and report what says `auto`. Raises UserError."""
    return load_config(path, overrides, partial(fill_automatic, report=report))
