"""Runs: what a run was asked, what it logs, what it draws, and the disk it takes.

Many clients poll a run that trains, so an answer is kept until one of the files that it is made of changes.
"""

import csv
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse

from dreambooth.errors import UserError, escaped
from dreambooth.files import whole_lines
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.studio import pictures, trash
from dreambooth.studio.jobs import OPEN
from dreambooth.studio.problems import ConflictError, MissingError, RequestError
from dreambooth.studio.processes import is_there
from dreambooth.studio.progress import last_step, newest_images, read_config, version_of
from dreambooth.studio.state import Studio, StudioOf
from dreambooth.studio.workspace import Workspace, is_name
from dreambooth.subject_info import read_card

router = APIRouter(prefix="/runs", tags=["runs"])
# Of a run's folder, what an answer about it is made of.
WATCHED = ("", "config.yaml", "logs", "logs/metrics.csv", "logs/scores.jsonl", "model", "samples", "state")
MAX_POINTS = 2000  # lines of metrics.csv in one answer


@router.get("", summary="List runs")
def index(studio: StudioOf) -> list[dict[str, Any]]:
    """Return the runs in checkpoints/, the one that was written to last first."""
    return [_brief(studio.workspace, folder, _job_of(studio, folder)) for folder in _runs(studio.workspace)]


@router.get("/{run}", summary="Look at a run", response_class=JSONResponse)
def show(studio: StudioOf, run: str) -> Response:
    """Return a run with its config, its validations, its sample grids and the step to keep."""
    folder = _run(studio.workspace, run)
    versions = tuple(version_of(folder / name) for name in WATCHED)
    return _as_json(_shown(studio.workspace, folder, _job_of(studio, folder), versions))


@lru_cache(maxsize=64)
def _shown(workspace: Workspace, folder: Path, job: int | None, versions: tuple[tuple[int, int], ...]) -> bytes:
    samples = [workspace.relative(path) for path in reversed(newest_images(folder / "samples"))]
    about = {"config": read_config(folder), "samples": samples, "has_report": (folder / "report.html").is_file()}
    found = {**_brief(workspace, folder, job), **about, "scores": list(_judged_of(folder).scores)}
    return json.dumps(found, allow_nan=False).encode()


def _as_json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


@router.get("/{run}/config", summary="Get a run's config", response_class=PlainTextResponse)
def config(studio: StudioOf, run: str) -> PlainTextResponse:
    """Return config.yaml as it is."""
    path = _run(studio.workspace, run) / "config.yaml"
    return PlainTextResponse(path.read_text(encoding="utf-8"), media_type="text/yaml")


@router.get("/{run}/scores", summary="Get a run's validations")
def scores(studio: StudioOf, run: str) -> list[dict[str, Any]]:
    """Return each validation: step, loss and mean scores by log name."""
    return list(_judged_of(_run(studio.workspace, run)).scores)


@router.get("/{run}/metrics", summary="Get what a run logs at each step", response_class=JSONResponse)
def metrics(
    studio: StudioOf, run: str, after: int = 0, limit: Annotated[int, Query(ge=1, le=MAX_POINTS)] = MAX_POINTS
) -> Response:
    """Return the lines of metrics.csv behind a step; where there are more than `limit`, evenly spread ones.

    `columns` are the names; `rows` has a list of numbers a step, null where nothing was logged.
    """
    path = _run(studio.workspace, run) / "logs" / "metrics.csv"
    return _as_json(_logged(path, version_of(path), after, limit))


