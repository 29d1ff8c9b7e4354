"""The files of a sweep's folder beside the runs: its frozen config, who trains which cell, and why a cell failed."""

import json
import os
import socket
from pathlib import Path

from dreambooth.errors import UserError, escaped
from dreambooth.files import write_text
from dreambooth.sweep.cells import Cell
from dreambooth.sweep.reading import Sweep


def check_folder(sweep: Sweep) -> None:
    """Raise UserError where the sweep's folder is that of a run, which has a config and a report too."""
    if frozen_config(sweep).is_file() and not (sweep.folder / "sweep.yaml").is_file():
        raise UserError(f"{escaped(sweep.folder)}: is the folder of a run; choose another sweep.name")


def frozen_config(sweep: Sweep) -> Path:
    """Return the copy of the config that the last session began with: editing the file does not change its cells."""
    return sweep.folder / "config.yaml"


def trained_config(sweep: Sweep) -> Path:
    """Return the config that cells start from: the copy, or the config itself before there is one."""
    frozen = frozen_config(sweep)
    return frozen if frozen.is_file() else Path(sweep.options.config)


def running_file(sweep: Sweep, cell: Cell) -> Path:
    """Return the file that says who trains a cell; its time is the last sign of life."""
    return sweep.folder / "running" / f"{cell.name}.json"


def failure_file(sweep: Sweep, cell: Cell) -> Path:
    """Return the file that says why a cell failed."""
    return sweep.folder / "failures" / f"{cell.name}.json"


def beat(sweep: Sweep, cell: Cell) -> None:
    """Note that this process trains a cell."""
    where = {"pid": os.getpid(), "host": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID")}
    write_text(running_file(sweep, cell), json.dumps(where))


def note_failure(sweep: Sweep, cell: Cell, exit_code: int, error: str = "") -> None:
    """Write why a cell failed; exit code 0 removes an earlier failure."""
    path = failure_file(sweep, cell)
    if exit_code:
        write_text(path, json.dumps({"exit_code": exit_code, "error": error}))
    else:
        path.unlink(missing_ok=True)
