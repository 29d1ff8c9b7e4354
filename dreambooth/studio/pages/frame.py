"""Hold what all pages share: templates, the rail of places, and answers to what a click asks for."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError

from dreambooth.errors import DreamBoothError, UserError
from dreambooth.report import words
from dreambooth.studio.problems import RequestError

FOLDER = Path(__file__).parents[1]
STATIC = FOLDER / "static"
EVENTS_URL = "/api/v1/events"
PLACES = (
    {"name": "runs", "title": "Runs", "url": "/", "icon": "runs"},
    {"name": "new", "title": "New", "url": "/new", "icon": "new"},
    {"name": "generate", "title": "Generate", "url": "/generate", "icon": "generate"},
    {"name": "gallery", "title": "Gallery", "url": "/gallery", "icon": "gallery"},
    {"name": "queue", "title": "Queue", "url": "/queue", "icon": "queue"},
    {"name": "models", "title": "Models", "url": "/models", "icon": "models"},
)
STATE_WORDS = {"cancelled": "taken out", "paused": "stopped", "queued": "waiting"}


@cache
def static(name: str) -> str:
    """Return the address of a static file, which names its content."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:10]
    return f"/static/{name}?v={digest}"


@cache
def environment() -> jinja2.Environment:
    """Return the templates with their filters."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"duration": words.duration, "memory": words.memory, "sentence": words.sentence}
    made.globals |= {"static": static, "places": PLACES, "events_url": EVENTS_URL, "state_words": STATE_WORDS}
    return made


def render(template: str, here: str = "", status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page or a part of one. here: the name of the place in the rail; values: what it shows."""
    text = environment().get_template(template).render(here=here, **values)
    return HTMLResponse(text, status, headers={"Cache-Control": "no-store"})


def say(text: str, undo: str = "", go_to: str = "") -> Response:
    """Return an answer that changes nothing by itself: a message, with an address to undo it, or another page."""
    headers = {"HX-Redirect": go_to} if go_to else {}
    if text:
        action = {"label": "Undo", "url": undo} if undo else None
        headers["HX-Trigger"] = json.dumps({"toast": {"text": text, "action": action}})
    return Response(status_code=204, headers=headers)


def with_message(response: Response, text: str) -> Response:
    """Return an answer that also shows a message."""
    response.headers["HX-Trigger"] = json.dumps({"toast": {"text": text}})
    return response


class PageRoute(APIRoute):
    """Answer a person's mistake with a page, or where only a part of one was asked for with a message."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return the handler of the route."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                response: Response = await handle(request)
            except DreamBoothError as error:
                return problem(request, error)
            except (ValidationError, RequestValidationError) as error:
                return problem(request, _in_words(error))
            return response

        return answer


def _in_words(error: ValidationError | RequestValidationError) -> UserError:
    """Return the first field that is not allowed, and why."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    return UserError(f"{'.'.join(where)}: {first['msg']}")


def problem(request: Request, error: DreamBoothError) -> Response:
    """Return the answer for an error: a line for a click, a page for an address."""
    status = error.status if isinstance(error, RequestError) else 422
    if "hx-request" in request.headers:
        return Response(str(error), status, media_type="text/plain; charset=utf-8")
    return render(
        "error.html",
        status=status,
        title="There is no such page" if status == 404 else "That did not work",
        text=str(error),
    )


def make_router() -> APIRouter:
    """Return a router of pages, which the OpenAPI page does not list."""
    return APIRouter(route_class=PageRoute, include_in_schema=False)


def image_answer(request: Request, body: Callable[[], tuple[bytes, str]], version: object) -> Response:
    """Return an image, or that the browser's own copy is still good. version: changes when the image does."""
    tag = f'"{hashlib.sha256(repr((request.url.path, version)).encode()).hexdigest()[:16]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    content, kind = body()
    return Response(content, media_type=kind, headers=headers)


def query(values: Mapping[str, Any]) -> str:
    """Return values as the query of an address, without empty ones."""
    from urllib.parse import urlencode

    return urlencode({name: value for name, value in values.items() if value not in ("", None, False)})
