"""Runs: all of them on the first page, and one with its samples over the steps, curves, log and what to do next."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Form, Request, Response
from fastapi.responses import FileResponse
from PIL import Image

from dreambooth.errors import UserError
from dreambooth.report.words import duration
from dreambooth.studio.jobs import Job
from dreambooth.studio.pages import run_view
from dreambooth.studio.pages.frame import image_answer, make_router, render, say
from dreambooth.studio.pages.queue import again
from dreambooth.studio.pages.run_view import RunPage
from dreambooth.studio.pages.settings_text import read_settings, read_value
from dreambooth.studio.processes import tail
from dreambooth.studio.requests import TrainRequest
from dreambooth.studio.routes import jobs as job_routes
from dreambooth.studio.routes import runs as run_routes
from dreambooth.studio.state import Studio, StudioOf
from dreambooth.studio.workspace import check_new_name, is_name

router = make_router()
LOG_BYTES = 16384  # of the end of a log
# What a report may do: it holds its images and its style, and needs nothing else.
REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox allow-popups"
FORK_FIELDS = ("train.max_steps", "optim.lr", "prior.weight", "run.seed")


def folder_of(studio: Studio, name: str) -> Path:
    """Return the folder of a run. Raises MissingError for a name that is none."""
    return studio.workspace.find_in(studio.workspace.runs, name)


def training_jobs(studio: Studio) -> list[Job]:
    """Return the jobs that train, the newest first."""
    return list(studio.store.find(kinds=("train",), limit=500))


@router.get("/")
def page(studio: StudioOf) -> Response:
    """Show all runs."""
    return render("home.html", "runs", runs=run_view.list_runs(studio.workspace.runs, training_jobs(studio)))


@router.get("/runs/{name}")
def show(studio: StudioOf, name: str) -> Response:
    """Show a run; of one that has only been queued, that it waits."""
    waiting = _waiting(studio, name)
    if waiting is not None:
        return render("run_waits.html", "runs", **waiting)
    return render("run.html", "runs", **_values(studio, name))


@router.get("/runs/{name}/waits")
def waits(studio: StudioOf, name: str) -> Response:
    """Show how a run that has not begun stands; one that has is loaded as a page."""
    waiting = _waiting(studio, name)
    return Response(headers={"HX-Refresh": "true"}) if waiting is None else render("_run_waits.html", **waiting)


def _waiting(studio: Studio, name: str) -> dict[str, Any] | None:
    """Return what is known of a run that only its job knows yet; None where its folder is there, or can never be."""
    if not is_name(name) or (studio.workspace.runs / name / "config.yaml").is_file():
        return None
    job = _newest_job(studio, name)
    return None if job is None else {"name": name, "job": studio.board.view(job), "text": _said(studio, job)}


def _newest_job(studio: Studio, name: str) -> Job | None:
    return next((job for job in training_jobs(studio) if job.output == f"checkpoints/{name}"), None)


def _said(studio: Studio, job: Job) -> str:
    """Return the end of what a job has said."""
    return _without_progress(tail(studio.worker.folder(job).log, LOG_BYTES))


@router.get("/runs/{name}/status")
def status(studio: StudioOf, name: str) -> Response:
    """Show how far a run is."""
    return render("_run_status.html", **_values(studio, name, with_plots=False))


@router.get("/runs/{name}/figures")
def figures(studio: StudioOf, name: str) -> Response:
    """Show its verdict and the first curves."""
    return render("_run_figures.html", **_values(studio, name))


@router.get("/runs/{name}/plots")
def plots(studio: StudioOf, name: str) -> Response:
    """Show its other curves."""
    return render("_run_plots.html", **_values(studio, name))


@router.get("/runs/{name}/film")
def film(studio: StudioOf, name: str) -> Response:
    """Show the steps that have samples."""
    return render("_run_film.html", **_values(studio, name, with_plots=False))


def _values(studio: Studio, name: str, with_plots: bool = True) -> dict[str, Any]:
    run = run_view.read_run(folder_of(studio, name), training_jobs(studio), with_plots)
    return {"run": run, "progress": _progress(studio, run)}


def _progress(studio: Studio, run: RunPage) -> dict[str, str]:
    """Return how long a run still takes and how fast it is, in words; empty where it is not known."""
    left, speed = "", ""
    if run.line.job is not None and run.line.state == "running":
        seconds = studio.board.view(run.line.job)["progress"]["seconds_left"]
        left = duration(seconds) if seconds else ""
    if run.sessions:
        speed = f"{run.sessions[-1].steps_per_second:.2f} steps/s"
    return {"left": left, "speed": speed}


@router.get("/runs/{name}/log")
def log(studio: StudioOf, name: str) -> Response:
    """Show the end of what the newest job of a run has said."""
    job = _newest_job(studio, name)
    return render("_log.html", text="" if job is None else _said(studio, job))


def _without_progress(text: str) -> str:
    """Return a log with each line as it was last written over."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


