"""A plot for each experiment: the four metrics with goals, for each variant or as a map over two settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from dreambooth.files import atomic_file
from toyworld.lab.experiments import SUBJECTS, Experiment
from toyworld.lab.metrics import GOALS, METRICS
from toyworld.lab.tables import VariantResults


def plot(experiment: Experiment, rows: Sequence[VariantResults], path: Path) -> None:
    """Write a PNG of what has been measured."""
    measured = [row for row in rows if row.results]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    for axis, name in zip(axes.flat, GOALS, strict=True):
        (_heat if experiment.heat else _points)(axis, measured, name)
        axis.set_title(METRICS[name], fontsize=10)
    figure.suptitle(experiment.title)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def _points(axis: Any, rows: Sequence[VariantResults], name: str) -> None:
    """Draw a coloured dot for each trial, the mean over subjects with its interval in black, the goal dashed."""
    for number, subject in enumerate(SUBJECTS):
        points = [
            (x, result.metrics[name])
            for x, row in enumerate(rows)
            for (of, _), result in row.results.items()
            if of == str(subject)
        ]
        shift = 0.06 * (number - 2)
        label = str(subject) if points else None
        axis.scatter([x + shift for x, _ in points], [y for _, y in points], s=14, alpha=0.7, label=label)
    for x, row in enumerate(rows):
        found = row.estimate(name)
        ends = [[found.mean - found.low], [found.high - found.mean]] if found.num > 1 else 0.0
        axis.errorbar(x + 0.25, found.mean, ends, fmt="o", color="black", capsize=3, markersize=5)
    axis.axhline(GOALS[name][1], color="gray", linestyle="--", linewidth=1)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, -0.05), max(high, 1.05))  # the same scale for all experiments where it holds their values
    axis.set_xticks(range(len(rows)), [row.variant.name.replace(", ", ",\n") for row in rows], fontsize=8)
    axis.legend(fontsize=6)


def _heat(axis: Any, rows: Sequence[VariantResults], name: str) -> None:
    """Draw means over subjects on a grid of the two numbers in the variants' names.

    What reaches the goal is in bold.
    """
    means = {_numbers(row.variant.name): row.estimate(name).mean for row in rows}
    across, up = (sorted({pair[side] for pair in means}) for side in (0, 1))
    grid = np.array([[means.get((x, y), np.nan) for x in across] for y in up])
    more_is_better, goal = GOALS[name]
    axis.imshow(grid, cmap="viridis" if more_is_better else "viridis_r", aspect="auto", origin="lower")
    for (x, y), value in means.items():
        reached = value >= goal if more_is_better else value <= goal
        box = {"boxstyle": "round", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"}
        weight = "bold" if reached else "normal"
        axis.text(across.index(x), up.index(y), f"{value:.2f}", ha="center", va="center", weight=weight, bbox=box)
    axis.set_xticks(range(len(across)), [f"{x:g}" for x in across])
    axis.set_yticks(range(len(up)), [f"{y:g}" for y in up])
    axis.set_xlabel("learning rate", fontsize=8)
    axis.set_ylabel("steps", fontsize=8)


def _numbers(name: str) -> tuple[float, float]:
    first, second = re.findall(r"\d[\d.e-]*", name)
    return float(first), float(second)
