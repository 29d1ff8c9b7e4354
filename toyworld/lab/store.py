"""benchmarks/lab/results.csv: a line a cell, only ever appended to, on the disk before the next cell is told of.

A line whose fingerprint no row asks for any more is left where it is and not used, and so is a torn one.
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
from toyworld.lab.figures import FIGURES
from toyworld.lab.plan import Trial

COLUMNS = ("lab", "row", "subject", "seed", *FIGURES, "date", "cores", "torch", "fingerprint")
Key = tuple[str, str, int]  # fingerprint, subject, seed


@dataclass(frozen=True)
class Result:
    """Hold what was measured of a cell, and when and on what."""

    figures: Mapping[str, float]
    date: str
    cores: int
    torch: str


class Store:
    """All results there are, by cell. Raises UserError for a file with other columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[Key, Result] = {}
        if path.is_file():
            self._read()

    def get(self, cell: Trial) -> Result | None:
        return self.results.get(cell.key)

    def add(self, cell: Trial, figures: Mapping[str, float]) -> None:
        """Append a line; when this returns it is on the disk."""
        assert set(figures) == set(FIGURES), set(figures) ^ set(FIGURES)
        result = Result(dict(figures), datetime.now(UTC).date().isoformat(), os.cpu_count() or 1, version("torch"))
        values = [f"{figures[name]:.6g}" for name in FIGURES]
        line = [cell.lab, cell.row.name, str(cell.subject), cell.seed, *values]
        self._append([*line, result.date, result.cores, result.torch, cell.fingerprint])
        self.results[cell.key] = result

    def _read(self) -> None:
        with open(self.path, newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        if not lines or tuple(lines[0]) != COLUMNS:
            raise UserError(f"{self.path}: has other columns than this version writes; move it away to start a new one")
        for line in lines[1:]:
            try:
                by_name = dict(zip(COLUMNS, line, strict=True))
                figures = {name: float(by_name[name]) for name in FIGURES}
                key = (by_name["fingerprint"], by_name["subject"], int(by_name["seed"]))
                result = Result(figures, by_name["date"], int(by_name["cores"]), by_name["torch"])
            except ValueError:
                continue  # torn by a kill in mid-write; that cell is run again
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
