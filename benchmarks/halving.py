"""Replay successive halving on a grid that was trained whole: which cell it would have found, and for how many steps.

    python -m dreambooth sweep configs/sweeps/nine-settings.yaml
    python benchmarks/halving.py configs/sweeps/nine-settings.yaml

A halved cell goes on from its state to the bits of the whole run, so its validations are those of the whole run up to
where it was stopped: replaying decides as halving would have.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.sweep import Sweep, load_sweep
from dreambooth.sweep.halving import rungs
from dreambooth.sweep.search import cells_of
from dreambooth.sweep.status import quality_of


@dataclass(frozen=True)
class Replay:
    """Hold what halving comes to. steps: taken, of those of all cells; found, best: quality of a point at the end."""

    steps: float
    found: float
    best: float

    @property
    def loss(self) -> float:
        """Return how much less quality the found point has than the best one, of the best's."""
        return 1 - self.found / self.best if self.best else 0.0


def qualities(sweep: Sweep, subjects: Sequence[str], until: int) -> dict[str, float]:
    """Return the mean quality of each point over some subjects, by the validations up to a step."""
    found: dict[str, list[float]] = {}
    for cell in cells_of(sweep):
        if cell.subject_name in subjects:
            log = ValidationLog(sweep.runs / cell.name / "logs" / "scores.jsonl")
            found.setdefault(cell.point.name, []).append(quality_of(log, until)[0] or 0.0)
    return {name: sum(own) / len(own) for name, own in found.items()}


def replay(sweep: Sweep, subjects: Sequence[str], stops: Sequence[int], factor: int) -> Replay:
    """Replay halving over the points, compared by their mean over some subjects."""
    last = qualities(sweep, subjects, stops[-1])
    points, steps, before = list(last), 0, 0
    for rung in stops:
        steps += len(points) * (rung - before)
        before = rung
        ranked = sorted(points, key=qualities(sweep, subjects, rung).__getitem__, reverse=True)
        points = ranked[: max(1, math.ceil(len(points) / factor))] if rung != stops[-1] else ranked[:1]
    return Replay(steps / (len(last) * stops[-1]), last[points[0]], max(last.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a grid that has been trained")
    sweep = load_sweep(parser.parse_args().sweep)
    train = sweep.config_of(cells_of(sweep)[0])
    subjects = list(dict.fromkeys(cell.subject_name for cell in cells_of(sweep)))
    print("| compared by | factor | compared at | steps | quality found | best | loss |\n|---|---|---|---|---|---|---|")
    for factor, first_steps in ((3, None), (2, None), (2, train.validate.every_steps)):
        search = dataclasses.replace(sweep.search, factor=factor, first_steps=first_steps)
        steps = rungs(train, dataclasses.replace(sweep, sections={**sweep.sections, "search": search}))
        for names in [subjects, *([name] for name in subjects)]:
            seen = replay(sweep, names, steps, factor)
            told = ", ".join(names) if len(names) == 1 else f"mean of {len(names)} subjects"
            numbers = f"{seen.steps:.0%} | {seen.found:.3f} | {seen.best:.3f} | {seen.loss:.1%}"
            print(f"| {told} | {factor} | {' '.join(map(str, steps))} | {numbers} |")


if __name__ == "__main__":
    main()
