"""How far a job is, read from the files that it writes anyway: its log and the folder of its run or images."""

import csv
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from dreambooth.config import plain_yaml
from dreambooth.files import whole_lines
from dreambooth.status_line import read_progress_line
from dreambooth.studio.gallery import is_shown
from dreambooth.studio.jobs import Job
from dreambooth.studio.processes import JobFolder, tail
from dreambooth.studio.workspace import Workspace

NUM_LATEST = 12  # images that a job's progress names


@dataclass(frozen=True)
class JobProgress:
    """Hold how far a job is. fraction: 0 to 1; None: not known yet. task, text: as the command says it.

    step, max_steps, loss: of a training. scores: of its last validation, by log name. images: the newest ones, as paths
    in the workspace.
    """

    fraction: float | None = None
    task: str = ""
    text: str = ""
    seconds_left: float | None = None
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    num_images: int = 0
    images: tuple[str, ...] = ()


def progress_of(workspace: Workspace, job: Job) -> JobProgress:
    """Return how far a job is, or how far it came."""
    said = read_progress_line(tail(JobFolder(workspace.jobs / str(job.id)).log))
    task, fraction, text, seconds = said if said is not None else ("", None, "", None)
    output = workspace.root / job.output
    if job.kind == "train":
        images = tuple(workspace.relative(each) for each in newest_images(output / "samples"))
        step, max_steps, values = last_step(output)
        if max_steps and task in ("", "training"):
            fraction = step / max_steps
        scores = {name: value for name, value in values.items() if name.startswith("eval/")}
        loss = values.get("train/loss")
        return JobProgress(fraction, task, text, seconds, step, max_steps, loss, scores, len(images), images)
    found = newest_images(output) if job.kind in ("generate", "evaluate") else []
    latest = tuple(workspace.relative(each) for each in found[:NUM_LATEST])
    return JobProgress(
        1.0 if job.state == "done" else fraction, task, text, seconds, num_images=len(found), images=latest
    )


def newest_images(folder: Path) -> list[Path]:
    """Return the images in a folder, the newest first; not those about others, which have no recipe."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if is_shown(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def last_step(run: Path) -> tuple[int, int, dict[str, float]]:
    """Return the last step of a run, the steps that it is to take, and the newest value of each logged number."""
    metrics = run / "logs" / "metrics.csv"
    values = dict(_last_values(metrics, version_of(metrics)))
    step = int(values.pop("step", 0))
    return step, max_steps_of(run), values


def max_steps_of(run: Path) -> int:
    """Return train.max_steps of a run's config; 0 where there is none yet."""
    train = read_config(run).get("train")
    steps = train.get("max_steps") if isinstance(train, dict) else None
    return steps if isinstance(steps, int) else 0


def read_config(run: Path) -> dict[str, Any]:
    """Return the config.yaml of a run as plain values; empty where there is none."""
    path = run / "config.yaml"
    return _read_config(path, version_of(path))


def version_of(path: Path) -> tuple[int, int]:
    """Return what changes when a file does: what is read of it is kept until then."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=256)
def _read_config(path: Path, version: tuple[int, int]) -> dict[str, Any]:
    if not any(version):
        return {}
    found, _ = plain_yaml.read(path)
    return found if isinstance(found, dict) else {}


@lru_cache(maxsize=256)
def _last_values(path: Path, version: tuple[int, int]) -> dict[str, float]:
    """Return the newest value in each column of metrics.csv, looking at its last lines."""
    if not any(version):
        return {}
    with open(path, encoding="utf-8") as file:
        header = file.readline()
    lines = tail(path, 65536).split("\n")[1:-1] if version[1] > 65536 else whole_lines(path)[1:]
    values: dict[str, float] = {}
    for row in csv.DictReader([header, *lines]):
        values.update(
            {name: number for name, value in row.items() if name and value and math.isfinite(number := float(value))}
        )
    return values
