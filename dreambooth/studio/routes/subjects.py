"""Subjects: folders of photos in data/, with captions and masks beside the photos."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from dreambooth.config import as_overrides, default_of, load_config
from dreambooth.config.values import is_automatic
from dreambooth.data.captions import SUFFIXES, files_beside, is_caption_file
from dreambooth.data.masks import masks_folder
from dreambooth.errors import UserError, escaped
from dreambooth.files import read_text, write_text
from dreambooth.studio import pictures, trash
from dreambooth.studio.jobs import OPEN, Job
from dreambooth.studio.problems import ConflictError, MissingError, RequestError, TooLargeError
from dreambooth.studio.state import Studio, StudioOf
from dreambooth.studio.workspace import Workspace, check_new_name, is_name

router = APIRouter(prefix="/subjects", tags=["subjects"])
MASKS = "-masks"  # data/dog-masks beside data/dog, as `new` looks for them
UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}


class NewSubject(BaseModel):
    """Name a new subject."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "my-dog"}]})

    name: str = Field(min_length=1, max_length=100)


class Caption(BaseModel):
    """Hold the caption of a photo; empty: none."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"text": "a photo of {subject} on a sofa"}]}
    )

    text: str = Field(max_length=2000)


@router.get("", summary="List subjects")
def index(studio: StudioOf) -> list[dict[str, Any]]:
    """Return the folders of photos, by name."""
    return [_brief(studio.workspace, folder) for folder in _folders(studio.workspace)]


@router.post("", status_code=201, summary="Make a subject")
def create(studio: StudioOf, new: NewSubject) -> dict[str, Any]:
    """Make a folder for photos."""
    folder = studio.workspace.photos / check_new_name(new.name, "name")
    if folder.exists():
        raise ConflictError(f"name={escaped(new.name)}: this subject is there already")
    folder.mkdir(parents=True)
    return _brief(studio.workspace, folder)


@router.get("/{subject}", summary="Look at a subject")
def show(studio: StudioOf, subject: str) -> dict[str, Any]:
    """Return a subject's photos with size, caption and mask."""
    folder = _folder(studio.workspace, subject)
    photos = _photos(folder)
    captions = files_beside(photos, [path for path in folder.iterdir() if is_caption_file(path, _names(photos))])
    found = []
    for path in photos:
        text = " ".join(read_text(captions[path]).split()) if path in captions else ""
        found.append(
            {
                "name": path.name,
                "image": studio.workspace.relative(path),
                "bytes": path.stat().st_size,
                "size": pictures.size_of(path),
                "caption": text,
                "has_mask": mask_of(path) is not None,
            }
        )
    return {**_brief(studio.workspace, folder), "photos": found}


@router.delete("/{subject}", summary="Delete a subject")
def delete(studio: StudioOf, subject: str) -> dict[str, str]:
    """Move a subject's photos to the trash; `undo` is the name to bring them back by."""
    folder = _folder(studio.workspace, subject)
    check_not_needed(studio, folder)
    masks = masks_folder(folder)
    return {"undo": trash.throw_away(studio.workspace, folder, *([masks] if masks.is_dir() else []))}


@router.post("/{subject}/photos", status_code=201, summary="Upload photos", openapi_extra=UPLOAD_FORM)
async def upload(studio: StudioOf, subject: str, request: Request) -> dict[str, Any]:
    """Add photos, as the fields `files` of a form; those that cannot be used are in `refused` with the reason."""
    folder = await run_in_threadpool(_folder, studio.workspace, subject)
    stored: list[str] = []
    refused: list[dict[str, str]] = []
    async with request.form(max_files=pictures.MAX_FILES, max_fields=10) as form:
        files = [each for each in form.getlist("files") if isinstance(each, UploadFile)]
        if not files:
            raise RequestError("files: send one or more images as fields of this name")
        if sum(each.size or 0 for each in files) > pictures.MAX_TOTAL:
            raise TooLargeError(f"files: {pictures.MAX_TOTAL} bytes at most in one upload")
        for each in files:
            name = Path((each.filename or "photo").replace("\\", "/")).name.lstrip(".-") or "photo"
            try:
                check_new_name(name, "file")
                pictures.check_size(name, each.size or 0)
                content = await each.read()
                stored.append((await run_in_threadpool(pictures.store_upload, folder, name, content)).name)
            except RequestError as error:
                refused.append({"name": escaped(name), "reason": str(error)})
    if not stored:
        raise RequestError("; ".join(each["reason"] for each in refused))
    return {"stored": stored, "refused": refused}


