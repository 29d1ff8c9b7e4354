"""Images: the files that were made, small ones, their recipes, and uploads that an image is to be made from."""

import base64
import hashlib
import json
import mimetypes
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from dreambooth.errors import UserError, escaped
from dreambooth.generation.request import read_infotext, read_recipe
from dreambooth.studio import pictures, trash
from dreambooth.studio.gallery import Filter
from dreambooth.studio.problems import ConflictError, MissingError
from dreambooth.studio.state import Studio, StudioOf

router = APIRouter(tags=["images"])


class Marks(BaseModel):
    """Hold what people say of an image."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"is_favourite": True, "tags": ["beach"]}]}
    )

    is_favourite: bool | None = None
    tags: list[Annotated[str, Field(min_length=1, max_length=50)]] | None = Field(default=None, max_length=50)


@router.get("/images", summary="List images")
def index(
    studio: StudioOf,
    search: Annotated[str, Query(max_length=200, description="words in the prompt")] = "",
    tag: Annotated[str, Query(max_length=50)] = "",
    model: Annotated[str, Query(max_length=300)] = "",
    folder: Annotated[str, Query(max_length=300, description="outputs/job-3")] = "",
    favourites: bool = False,
    limit: Annotated[int, Query(ge=1, le=500)] = 60,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """Return generated images, the newest first, with prompt, seed, model and marks."""
    return studio.gallery.find(Filter(search, tag, model, folder, favourites), limit, offset)


@router.post("/images", status_code=201, summary="Upload an image to make others from")
async def upload(studio: StudioOf, request: Request) -> dict[str, Any]:
    """Take an image as the request's body: to start from, a mask, a control, or one whose recipe is wanted.

    Returns its name for requests, and its recipe if it has one.
    """
    return await run_in_threadpool(store, studio, await request.body())


@router.get("/images/{image:path}/thumbnail", summary="Get a small image", response_class=FileResponse)
def thumbnail(studio: StudioOf, image: str, side: Annotated[int, Query(ge=32, le=2048)] = 256) -> FileResponse:
    """Return an image at most `side` pixels wide and high, as WebP."""
    path = pictures.thumbnail(studio.workspace, _image(studio, image), side)
    return FileResponse(path, headers={"Cache-Control": "private, max-age=3600"})


@router.get("/images/{image:path}/recipe", summary="Get an image's recipe")
def recipe(studio: StudioOf, image: str) -> dict[str, Any]:
    """Return what an image was made from; `generate` with `from_image` makes it again."""
    return _recipe(_image(studio, image))


@router.get("/images/{image:path}/base64", summary="Get an image as text")
def as_base64(studio: StudioOf, image: str) -> dict[str, Any]:
    """Return an image in base64, with its type and its recipe."""
    path = _image(studio, image)
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    try:
        found: dict[str, Any] | None = _recipe(path)
    except MissingError:
        found = None
    return {"image": image, "type": kind, "base64": base64.b64encode(path.read_bytes()).decode(), "recipe": found}


@router.get("/images/{image:path}", summary="Get an image", response_class=FileResponse)
def show(studio: StudioOf, image: str) -> FileResponse:
    """Return an image's file; a PNG keeps its recipe."""
    return FileResponse(_image(studio, image), headers={"Cache-Control": "private, no-cache"})


@router.patch("/images/{image:path}", summary="Mark an image")
def mark(studio: StudioOf, image: str, marks: Marks) -> dict[str, Any]:
    """Make an image a favourite, or set its tags."""
    _image(studio, image)
    return studio.gallery.mark(image, marks.is_favourite, marks.tags)


@router.delete("/images/{image:path}", summary="Delete an image")
def delete(studio: StudioOf, image: str) -> dict[str, str]:
    """Move an image of outputs/ to the trash; `undo` is the name to bring it back by."""
    path = _image(studio, image)
    if not path.is_relative_to(studio.workspace.outputs):
        raise ConflictError(
            f"{escaped(image)}: belongs to a run or a subject; only images in outputs/ are deleted here"
        )
    return {"undo": trash.throw_away(studio.workspace, path)}


@router.post("/trash/{name}/restore", tags=["trash"], summary="Bring back what was deleted")
def restore(studio: StudioOf, name: str) -> dict[str, list[str]]:
    """Bring back what a deletion has moved to the trash."""
    return {"restored": trash.bring_back(studio.workspace, name)}


def _image(studio: Studio, name: str) -> Path:
    path = studio.workspace.find(name)
    if not pictures.is_image(path):
        raise MissingError(f"{escaped(name)}: there is no such image")
    return path


def store(studio: Studio, content: bytes) -> dict[str, Any]:
    suffix = pictures.check_upload("image", content)
    place = studio.workspace.uploads / f"{hashlib.sha256(content).hexdigest()[:24]}{suffix}"
    if not place.is_file():
        made = pictures.store_upload(studio.workspace.uploads, f"new{suffix}", content)
        made.replace(place)
    try:
        found: dict[str, Any] | None = _recipe(place)
    except MissingError:
        found = None
    return {"image": studio.workspace.relative(place), "size": pictures.size_of(place), "recipe": found}


def _recipe(path: Path) -> dict[str, Any]:
    """Return the recipe in an image, or what another program has written there. Raises MissingError for neither."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(read_recipe(path), allow_nan=False))
        return found
    except (UserError, ValueError):
        pass
    try:
        theirs = read_infotext(path)
    except UserError:
        theirs = None
    if theirs is None:
        raise MissingError(f"{escaped(path.name)}: has no recipe")
    return {"prompt": theirs.options.prompt, "negative_prompt": theirs.options.negative_prompt, "model": theirs.model}
