"""Estimate what a run takes of memory, disk and time, as `new`, `plan` and `check` report it."""

from dataclasses import dataclass

from dreambooth.build import DiskNeed, disk_need
from dreambooth.config import Config
from dreambooth.preflight.memory_plan import Need, Planner
from dreambooth.preflight.time_plan import time_in_words


@dataclass(frozen=True)
class Costs:
    """Hold what a run takes. time: in words, with the device and by what it is known."""

    memory: Need
    disk: DiskNeed
    time: str


def costs_of(planner: Planner, config: Config) -> Costs:
    """Return what a run takes of memory, disk and time."""
    return Costs(planner.need(config), disk_need(planner.family, config), time_in_words(planner, config))
