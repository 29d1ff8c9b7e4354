"""Jobs: queue, look, stop, go on, move, and read their log."""

import json
import os
import shutil
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from dreambooth.studio.commands import new_job
from dreambooth.studio.jobs import Kind, State
from dreambooth.studio.problems import ConflictError, MissingError
from dreambooth.studio.requests import AnyRequest
from dreambooth.studio.state import Studio, StudioOf, View, recent

router = APIRouter(prefix="/jobs", tags=["jobs"])
LOG_PART = 64 * 1024  # bytes of a log in one answer
PAGES = ("prepare.html", "grid.html")
ENDS: dict[str, State] = {"cancel": "cancelled", "pause": "paused"}  # the state that each way to stop leads to


class Place(BaseModel):
    """Name the queued job that another one goes before."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"before": 3}, {"before": None}]})

    before: int | None = Field(description="number of a queued job; null: go to the end")


class Changes(BaseModel):
    """Name what may change of a job that waits or runs."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"priority": 10}]})

    priority: int | None = Field(None, ge=-100, le=100)
    timeout_s: float | None = Field(None, gt=0)


@router.post("", status_code=201, summary="Queue a job")
def create(studio: StudioOf, request: Annotated[AnyRequest, Body()]) -> View:
    """Queue a job: train, generate, evaluate, prepare or export. It becomes the command of the same name."""
    job = studio.store.add(new_job(studio.workspace, request))
    studio.worker.wake()
    return _changed(studio, job.id)


@router.get("", summary="List jobs", response_class=JSONResponse)
async def index(
    studio: StudioOf,
    state: Annotated[list[State], Query()] = [],  # noqa: B006 - FastAPI copies it
    kind: Annotated[list[Kind], Query()] = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: int | None = None,
) -> Response:
    """Return jobs, the newest first, and the numbers of the queued ones in the order in which they will start."""
    if before is not None or state or kind:
        found = await run_in_threadpool(_find, studio, tuple(state), tuple(kind), limit, before)
    else:
        found = list((await recent(studio)).values())[:limit]
    return _as_json(f'{{"jobs": [{", ".join(found)}], "queue": {studio.board.queue}}}')


@router.get("/{number}", summary="Look at a job", response_class=JSONResponse)
async def show(studio: StudioOf, number: int) -> Response:
    """Return a job with its progress: steps, loss, time left, scores, images."""
    found = (await recent(studio)).get(number)
    return _as_json(found or json.dumps(await run_in_threadpool(_view, studio, number)))


@router.post("/{number}/cancel", summary="Cancel a job")
def cancel(studio: StudioOf, number: int) -> View:
    """Stop a job; its process gets SIGTERM and saves its state. A second time: it is killed at once."""
    return _stop(studio, number, "cancel")


@router.post("/{number}/pause", summary="Pause a job")
def pause(studio: StudioOf, number: int) -> View:
    """Stop a job with its state saved, and keep its place: `resume` goes on from there."""
    return _stop(studio, number, "pause")


@router.post("/{number}/resume", summary="Resume a job")
def resume(studio: StudioOf, number: int) -> View:
    """Queue a paused or cancelled job again; a training goes on from its last state, to the same bits."""
    return _again(studio, number, ("paused", "cancelled"))


@router.post("/{number}/retry", summary="Retry a job")
def retry(studio: StudioOf, number: int) -> View:
    """Queue a failed or cancelled job again."""
    return _again(studio, number, ("failed", "cancelled"))


@router.post("/{number}/move", summary="Reorder the queue")
def move(studio: StudioOf, number: int, place: Place) -> View:
    """Place a queued job directly before another; it takes over that one's priority."""
    studio.store.move(number, place.before)
    return _changed(studio, number)


@router.patch("/{number}", summary="Change priority or timeout")
def change(studio: StudioOf, number: int, changes: Changes) -> View:
    """Change a job's priority or timeout."""
    studio.store.get(number)
    values = changes.model_dump(exclude_unset=True)
    if values.get("priority", 0) is None:
        del values["priority"]
    if values:
        studio.store.set(number, **values)
    return _changed(studio, number)


@router.delete("/{number}", status_code=204, summary="Remove a job from the list")
def delete(studio: StudioOf, number: int) -> Response:
    """Remove a job that is over from the list, with its log; what it made stays."""
    folder = studio.worker.folder(studio.store.get(number))
    studio.store.delete(number)
    studio.board.forget()
    shutil.rmtree(folder.path, ignore_errors=True)
    return Response(status_code=204)


@router.get("/{number}/log", summary="Read a job's log")
def log(studio: StudioOf, number: int, offset: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
    """Return what a job has said from a byte on, and the byte to go on from."""
    path = studio.worker.folder(studio.store.get(number)).log
    if not path.is_file():
        return {"text": "", "offset": offset, "is_all": True}
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(min(offset, size))
        text = file.read(LOG_PART)
        return {"text": text.decode(errors="replace"), "offset": file.tell(), "is_all": file.tell() >= size}


@router.get("/{number}/page", summary="Get the page that a job has written", response_class=FileResponse)
def page(studio: StudioOf, number: int) -> FileResponse:
    """Return the page of a `prepare` or of a `generate` with a grid."""
    job = studio.store.get(number)
    for name in PAGES:
        if (path := studio.workspace.root / job.output / name).is_file():
            return FileResponse(path, media_type="text/html")
    raise MissingError(f"job {number}: has written no page")


def _find(
    studio: Studio, states: tuple[State, ...], kinds: tuple[Kind, ...], limit: int, before: int | None
) -> list[str]:
    return [json.dumps(studio.board.view(job)) for job in studio.store.find(states, kinds, limit, before)]


def _as_json(text: str) -> Response:
    return Response(text, media_type="application/json")


def _view(studio: Studio, number: int) -> View:
    return studio.board.view(studio.store.get(number))


def _changed(studio: Studio, number: int) -> View:
    """Return a job that was just changed, and have everybody see the change."""
    studio.board.forget()
    return _view(studio, number)


def _stop(studio: StudioOf, number: int, how: str) -> View:
    job = studio.store.get(number)
    if job.state == "queued" or (job.state == "paused" and how == "cancel"):
        if not studio.store.change(number, (job.state,), ENDS[how]):
            return _stop(studio, number, how)  # it has just begun to run
    elif job.state == "running":
        is_second = job.asked == how == "cancel" and job.asked_at is not None
        studio.store.set(number, asked="kill" if is_second else how)
    else:
        raise ConflictError(f"job {number}: is {job.state}; there is nothing to stop")
    studio.worker.wake()
    return _changed(studio, number)


def _again(studio: StudioOf, number: int, before: tuple[State, ...]) -> View:
    studio.store.queue_again(number, before, deaths=0, error="")
    studio.worker.wake()
    return _changed(studio, number)
