"""Masks of a new subject's photos: painted, or proposed by a model and accepted."""

from typing import Annotated

from fastapi import Form, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from dreambooth.studio.pages import proposed_masks
from dreambooth.studio.pages.frame import make_router, render, with_message
from dreambooth.studio.pages.subjects import shown_photo, values_of
from dreambooth.studio.problems import MissingError
from dreambooth.studio.requests import PrepareRequest
from dreambooth.studio.routes import jobs as job_routes
from dreambooth.studio.routes import subjects as subject_routes
from dreambooth.studio.state import Studio, StudioOf

router = make_router()


@router.get("/new/{subject}/mask")
def mask(studio: StudioOf, subject: str, photo: str) -> Response:
    """Show a photo with its mask, to paint on."""
    shown = next((each for each in subject_routes.show(studio, subject)["photos"] if each["name"] == photo), None)
    if shown is None:
        raise MissingError(f"{photo}: there is no such photo of {subject}")
    return render("_mask.html", subject=subject, photo=shown_photo(subject, shown, []))


@router.post("/new/{subject}/mask")
async def set_mask(studio: StudioOf, request: Request, subject: str) -> Response:
    """Write a photo's mask: white is the subject. Without one the photo has none."""
    async with request.form(max_files=1) as fields:
        file, photo = fields.get("mask"), str(fields.get("photo", ""))
        content = await file.read() if isinstance(file, UploadFile) else b""
    return await run_in_threadpool(_masked, studio, subject, photo, content)


def _masked(studio: Studio, subject: str, photo: str, content: bytes) -> Response:
    folder = studio.workspace.find_in(studio.workspace.photos, subject)
    path = studio.workspace.find_in(folder, photo)
    if content:
        subject_routes.store_mask(path, content)
    elif subject_routes.mask_of(path) is not None:
        subject_routes.delete_mask(studio, subject, photo)
    text = "Mask saved." if content else "It has no mask."
    return with_message(render("_new.html", **values_of(studio, subject)), text)


@router.post("/new/{subject}/masks")
def propose(
    studio: StudioOf,
    subject: str,
    model: Annotated[str, Form(min_length=1)],
    base: Annotated[str, Form(min_length=1)],
    class_noun: Annotated[str, Form(max_length=60)] = "",
) -> Response:
    """Queue a look at the photos by a model that finds the subject in them."""
    asked = {"kind": "prepare", "subject": subject, "mask_model": model, "base": base}
    if noun := " ".join(class_noun.split()):
        asked["class_noun"] = noun
    job_routes.create(studio, PrepareRequest.model_validate(asked))
    return render("_new.html", **values_of(studio, subject))


@router.get("/new/{subject}/masks")
def proposed(studio: StudioOf, subject: str) -> Response:
    """Show how the search for masks stands; once it is over the photos are shown with what it has found."""
    values = values_of(studio, subject)
    if values["proposal"] is not None and values["proposal"].is_open:
        return render("_masks.html", **values)
    response = render("_new.html", **values)
    response.headers.update({"HX-Retarget": "#new", "HX-Reswap": "outerHTML"})
    return response


@router.post("/new/{subject}/masks/accept")
def accept(studio: StudioOf, subject: str) -> Response:
    """Take the proposed masks over."""
    number = proposed_masks.accept(studio, subject)
    text = f"{number} mask{'s' * (number != 1)} accepted. Each can be changed."
    return with_message(render("_new.html", **values_of(studio, subject)), text)


@router.post("/new/{subject}/masks/decline")
def decline(studio: StudioOf, subject: str) -> Response:
    """Leave the proposed masks out."""
    proposed_masks.decline(studio, subject)
    return render("_new.html", **values_of(studio, subject))