@router.get("/{subject}/photos/{photo}", summary="Get a photo", response_class=FileResponse)
def photo(studio: StudioOf, subject: str, photo: str) -> FileResponse:
    """Return a photo's file."""
    return FileResponse(_photo(studio.workspace, subject, photo))


@router.get("/{subject}/photos/{photo}/thumbnail", summary="Get a small photo", response_class=FileResponse)
def photo_thumbnail(
    studio: StudioOf, subject: str, photo: str, side: Annotated[int, Query(ge=32, le=2048)] = 256
) -> FileResponse:
    """Return a photo at most `side` pixels wide and high, as WebP."""
    path = pictures.thumbnail(studio.workspace, _photo(studio.workspace, subject, photo), side)
    return FileResponse(path, headers={"Cache-Control": "private, no-cache"})


@router.delete("/{subject}/photos/{photo}", summary="Delete a photo")
def delete_photo(studio: StudioOf, subject: str, photo: str) -> dict[str, str]:
    """Move a photo, with its caption and mask, to the trash; what it shares with another photo stays."""
    path = _photo(studio.workspace, subject, photo)
    beside = [*_captions(path), *filter(None, [None if _twins(path) else mask_of(path)])]
    return {"undo": trash.throw_away(studio.workspace, path, *beside)}


@router.put("/{subject}/photos/{photo}/caption", summary="Write a caption")
def caption(studio: StudioOf, subject: str, photo: str, new: Caption) -> dict[str, str]:
    """Write a photo's caption into a .txt beside it; an empty one removes it.

    For a.png into a.png.txt where there is an a.jpg too, which would share a.txt.
    """
    path = _photo(studio.workspace, subject, photo)
    twins, text = _twins(path), " ".join(new.text.split())
    if twins and not text and _caption_files(path, path.stem):
        raise ConflictError(f"{escaped(photo)}: shares its caption with {', '.join(twins)}; rename all but one")
    place = path.with_name(f"{path.name if twins else path.stem}.txt")
    if text:
        write_text(place, text + "\n")
    for old in _captions(path):
        if not text or not old.samefile(place):
            old.unlink()
    return {"text": text}


@router.put("/{subject}/photos/{photo}/mask", summary="Set a mask")
async def set_mask(studio: StudioOf, subject: str, photo: str, request: Request) -> dict[str, str]:
    """Write a photo's mask, an image as the request's body: white is the subject. It goes to data/<subject>-masks."""
    path = await run_in_threadpool(_photo, studio.workspace, subject, photo)
    content = await request.body()
    return await run_in_threadpool(store_mask, path, content)


@router.get("/{subject}/photos/{photo}/mask", summary="Get a mask", response_class=FileResponse)
def mask(studio: StudioOf, subject: str, photo: str) -> FileResponse:
    """Return a photo's mask."""
    path = _photo(studio.workspace, subject, photo)
    found = mask_of(path)
    if found is None:
        raise MissingError(f"{escaped(photo)}: has no mask")
    return FileResponse(found)


@router.delete("/{subject}/photos/{photo}/mask", summary="Delete a mask")
def delete_mask(studio: StudioOf, subject: str, photo: str) -> dict[str, str]:
    """Move a photo's mask to the trash."""
    path = _photo(studio.workspace, subject, photo)
    found = mask_of(path)
    if found is None:
        raise MissingError(f"{escaped(photo)}: has no mask")
    check_own_mask(path)
    return {"undo": trash.throw_away(studio.workspace, found)}


def check_not_needed(studio: Studio, photos: Path) -> None:
    """Raise ConflictError for a folder of photos that a job needs which is not over."""
    for job in studio.store.find(OPEN, limit=-1):
        if _needs(studio.workspace, job, photos):
            raise ConflictError(
                f"{escaped(photos.name)}: job {job.id}, which is {job.state}, needs these photos; "
                "let it end, or cancel it first"
            )


