"""Estimate what a sweep takes before it starts: cells, time and disk, from the plan of each different kind of cell."""

import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth.build import disk_need
from dreambooth.config import Config, flatten, to_dict
from dreambooth.disk import size_in_words
from dreambooth.errors import UserError, escaped
from dreambooth.preflight.inputs import check_folders
from dreambooth.preflight.memory_plan import Planner
from dreambooth.preflight.time_plan import durations, in_words
from dreambooth.sweep import search
from dreambooth.sweep.cells import Cell
from dreambooth.sweep.folder import check_folder
from dreambooth.sweep.reading import Sweep, check_cells, told_apart
from dreambooth.sweep.status import read_status
from dreambooth.sweep.trained import changes_since
from dreambooth.sweep.worker import Task

logger = logging.getLogger(__name__)
MAX_PLANNED = 6  # different kinds of cells; a plan takes seconds
# Keys, or their beginnings, that change the result of a cell and not what it takes.
OF_NO_COST = (
    "run.", "subject", "optim.lr", "optim.text_encoder_lr", "optim.identifier_lr", "optim.weight_decay", "optim.beta",
    "optim.schedule", "optim.warmup_steps", "loss.", "prior.weight", "method.alpha", "method.dropout", "log.",
)  # fmt: skip


@dataclass
class SweepCosts:
    """Hold what the cells of a sweep take together.

    seconds: of all cells one after the other, by device. kept, peak: bytes of finished cells, and of one that runs.
    unplanned: cells of kinds that were not planned, and count as the mean of the others.
    """

    num_cells: int
    seconds: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    peak: int = 0
    unplanned: int = 0

    def told(self, num_workers: int) -> str:
        """Return it in words: cells, time on so many workers, disk."""
        times = [
            f"at most {in_words(seconds / num_workers)} on {num_workers} x {device}"
            for device, seconds in self.seconds.items()
        ]
        assumed = f" ({self.unplanned} cells of other kinds counted as the mean)" if self.unplanned else ""
        return (
            f"cells: {self.num_cells} to train\n"
            f"time: {'; '.join(times) or 'unknown'}{assumed}; class images that cells share are counted for each\n"
            f"disk: {size_in_words(self.kept)} once finished, and {size_in_words(self.peak)} more for each that runs"
        )


def prepare(sweep: Sweep, num_workers: int) -> None:
    """Check all cells, and say what they take. Raises UserError, ModelError; writes nothing."""
    cells = search.planned_cells(sweep)
    tried = check_cells(sweep, cells)
    check_folder(sweep)
    search.check(sweep, cells[0])
    finished = {each.cell.name for each in read_status(sweep, cells) if each.state == "finished"}
    open_cells = [cell for cell in cells if cell.name not in finished]
    check_images(sweep, open_cells, {cell.name: config for cell, config in tried})
    warn_of_changes(sweep, [(cell, config) for cell, config in tried if cell.name in finished])
    print(f"{sweep.folder}: {len(cells)} cells, {len(cells) - len(open_cells)} finished")
    if open_cells:
        needed = costs_of(sweep, search.planned_tasks(sweep, open_cells))
        num_workers = min(num_workers, len(open_cells))
        print(needed.told(num_workers), flush=True)
        check_disk(sweep.folder, needed, num_workers)


def check_images(sweep: Sweep, open_cells: Sequence[Cell], configs: Mapping[str, Config]) -> None:
    """Raise UserError for a folder that is not there or has no images, unless all of its cells are finished.

    Images are not read: one that cannot be ends its own cell alone. configs: those that were read, by the cell's name.
    """
    for cell in told_apart(open_cells):
        try:
            check_folders(configs.get(cell.name) or sweep.config_of(cell), decode=False)
        except UserError as error:
            raise UserError(f"{escaped(sweep.path)}: the cell {cell.name} is no run: {error}") from error


def warn_of_changes(sweep: Sweep, finished: Sequence[tuple[Cell, Config]]) -> None:
    """Warn where finished cells were trained with other settings than the sweep gives them now."""
    keys = {change.key: None for cell, config in finished for change in changes_since(sweep, cell, config)}
    if keys:
        logger.warning(
            f"{', '.join(keys)}: finished cells were trained with other values than the sweep has now, and stay as "
            "they are; to train them again choose another sweep.name"
        )


def costs_of(sweep: Sweep, tasks: Sequence[Task]) -> SweepCosts:
    """Plan a cell of each kind, and add up what all take. Raises UserError and ModelError as a run does."""
    kinds: dict[str, list[Task]] = {}
    by_point: dict[tuple[str, int | None], str] = {}
    for task in tasks:
        key = (repr(task.cell.point), task.until)  # a value may be a list, which has no hash
        if key not in by_point:
            by_point[key] = _kind(config_of(sweep, task))
        kinds.setdefault(by_point[key], []).append(task)
    found = SweepCosts(len(tasks))
    planned = list(kinds.values())[:MAX_PLANNED]
    for alike in planned:
        _add(found, config_of(sweep, alike[0]), len(alike))
    found.unplanned = len(tasks) - sum(map(len, planned))
    if found.unplanned:
        scale = len(tasks) / (len(tasks) - found.unplanned)
        found.seconds = Counter({device: round(seconds * scale) for device, seconds in found.seconds.items()})
        found.kept = round(found.kept * scale)
    return found


def config_of(sweep: Sweep, task: Task) -> Config:
    """Return the config of a cell, with no more steps than the task takes."""
    config = sweep.config_of(task.cell)
    if task.until is not None:
        config.train.max_steps = min(config.train.max_steps, task.until)
    return config


def _kind(config: Config) -> str:
    """Return what two cells have in common that take the same time and disk."""
    deciding = {key: value for key, value in flatten(to_dict(config)).items() if not key.startswith(OF_NO_COST)}
    return repr(sorted(deciding.items()))


def _add(found: SweepCosts, config: Config, num: int) -> None:
    planner = Planner(config)
    for duration in durations(planner, config):
        found.seconds[duration.device] += round(duration.seconds * num)
    need = disk_need(planner.family, config)
    finished, largest = sum(need.finished.values()), sum(need.largest.values())
    found.kept += finished * num
    found.peak = max(found.peak, largest - finished)


def check_disk(folder: Path, costs: SweepCosts, num_workers: int) -> None:
    """Raise UserError where what the cells will write does not fit on the disk."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    needed = costs.kept + costs.peak * num_workers
    if needed > free:
        raise UserError(
            f"sweep.dir: {folder}: the cells will take {size_in_words(needed)}, and {size_in_words(free)} are free on "
            "this disk; free some, name a folder on another one, or train fewer cells"
        )
