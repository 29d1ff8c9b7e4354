"""The web application of a studio: its API, and what makes and ends its worker."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence

from fastapi import FastAPI

from dreambooth.studio import pictures, trash
from dreambooth.studio.api import DESCRIPTION, PREFIX, TAGS, add_api
from dreambooth.studio.gallery import Gallery
from dreambooth.studio.guard import Access, Guard
from dreambooth.studio.jobs import JobStore
from dreambooth.studio.pages.site import add_pages
from dreambooth.studio.processes import RUNNER
from dreambooth.studio.state import Board, Studio
from dreambooth.studio.worker import Worker
from dreambooth.studio.workspace import Workspace
from dreambooth.version import __version__


def create_app(
    workspace: Workspace,
    access: Access | None = None,
    devices: Sequence[str] = ("cpu",),
    runner: Sequence[str] = RUNNER,
    starts_jobs: bool = True,
) -> FastAPI:
    """Return the application of a studio in a workspace.

    access: who may use it (None: this machine alone). devices: to work on, as `worker.find_devices` names them.
    runner: the command that runs a job. starts_jobs: False leaves them in the queue.
    """
    app = FastAPI(
        title="DreamBooth studio",
        description=DESCRIPTION,
        version=__version__,
        openapi_tags=TAGS,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        lifespan=_living,
    )
    workspace.prepare()
    store = JobStore(workspace.database)
    worker = Worker(workspace, store, devices, runner)
    app.state.studio = Studio(workspace, store, worker, Board(workspace, store), Gallery(workspace))
    app.state.starts_jobs = starts_jobs
    app.state.streams = set()
    app.state.is_closing = threading.Event()
    add_api(app)
    add_pages(app)
    app.add_middleware(Guard, access=access or Access())
    return app


@contextlib.asynccontextmanager
async def _living(app: FastAPI) -> AsyncIterator[None]:
    """Run the worker while the application is there. Jobs that run go on without it."""
    studio: Studio = app.state.studio
    trash.empty(studio.workspace)
    pictures.forget_old_thumbnails(studio.workspace)
    if app.state.starts_jobs:
        studio.worker.start()
    try:
        yield
    finally:
        app.state.is_closing.set()
        await asyncio.to_thread(studio.worker.close)
        studio.gallery.close()
        studio.store.close()
