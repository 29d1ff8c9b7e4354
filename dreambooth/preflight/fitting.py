"""`train.memory=auto`: apply the first set of savings with which a run fits its device, and say which and why."""

import logging
import os
from typing import Any

from dreambooth import build
from dreambooth.config import Config
from dreambooth.disk import GIB
from dreambooth.errors import UserError
from dreambooth.preflight.memory_plan import Planner, device_memory, is_enough, with_changes, with_savings
from dreambooth.run.folder import RunFolder
from dreambooth.run.resume import started_config
from dreambooth.run.savings import SAVINGS, written

logger = logging.getLogger(__name__)

KEYS = tuple(dict.fromkeys(key for changes, _ in SAVINGS for key in changes))


def fit_to_memory(config: Config, memory: int | None = None) -> Config:
    """Return a config of train.memory=auto with the savings that it needs, any other as it is.

    A run that goes on keeps those that it began with. memory: of the device, bytes; None: what it has.
    Raises UserError where no set of savings is enough, and where the base cannot be planned as `Planner` does.
    """
    if config.train.memory != "auto":
        return config
    run = RunFolder(config)
    if config.run.resume == "auto" and run.config.is_file() and started_config(run).train.memory == "auto":
        return with_savings_of(started_config(run), config)
    device, total = device_memory(config)
    total = total if memory is None else memory
    is_file = os.path.isfile(os.path.expanduser(config.model.base))
    planner, configured = Planner(config, has_weights=is_file), 0
    for _, changed, need in with_savings(planner, config, is_possible):
        configured = configured or need.total
        if is_enough(need.total, total):
            logger.info(f"train.memory=auto: {explanation(config, changed, configured, need.total, device, total)}")
            return changed
    raise UserError(
        f"train.memory=auto: {need.total / GIB:.2f} GiB are needed with all that saves memory "
        f"({' '.join(applied(config, changed))}), {device} has {total / GIB:.2f} GiB; set data.resolution or "
        "method.rank lower, or take a smaller base"
    )


def with_savings_of(begun: Config, config: Config) -> Config:
    """Return a config with the savings that a run has begun with; what else differs stays, to be compared."""
    values: dict[str, Any] = {}
    for changes, _ in SAVINGS:
        if with_changes(begun, changes) == begun:
            values |= changes
    changed = with_changes(config, values)
    if kept := applied(config, changed):
        logger.info(f"train.memory=auto: the run goes on with {' '.join(kept)}, as it began")
    return changed


def is_possible(config: Config) -> bool:
    """Return whether the packages of a config's optimizer and quantization are there."""
    try:
        build.check_optimizer(config)
        build.check_quantization(config)
    except UserError:
        return False
    return True


def applied(before: Config, after: Config) -> list[str]:
    """Return the settings that save memory and differ between two configs, as the second has them."""
    changes = []
    for key in KEYS:
        section, name = key.split(".")
        old, new = (getattr(getattr(each, section), name) for each in (before, after))
        if old != new:
            changes.append(f"{key}={written(new)}")
    return changes


def explanation(before: Config, after: Config, configured: int, needed: int, device: str, total: int) -> str:
    """Say what was changed, and why. configured, needed: bytes before and after; total: of the device."""
    changes = applied(before, after)
    has = f"{device} ({total / GIB:.2f} GiB"
    if not changes:
        return f"{configured / GIB:.2f} GiB fit {has}); nothing is changed"
    return (
        f"{configured / GIB:.2f} GiB do not fit {has}, of which a tenth and 1 GiB stay free); with "
        f"{' '.join(changes)} {needed / GIB:.2f} GiB do"
    )
