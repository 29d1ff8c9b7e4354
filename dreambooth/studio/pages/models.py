"""Models: what the runs and files take of the disk, their export, and their way to the trash."""

import shutil
from dataclasses import dataclass
from typing import Annotated

from fastapi import Form, Response

from dreambooth.disk import size_in_words
from dreambooth.studio import pictures
from dreambooth.studio.pages import run_view
from dreambooth.studio.pages.frame import make_router, render, say
from dreambooth.studio.pages.runs import training_jobs
from dreambooth.studio.requests import ExportRequest
from dreambooth.studio.routes import jobs as job_routes
from dreambooth.studio.routes import models as model_routes
from dreambooth.studio.routes import runs as run_routes
from dreambooth.studio.state import StudioOf
from dreambooth.subject_info import read_card

router = make_router()
FORMATS = {
    "comfyui": "ComfyUI (LoRA)",
    "kohya": "kohya, A1111, SD.Next (LoRA)",
    "lora": "diffusers (LoRA)",
    "diffusers": "diffusers (whole pipeline)",
    "single-file": "one .safetensors (whole model)",
    "embedding": "embedding",
}


@dataclass(frozen=True)
class ModelLine:
    """Hold a run with the disk that it takes."""

    line: run_view.RunLine
    size: str
    has_model: bool


@router.get("/models")
def page(studio: StudioOf) -> Response:
    """Show runs, bases and files."""
    runs = studio.workspace.runs
    lines = [
        ModelLine(
            line,
            size_in_words(pictures.num_bytes(runs / line.name)),
            read_card(runs / line.name / "model") is not None,
        )
        for line in run_view.list_runs(runs, training_jobs(studio))
    ]
    others = [
        {**each, "size": size_in_words(each["bytes"]), "resolution": each.get("resolution")}
        for each in model_routes.models(studio)["models"]
        if each["kind"] != "run"
    ]
    free = size_in_words(shutil.disk_usage(studio.workspace.root).free)
    return render("models.html", "models", runs=lines, others=others, free=free, formats=FORMATS)


@router.post("/models/export")
def export(
    studio: StudioOf,
    run: Annotated[str, Form()],
    kind: Annotated[str, Form()],
    dtype: Annotated[str, Form()],
    repo: Annotated[str, Form()] = "",
    public: Annotated[str, Form()] = "",
) -> Response:
    """Queue an export. repo: of the hub, OWNER/NAME, which gets it too."""
    values: dict[str, object] = {"kind": "export", "run": run, "format": kind, "dtype": dtype}
    if repo.strip():
        values |= {"push_to_hub": repo.strip(), "private": not public}
    job_routes.create(studio, ExportRequest.model_validate(values))
    return say("", go_to="/queue")


@router.post("/models/{name}/delete")
def delete(studio: StudioOf, name: str) -> Response:
    """Move a run to the trash."""
    undo = run_routes.delete(studio, name, confirm=name)["undo"]
    response = say(f"{name} is deleted.", undo=f"/trash/{undo}/restore")
    response.headers["HX-Trigger-After-Settle"] = "images-gone"
    return response