def check_own_mask(photo: Path) -> None:
    """Raise ConflictError for a photo that shares its mask with another one."""
    if twins := _twins(photo):
        raise ConflictError(f"{escaped(photo.name)}: shares its mask with {', '.join(twins)}; rename all but one")


def store_mask(photo: Path, content: bytes) -> dict[str, str]:
    check_own_mask(photo)
    folder = masks_folder(photo.parent)
    folder.mkdir(exist_ok=True)
    made = pictures.store_upload(folder, f".{photo.stem}.png", content)
    size, own = pictures.size_of(made), pictures.size_of(photo)
    if size != own:
        made.unlink()
        raise RequestError(f"mask: {size} pixels, and the photo {own}; make it as large as the photo")
    for old in filter(None, [mask_of(photo)]):
        old.unlink()
    place = folder / f"{photo.stem}{made.suffix}"
    made.replace(place)
    return {"name": place.name}


def _folders(workspace: Workspace) -> Iterator[Path]:
    if workspace.photos.is_dir():
        for path in sorted(workspace.photos.iterdir()):
            if path.is_dir() and is_name(path.name) and not path.name.endswith(MASKS):
                yield path


def _brief(workspace: Workspace, folder: Path) -> dict[str, Any]:
    photos = _photos(folder)
    cover = workspace.relative(photos[0]) if photos else None
    return {"name": folder.name, "folder": workspace.relative(folder), "num_photos": len(photos), "cover": cover}


def _folder(workspace: Workspace, subject: str) -> Path:
    folder = workspace.find_in(workspace.photos, subject)
    if not folder.is_dir():
        raise MissingError(f"{escaped(subject)}: there is no such subject")
    return folder


def _photos(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in pictures.IMAGE_SUFFIXES and is_name(path.name)
    )


def _photo(workspace: Workspace, subject: str, photo: str) -> Path:
    path = workspace.find_in(_folder(workspace, subject), photo)
    if not pictures.is_image(path):
        raise MissingError(f"{escaped(photo)}: there is no such photo of {escaped(subject)}")
    return path


def _names(photos: list[Path]) -> set[str]:
    return {name for path in photos for name in (path.name, path.stem)}


def _needs(workspace: Workspace, job: Job, photos: Path) -> bool:
    """Return whether a job reads a folder of photos, by its request, the config that it names, or that of its run."""
    if job.request.get("subject") == photos.name:
        return True
    if job.kind != "train":
        return False
    configs = (f"{job.output}/config.yaml", job.request.get("config") or "")
    changes = as_overrides({**job.request.get("settings", {}), "run.name": Path(job.output).name})
    images = [each for name in configs for each in _images_in(workspace.root / name, changes)]
    return any((workspace.root / each).resolve() == photos.resolve() for each in images)


def _images_in(config: Path, changes: list[str]) -> list[str]:
    """Return the folders of photos in a config; none where there is no such file, or one that no run can start with."""
    if not config.is_file():
        return []
    try:
        return [str(each.images) for each in load_config(config, changes, _without_automatic).subjects]
    except UserError:
        return []


def _without_automatic(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return defaults for the keys that say `auto`, which say nothing of photos."""
    return {key: default_of(key) for key, value in settings.items() if is_automatic(key, value)}


def _captions(photo: Path) -> list[Path]:
    """Return the files that may hold a photo's caption, and no other photo's: a.png.txt, and a.txt without an a.jpg."""
    return _caption_files(photo, photo.name) + ([] if _twins(photo) else _caption_files(photo, photo.stem))


def _caption_files(photo: Path, name: str) -> list[Path]:
    """Return the caption files of this name beside a photo, in small letters or capitals."""
    return [path for path in photo.parent.iterdir() if path.stem == name and path.suffix.lower() in SUFFIXES]


def _twins(photo: Path) -> list[str]:
    """Return the names of the photos that differ from this one in their ending alone: a.jpg for a.png."""
    return [escaped(path.name) for path in _photos(photo.parent) if path.stem == photo.stem and path != photo]


def mask_of(photo: Path) -> Path | None:
    """Return the file of a photo's mask."""
    masks = masks_folder(photo.parent)
    images = sorted(filter(pictures.is_image, masks.iterdir())) if masks.is_dir() else []
    return next((each for each in images if each.stem == photo.stem), None)