@router.get("/runs/{name}/samples/{step}/{prompt}/{seed}")
def sample(studio: StudioOf, request: Request, name: str, step: int, prompt: int, seed: int) -> Response:
    """Return one image of a run: of a prompt and a seed, at a step."""
    folder = folder_of(studio, name)
    grid = folder / "samples" / f"step-{step:06d}.png"
    version = grid.stat().st_mtime_ns if grid.is_file() else 0
    return image_answer(
        request, lambda: run_view.fitted(run_view.sample(folder, step, prompt, seed), run_view.SIDE), version
    )


@router.get("/runs/{name}/photo")
def photo(studio: StudioOf, request: Request, name: str) -> Response:
    """Return the first photo that a run learns from."""
    return _card_image(studio, request, name, run_view.first_photo(folder_of(studio, name), studio.workspace.root))


@router.get("/runs/{name}/highlight")
def highlight(studio: StudioOf, request: Request, name: str) -> Response:
    """Return the image of a run that is most like the photos."""
    return _card_image(studio, request, name, run_view.highlight(folder_of(studio, name)))


def _card_image(studio: Studio, request: Request, name: str, image: Image.Image | None) -> Response:
    if image is None:
        return FileResponse(run_view.NO_IMAGE, headers={"Cache-Control": "no-cache"})
    return image_answer(request, lambda: run_view.fitted(image, run_view.SIDE_OF_CARD), request.url.query)


@router.get("/runs/{name}/report")
def report(studio: StudioOf, name: str) -> Response:
    """Return the report of a run, which is a page of its own."""
    path = studio.workspace.find(f"checkpoints/{name}/report.html")
    return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


@router.post("/runs/{name}/resume")
def resume(studio: StudioOf, name: str) -> Response:
    """Go on with a run, wherever it was stopped."""
    line = run_view.read_line(folder_of(studio, name), training_jobs(studio))
    if line.job is not None and line.job.state in ("paused", "cancelled", "failed"):
        again(studio, line.job)
    else:
        job_routes.create(studio, TrainRequest.model_validate({"kind": "train", "run": name}))
    return say(f"{name} goes on from step {line.step}.")


@router.post("/runs/{name}/sample")
def sample_now(studio: StudioOf, name: str) -> Response:
    """Have a training draw its images after the step that it is at."""
    run_routes.sample_now(studio, name)
    return say("It draws after this step; the images come to the others.")


@router.post("/runs/{name}/longer")
def longer(studio: StudioOf, name: str, max_steps: Annotated[int, Form(ge=1, le=10**7)]) -> Response:
    """Make a finished run longer."""
    folder_of(studio, name)
    asked = {"kind": "train", "run": name, "settings": {"train.max_steps": max_steps}}
    job_routes.create(studio, TrainRequest.model_validate(asked))
    return say(f"{name} trains on to step {max_steps}.", go_to=f"/runs/{quote(name)}")


@router.post("/runs/{name}/fork")
async def fork(studio: StudioOf, request: Request, name: str) -> Response:
    """Begin a new run with the settings of this one, but for those that the form changes."""
    folder, form = folder_of(studio, name), await request.form()
    own = {key: str(form.get(key, "")).strip() for key in FORK_FIELDS}
    settings = {key: read_value(value) for key, value in own.items() if value}
    settings |= read_settings(str(form.get("more", "")))
    new = check_new_name(str(form.get("name", "")).strip(), "name")
    if (studio.workspace.runs / new).exists():
        raise UserError(f"name={new}: there is a run of this name already; take another one")
    config = f"checkpoints/{folder.name}/config.yaml"
    asked = {"kind": "train", "config": config, "name": new, "settings": settings}
    job_routes.create(studio, TrainRequest.model_validate(asked))
    return say("", go_to=f"/runs/{quote(new)}")


@router.get("/runs/{name}/compare")
def compare(studio: StudioOf, name: str, other: str = "") -> Response:
    """Show two runs side by side: their images of the same prompts, scores, and the settings that differ."""
    jobs, folder = training_jobs(studio), folder_of(studio, name)
    names = [line.name for line in run_view.list_runs(studio.workspace.runs, jobs) if line.name != name]
    if not names:
        text = "There is no other run to compare with; fork this one first."
        return render("error.html", "runs", title="Nothing to compare with", text=text)
    one = run_view.read_run(folder, jobs, with_plots=False)
    two = run_view.read_run(folder_of(studio, other or names[0]), jobs, with_plots=False)
    return render("compare.html", "runs", names=names, comparison=run_view.compare(one, two))
