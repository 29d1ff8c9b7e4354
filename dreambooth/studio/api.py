"""The REST API, version 1: all routes below /api/v1, and how mistakes are answered."""

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from dreambooth.errors import DreamBoothError
from dreambooth.studio.problems import RequestError
from dreambooth.studio.routes import docs, events, images, jobs, models, runs, subjects

PREFIX = "/api/v1"
DESCRIPTION = """From a folder of photos to pictures of that subject, over the same commands and folders as a terminal.

Names of files are paths in the workspace, such as `outputs/job-3/00000.png`. A mistake is answered with
`{"detail": "field=value: what is wrong; what to do"}`.
"""
TAGS = [
    {"name": "subjects", "description": "Folders of photos, with captions and masks."},
    {"name": "jobs", "description": "The queue: train, generate, evaluate, prepare, export."},
    {"name": "events", "description": "What changes, as Server-Sent Events."},
    {"name": "runs", "description": "What trainings log and draw."},
    {"name": "images", "description": "What was generated, with the recipe of each image."},
    {"name": "models", "description": "What there is to begin from, or to make images with."},
    {"name": "trash", "description": "What was deleted, for seven days."},
    {"name": "status", "description": "The studio itself."},
]


def add_api(app: FastAPI) -> None:
    """Add the routes, and the answers to mistakes."""
    router = APIRouter(prefix=PREFIX)
    for module in (subjects, jobs, events, runs, images, models, docs):
        router.include_router(module.router)
    app.include_router(router)
    app.add_exception_handler(DreamBoothError, _answer)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    status = error.status if isinstance(error, RequestError) else 422
    return JSONResponse({"detail": str(error)}, status)
