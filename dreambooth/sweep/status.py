"""How far each cell of a sweep is, read from its run folder: the folder is the record, there is no other."""

import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreambooth.checkpointing import newest_entry
from dreambooth.config import raw_value
from dreambooth.config.values import as_number
from dreambooth.errors import UserError
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.subject_info import read_card
from dreambooth.sweep.cells import Cell
from dreambooth.sweep.folder import failure_file, frozen_config, running_file
from dreambooth.sweep.reading import Sweep

State = Literal["waiting", "running", "stopped", "finished", "failed"]
SILENT_S = 900  # seconds without a sign of life from another machine, after which its process counts as dead


@dataclass(frozen=True)
class CellStatus:
    """Hold what a cell has come to. step: of its last state. quality: of the step to keep; None: not measured yet.

    kept_step: None where no step is better than the base. error: why it failed.
    """

    cell: Cell
    state: State
    folder: Path
    step: int = 0
    quality: float | None = None
    kept_step: int | None = None
    error: str = ""
    exit_code: int = 0

    @property
    def is_over(self) -> bool:
        """Return whether nothing is left to do: it is finished or has failed."""
        return self.state in ("finished", "failed")


def read_status(sweep: Sweep, cells: Iterable[Cell]) -> list[CellStatus]:
    """Return the status of each cell."""
    return [status_of(sweep, cell) for cell in cells]


def status_of(sweep: Sweep, cell: Cell) -> CellStatus:
    """Return the status of one cell."""
    folder, failure = sweep.runs / cell.name, _read(failure_file(sweep, cell))
    entry = newest_entry(folder / "state" / "last.ckpt") or newest_entry(folder / "state" / "removed.json")
    step = 0 if entry is None else entry.step
    try:
        log = ValidationLog(folder / "logs" / "scores.jsonl")
    except UserError as error:
        return CellStatus(cell, "failed", folder, step, error=str(error), exit_code=error.exit_code)
    quality, kept_step = quality_of(log)
    if is_running(sweep, cell):
        state: State = "running"
    elif failure:
        state = "failed"
    elif _is_exported(folder, step) and is_long_enough(sweep, cell, step, log):
        state = "finished"
    else:
        state = "stopped" if step else "waiting"
    code = int(failure.get("exit_code", 0)) if state == "failed" else 0
    return CellStatus(cell, state, folder, step, quality, kept_step, failure.get("error", "") if code else "", code)


def has_come_to(status: CellStatus, step: int | None) -> bool:
    """Return whether a cell is finished or, with a step, has been validated there."""
    if step is None or status.state == "finished":
        return status.state == "finished"
    return any(entry.step >= step for entry in ValidationLog(status.folder / "logs" / "scores.jsonl").entries)


def _is_exported(folder: Path, step: int) -> bool:
    """Return whether the model of the last state is written."""
    card = read_card(folder / "model")
    return card is not None and card.last_step == step


def is_long_enough(sweep: Sweep, cell: Cell, step: int, log: ValidationLog) -> bool:
    """Return whether a cell has taken the steps that are asked for now, or was ended by validate.patience."""
    max_steps, patience = (_value_of(sweep, cell, key) for key in ("train.max_steps", "validate.patience"))
    return step >= max_steps or log.is_exhausted(patience)


def _value_of(sweep: Sweep, cell: Cell, key: str) -> int:
    """Return a number of a cell's config without checking all of it, which takes a third of a second.

    What is decided by rules (`auto`) is in the config of the cell's own run.
    """
    config = Path(sweep.options.config)
    asked = cell.point.settings.get(key, raw_value(config if config.is_file() else frozen_config(sweep), key))
    value = raw_value(sweep.runs / cell.name / "config.yaml", key) if asked == "auto" else asked
    number = as_number(int, value)
    return number if isinstance(number, int) else 0


def quality_of(log: ValidationLog, until: int | None = None) -> tuple[float | None, int | None]:
    """Return the quality of the step to keep with that step; quality 0 where no step is better than the base.

    until: of the validations up to this step. Both are None where nothing was scored.
    """
    if until is not None:
        log = ValidationLog(log.path, last_step=until)
    if not any(entry.quality is not None and entry.step > 0 for entry in log.entries):
        return None, None
    best = log.best
    if best is None or best.quality is None:
        return 0.0, None
    return best.quality.value, best.step


def is_running(sweep: Sweep, cell: Cell) -> bool:
    """Return whether a process trains a cell, as far as it can be seen from here."""
    path = running_file(sweep, cell)
    owner = _read(path)
    if not owner:
        return False
    if owner.get("host") == socket.gethostname() and os.name != "nt":  # where a signal of 0 is Ctrl-C
        return _is_alive(int(owner.get("pid", 0)))
    try:
        return time.time() - path.stat().st_mtime < SILENT_S
    except FileNotFoundError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
