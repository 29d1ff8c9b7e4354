"""The logs of a run: metrics.csv as columns, sessions.jsonl as one record a process."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dreambooth.errors import UserError
from dreambooth.files import whole_lines


@dataclass(frozen=True)
class Series:
    """Hold one column of metrics.csv, where it has numbers."""

    steps: np.ndarray = field(default_factory=lambda: np.empty(0))
    values: np.ndarray = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Session:
    """Hold one process that trained: when it began, from which step to which, and what it took."""

    started: str  # ISO 8601
    first_step: int
    last_step: int
    seconds: float
    peak_memory_mib: float
    device: str
    validation_seconds: float = 0.0  # of these seconds

    @property
    def steps_per_second(self) -> float:
        """Return the steps per second of training, validation aside."""
        training = self.seconds - self.validation_seconds
        return (self.last_step - self.first_step) / training if training > 0 else 0.0


def read_metrics(path: Path) -> dict[str, Series]:
    """Return the columns of metrics.csv by name, without `step`; a last line torn by a kill does not count.

    Raises UserError for other damage.
    """
    rows = list(csv.DictReader(whole_lines(path)))
    try:
        return {name: _column(rows, name) for name in (rows[0] if rows else ()) if name != "step"}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: a line cannot be read ({error}); mend it or move the file away") from error


def _column(rows: list[dict[str, str]], name: str) -> Series:
    filled = [row for row in rows if row[name]]
    return Series(np.array([int(row["step"]) for row in filled]), np.array([float(row[name]) for row in filled]))


def read_sessions(path: Path) -> list[Session]:
    """Return the run's sessions in order; none where it has no such file. Raises UserError for a damaged one."""
    names = Session.__dataclass_fields__
    try:
        records = [json.loads(line) for line in whole_lines(path)]
        return [Session(**{name: record[name] for name in names if name in record}) for record in records]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: a line cannot be read ({error!r}); mend it or move the file away") from error
