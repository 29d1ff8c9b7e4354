"""Read and append to benchmarks/lab/results.csv: one line for each trial, on the disk before the next is reported.

Lines with the fingerprint of other settings, and torn lines, stay in the file and are not used.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from dreambooth.errors import UserError
from toyworld.lab.metrics import METRICS
from toyworld.lab.plan import Trial

COLUMNS = ("lab", "row", "subject", "seed", *METRICS, "date", "cores", "torch", "fingerprint")
Key = tuple[str, str, int]  # fingerprint, subject, seed


@dataclass(frozen=True)
class Result:
    """Hold the metrics of a trial, and when and on what they were measured."""

    metrics: Mapping[str, float]
    date: str
    cores: int
    torch: str


class Store:
    """Hold all results by trial. Raises UserError for a file with other columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[Key, Result] = {}
        if path.is_file():
            self._read()

    def get(self, trial: Trial) -> Result | None:
        return self.results.get(trial.key)

    def add(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        """Append a line; when this returns it is on the disk."""
        assert set(metrics) == set(METRICS), set(metrics) ^ set(METRICS)
        result = Result(dict(metrics), datetime.now(UTC).date().isoformat(), os.cpu_count() or 1, version("torch"))
        values = [f"{metrics[name]:.6g}" for name in METRICS]
        line = [trial.experiment, trial.variant.name, str(trial.subject), trial.seed, *values]
        self._append([*line, result.date, result.cores, result.torch, trial.fingerprint])
        self.results[trial.key] = result

    def _read(self) -> None:
        with open(self.path, newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        if not lines or tuple(lines[0]) != COLUMNS:
            raise UserError(
                f"{self.path}: other columns than this version writes; move the file away to start a new one"
            )
        for line in lines[1:]:
            try:
                by_name = dict(zip(COLUMNS, line, strict=True))
                metrics = {name: float(by_name[name]) for name in METRICS}
                key = (by_name["fingerprint"], by_name["subject"], int(by_name["seed"]))
                result = Result(metrics, by_name["date"], int(by_name["cores"]), by_name["torch"])
            except ValueError:
                continue  # torn by a kill in mid-write; that trial is run again
            self.results[key] = result

    def _append(self, line: list[object]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.is_file()
        is_torn = not is_new and not self.path.read_bytes().endswith(b"\n")
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            file.write("\n" if is_torn else "")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([COLUMNS, line] if is_new else [line])
            file.flush()
            os.fsync(file.fileno())