@lru_cache(maxsize=64)
def _logged(path: Path, version: tuple[int, int], after: int, limit: int) -> bytes:
    rows = list(csv.reader(whole_lines(path)))
    header, rows = (rows[0], rows[1:]) if rows else ([], [])
    rows = [row for row in rows if int(row[0]) > after]
    if len(rows) > limit:
        rows = [rows[number * (len(rows) - 1) // max(1, limit - 1)] for number in range(limit)]
    found = {"columns": header, "rows": [[_number(value) for value in row] for row in rows]}
    return json.dumps(found, allow_nan=False).encode()


def _number(text: str) -> float | None:
    """Return a value of metrics.csv; None where nothing, or nothing finite, was logged."""
    return number if text and math.isfinite(number := float(text)) else None


@router.get("/{run}/disk", summary="Get the disk that a run takes")
def disk(studio: StudioOf, run: str) -> dict[str, int]:
    """Return bytes by part of the run's folder, and in all."""
    folder = _run(studio.workspace, run)
    parts = {path.name: pictures.num_bytes(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    return {**parts, "total": pictures.num_bytes(folder)}


@router.get("/{run}/report", summary="Get a run's report", response_class=FileResponse)
def report(studio: StudioOf, run: str) -> FileResponse:
    """Return report.html, which a run has once it is finished."""
    path = _run(studio.workspace, run) / "report.html"
    if not path.is_file():
        raise MissingError(f"{escaped(run)}: has no report yet; it is written when the run is finished")
    return FileResponse(path, media_type="text/html")


@router.post("/{run}/sample", status_code=202, summary="Have a run that trains draw its images now")
def sample_now(studio: StudioOf, run: str) -> dict[str, str]:
    """Have a training draw its validation's images after the step that it is at. They come to `samples`."""
    folder = _run(studio.workspace, run)
    if not is_training(studio, folder):
        raise ConflictError(f"{escaped(run)}: does not train now; generate has images of its result")
    (folder / "sample-now").touch()
    return {"folder": studio.workspace.relative(folder / "samples")}


@router.delete("/{run}", summary="Delete a run")
def delete(studio: StudioOf, run: str, confirm: str = "") -> dict[str, str]:
    """Move a run to the trash. confirm: its name once more."""
    folder = _run(studio.workspace, run)
    if confirm != run:
        raise RequestError(f"confirm={escaped(confirm)}: write the run's name, {escaped(run)}, to delete it")
    if job := _job_of(studio, folder):
        raise ConflictError(f"{escaped(run)}: job {job} writes there; cancel it first")
    if is_trained_elsewhere(folder):
        raise ConflictError(f"{escaped(run)}: a terminal trains there; end it first")
    return {"undo": trash.throw_away(studio.workspace, folder)}


def _runs(workspace: Workspace) -> list[Path]:
    if not workspace.runs.is_dir():
        return []
    found = [path for path in workspace.runs.iterdir() if is_name(path.name) and (path / "config.yaml").is_file()]
    return sorted(found, key=_changed, reverse=True)


def _changed(folder: Path) -> float:
    """Return when a run was last written to."""
    return max(path.stat().st_mtime for path in (folder, folder / "logs", folder / "state") if path.is_dir())


def _run(workspace: Workspace, name: str) -> Path:
    folder = workspace.find_in(workspace.runs, name)
    if not (folder / "config.yaml").is_file():
        raise MissingError(f"{escaped(name)}: there is no such run")
    return folder


def _brief(workspace: Workspace, folder: Path, job: int | None) -> dict[str, Any]:
    """Return what a list of runs shows of one. job: the open one that writes to it."""
    card = read_card(folder / "model")
    model_step = None if card is None else card.step
    judged = _judged_of(folder, model_step)
    step, max_steps, values = last_step(folder)
    samples = newest_images(folder / "samples")
    return {
        "name": folder.name,
        "folder": workspace.relative(folder),
        "step": max(step, judged.last_step),
        "max_steps": max_steps,
        "loss": values.get("train/loss"),
        "is_finished": card is not None and step > 0 and card.is_of_run_at(max(step, judged.last_step)),
        "has_model": card is not None,
        "model_step": model_step,
        "best_step": judged.best_step,
        "quality": judged.quality,
        "verdict": judged.verdict,
        "subjects": [] if card is None else [f"{each.identifier} {each.class_noun}" for each in card.subjects],
        "cover": workspace.relative(samples[0]) if samples else None,
        "job": job,
        "changed": _changed(folder),
    }


def is_training(studio: Studio, folder: Path) -> bool:
    """Return whether a job or a terminal trains in a run's folder."""
    name = studio.workspace.relative(folder)
    jobs = studio.store.find(("running",), ("train",))
    return any(job.output == name for job in jobs) or is_trained_elsewhere(folder)


def is_trained_elsewhere(folder: Path) -> bool:
    """Return whether a process trains in this folder, by the id that it has signed the lock with."""
    try:
        pid = int((folder / "state" / "lock").read_text(encoding="utf-8").split()[-1])
    except (OSError, ValueError, IndexError):
        return False
    return is_there(pid)


def _job_of(studio: Studio, folder: Path) -> int | None:
    """Return the open job that writes to a run."""
    name = studio.workspace.relative(folder)
    return next((job.id for job in studio.store.find(OPEN) if f"{job.output}/".startswith(f"{name}/")), None)


@dataclass(frozen=True)
class Judged:
    """Hold what a run's validations say: the step to keep with its quality, the verdict, each one's mean scores."""

    last_step: int = 0
    best_step: int | None = None
    quality: float | None = None
    verdict: str | None = None
    scores: tuple[dict[str, Any], ...] = ()


def _judged_of(folder: Path, model_step: int | None = None) -> Judged:
    """Return what the validations of a run say now. model_step: of its model, which the verdict is on."""
    path = folder / "logs" / "scores.jsonl"
    return _judged(path, version_of(path), model_step)


@lru_cache(maxsize=256)
def _judged(path: Path, version: tuple[int, int], model_step: int | None) -> Judged:
    try:
        log = ValidationLog(path)
    except UserError:
        return Judged()  # damaged: the rest of the run is shown
    if not log.entries:
        return Judged()
    best = log.best
    scores = tuple(
        {"step": each.step, "is_best": best is not None and each.step == best.step, **each.metrics()}
        for each in log.entries
    )
    quality = None if best is None or best.quality is None else best.quality.value
    best_step = None if best is None else best.step
    return Judged(log.entries[-1].step, best_step, quality, str(log.verdict_on(model_step)), scores)
