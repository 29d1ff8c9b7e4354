"""The queue: what runs, what waits and in which order, and what is over."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from fastapi import Response

from dreambooth.report.words import duration
from dreambooth.studio.jobs import Job
from dreambooth.studio.pages.frame import make_router, render, say
from dreambooth.studio.routes import jobs as job_routes
from dreambooth.studio.state import Studio, StudioOf, View

router = make_router()
NUM_OVER = 40  # jobs that are over, on the page


@dataclass(frozen=True)
class JobLine:
    """Hold a job as a line of the queue. share: of it that is done, 0 to 1; None: not known. words: how far it is."""

    id: int
    kind: str
    title: str
    state: str
    link: str
    share: float | None
    words: str
    error: str


def job_line(view: View) -> JobLine:
    """Return a job as the pages show it. view: as the API answers."""
    progress = view["progress"]
    return JobLine(
        view["id"],
        view["kind"],
        _title(view),
        view["state"],
        _link(view),
        progress["fraction"],
        _words(view, progress),
        view["error"],
    )


def _title(view: View) -> str:
    """Return a job in words that begin with what it does: Learn my-dog."""
    verb, _, rest = view["title"].partition(" ")
    verbs = {"train": "Learn", "generate": "Draw", "evaluate": "Measure", "prepare": "Look at", "export": "Export"}
    if rest.startswith("from "):
        rest = f"from {rest.rpartition('/')[2]}"
    return f"{verbs.get(verb, verb)} {rest}"


def _link(view: View) -> str:
    output = str(view["output"])
    if view["kind"] == "train":
        return f"/runs/{quote(output.removeprefix('checkpoints/'))}"
    if view["kind"] == "export":
        return "/models"
    return f"/gallery?folder={quote(output)}" if view["kind"] == "generate" else ""


def _words(view: View, progress: dict[str, Any]) -> str:
    """Return how far a job is, or when it ended."""
    if view["state"] == "queued":
        return "waits for its turn" if not view["attempts"] else "goes on when it is its turn"
    parts = []
    if progress["step"] is not None and progress["max_steps"]:
        parts.append(f"step {progress['step']} of {progress['max_steps']}")
    elif view["kind"] == "generate" and progress["num_images"]:
        parts.append(f"{progress['num_images']} image{'s' * (progress['num_images'] != 1)}")
    if view["state"] == "running":
        if view["asked"]:
            return "stops, and saves its state first"
        task = progress["task"] if progress["task"] not in ("training", "sampling") else ""
        parts = [*([task] if task else []), *parts]
        if progress["seconds_left"]:
            parts.append(f"{duration(progress['seconds_left'])} left")
        return ", ".join(parts) or "begins"
    if view["ended"] and view["started"]:
        parts.append(f"took {duration(view['ended'] - view['started'])}")
        parts.append(f"{datetime.fromtimestamp(view['ended']):%d %b, %H:%M}")
    return ", ".join(parts)


def open_lines(studio: Studio) -> tuple[list[JobLine], list[JobLine]]:
    """Return what runs, and what waits in the order in which it will start."""
    running = [job_line(view) for view in studio.board.views() if view["state"] == "running"]
    return running, [job_line(studio.board.view(job)) for job in studio.store.queue()]


@router.get("/queue")
def page(studio: StudioOf) -> Response:
    """Show the queue."""
    return render("queue.html", "queue", **_lists(studio))


@router.get("/queue/jobs")
def jobs(studio: StudioOf) -> Response:
    """Show its jobs, as they are now."""
    return render("_jobs.html", **_lists(studio))


def _lists(studio: Studio) -> dict[str, Any]:
    running, waiting = open_lines(studio)
    over = [job_line(view) for view in studio.board.views() if view["state"] not in ("running", "queued")]
    return {"running": running, "waiting": waiting, "over": over[:NUM_OVER]}


@router.get("/queue/now")
def now(studio: StudioOf) -> Response:
    """Show what runs now, for the rail."""
    running, _ = open_lines(studio)
    running.sort(key=lambda job: job.share is None)  # rather one that says how far it is
    return render("_now.html", job=running[0] if running else None)


@router.get("/queue/count")
def count(studio: StudioOf) -> Response:
    """Show how many jobs run and wait, for the rail."""
    running, waiting = open_lines(studio)
    number = len(running) + len(waiting)
    return render("_count.html", number=number)


@router.post("/jobs/{number}/stop")
def stop(studio: StudioOf, number: int) -> Response:
    """Stop a job with its state saved, or take it out of the queue."""
    job = studio.store.get(number)
    if job.state == "queued":
        job_routes.cancel(studio, number)
        return say("Taken out of the queue.", undo=f"/jobs/{number}/resume")
    job_routes.pause(studio, number)
    return say("It finishes its step, saves its state and stops.")


@router.post("/jobs/{number}/resume")
def resume(studio: StudioOf, number: int) -> Response:
    """Queue a job again that was stopped or failed."""
    again(studio, studio.store.get(number))
    return say("It is in the queue again.")


def again(studio: Studio, job: Job) -> None:
    """Queue a job again, whatever it has come to. Raises ConflictError where it is in the queue already."""
    if job.state == "failed":
        job_routes.retry(studio, job.id)
    else:
        job_routes.resume(studio, job.id)


@router.post("/jobs/{number}/forget")
def forget(studio: StudioOf, number: int) -> Response:
    """Remove a job that is over from the list."""
    studio.store.delete(number)
    return say("Removed from the list. What it made stays.")


@router.post("/jobs/{number}/up")
def up(studio: StudioOf, number: int) -> Response:
    """Let a job start earlier by one place."""
    return _moved(studio, number, -1)


@router.post("/jobs/{number}/down")
def down(studio: StudioOf, number: int) -> Response:
    """Let a job start later by one place."""
    return _moved(studio, number, 1)


def _moved(studio: Studio, number: int, by: int) -> Response:
    order = [job.id for job in studio.store.queue()]
    if number in order:
        place = order.index(number)
        rest = order[:place] + order[place + 1 :]
        target = min(max(place + by, 0), len(rest))
        studio.store.move(number, rest[target] if target < len(rest) else None)
    return say("")
