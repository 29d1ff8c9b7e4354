"""Put all pages and their static files together."""

import threading
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from dreambooth.studio.pages import gallery, generate, masks, models, queue, runs, subjects
from dreambooth.studio.pages.frame import STATIC, problem, render
from dreambooth.studio.problems import MissingError

FOREVER = "public, max-age=31536000, immutable"  # the address of a static file changes with its content


class LastingFiles(StaticFiles):
    """Serve static files that a browser may keep: their addresses name their content."""

    async def get_response(self, path: str, scope: Any) -> Response:
        """Return a file."""
        response = await super().get_response(path, scope)
        if response.status_code == 200:
            response.headers["Cache-Control"] = FOREVER
        return response


def add_pages(app: FastAPI) -> None:
    """Add all pages and their static files to an application whose state holds a `Studio`."""
    threading.Thread(target=_load_ahead, daemon=True).start()
    app.add_api_route("/login", lambda: render("login.html"), include_in_schema=False)
    app.mount("/static", LastingFiles(directory=STATIC), name="static")
    for each in (runs, subjects, masks, generate, gallery, queue, models):
        app.include_router(each.router)
    app.add_api_route("/{address:path}", _nowhere, include_in_schema=False)  # behind all others


def _nowhere(request: Request, address: str) -> Response:
    """Answer an address that nothing has."""
    text = f"/{address}: there is nothing at this address"
    if address.startswith("api/"):
        return JSONResponse({"detail": text}, 404)
    return problem(request, MissingError(text))


def _load_ahead() -> None:
    """Load what intervals of scores need (SciPy), so that the first run that is opened need not wait for it."""
    from dreambooth.metrics.estimates import estimate

    estimate([0.1, 0.2])
