"""Generate: a prompt and what else an image is made from, results as they come, and what to make of one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Form as Field
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from dreambooth.errors import UserError
from dreambooth.generation.inputs.styles import read_styles
from dreambooth.generation.settings import SCHEDULERS
from dreambooth.methods import find_facts
from dreambooth.studio import pictures
from dreambooth.studio.gallery import Filter
from dreambooth.studio.pages.frame import make_router, render, say
from dreambooth.studio.pages.queue import JobLine, job_line
from dreambooth.studio.pages.recipes import VARIATION, Form, drawn_seed, enlarged, form_from, form_of, request_of
from dreambooth.studio.requests import GenerateRequest
from dreambooth.studio.routes import images as image_routes
from dreambooth.studio.routes import jobs as job_routes
from dreambooth.studio.routes import models as model_routes
from dreambooth.studio.state import Studio, StudioOf

router = make_router()
NUM_BATCHES = 8  # of the newest, on the page
FILES = ("init_image", "mask", "control_image", "style_image")
CONTROLS = {"canny": "edges", "depth": "depth", "pose": "pose"}
# What can be made of an image with one click, and how far a variation goes.
VARIATIONS = {"vary-little": 0.2, "vary-much": 0.6}
LIKE_STRENGTH = 0.6
UPSCALE = "2"


@dataclass(frozen=True)
class Batch:
    """Hold the images of one job. waiting: how many are still to come."""

    job: JobLine
    prompt: str
    images: Sequence[dict[str, Any]]
    waiting: int
    ratio: str
    is_open: bool
    grid: str


@router.get("/generate")
def page(studio: StudioOf, model: str = "", image: str = "", start: str = "") -> Response:
    """Show the page. model: chosen at first; image: whose recipe is recalled; start: an image to start from."""
    models = usable_models(studio)
    form = Form(model=model or _usual(models), prompt="a photo of {subject} on the beach")
    if image:
        form = form_of(image_routes.recipe(studio, image), studio.workspace)
    if start:
        form = replace(_recalled(studio, start) or form, init_image=start, num_images=4, seed="", left_out=())
    batches = [_batch(studio, view) for view in studio.board.views() if view["kind"] == "generate"][:NUM_BATCHES]
    return render("generate.html", "generate", form=form, batches=batches, **_choices(models))


def _recalled(studio: Studio, image: str) -> Form | None:
    try:
        return form_of(image_routes.recipe(studio, image), studio.workspace)
    except UserError:
        return None


def usable_models(studio: Studio) -> list[dict[str, Any]]:
    """Return the models of the workspace, those that have learned a subject first."""
    found = [each for each in model_routes.models(studio)["models"] if each["kind"] in ("run", "pipeline", "model")]
    return sorted(found, key=lambda each: not each["subjects"])


def _usual(models: Sequence[Mapping[str, Any]]) -> str:
    return str(models[0]["model"]) if models else ""


def _choices(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    adapters = [each for each in models if each.get("method") and find_facts(each["method"]).is_adapter]
    return {
        "models": models,
        "adapters": adapters,
        "styles": sorted(read_styles()),
        "schedulers": list(SCHEDULERS),
        "controls": CONTROLS,
    }


@router.post("/generate/images")
async def create(studio: StudioOf, request: Request) -> Response:
    """Queue what the form asks for, and show where its images will come."""
    sent: dict[str, Any] = {}
    async with request.form(max_files=8, max_fields=200) as fields:
        for name, value in fields.multi_items():
            if isinstance(value, UploadFile):
                if value.size:
                    sent[name] = await run_in_threadpool(_stored, studio, await value.read())
            elif value or name not in sent:
                sent.setdefault(name, value)
    for name in FILES:  # a new file goes over the one that was kept
        if not sent.get(name):
            sent[name] = sent.get(f"{name}-kept", "")
    return await run_in_threadpool(_queued, studio, request_of(form_from(sent)))


def _stored(studio: Studio, content: bytes) -> str:
    return str(image_routes.store(studio, content)["image"])


def _queued(studio: Studio, request: GenerateRequest) -> Response:
    view = job_routes.create(studio, request)
    return render("_batch.html", batch=_batch(studio, view))


@router.post("/recall/images")
async def recall(studio: StudioOf, request: Request) -> Response:
    """Fill the form by the recipe in an image that was dropped."""
    async with request.form(max_files=1) as fields:
        file = fields.get("recall")
        if not isinstance(file, UploadFile):
            raise UserError("recall: drop an image that was made here")
        found = await run_in_threadpool(image_routes.store, studio, await file.read())
    if found["recipe"] is None:
        raise UserError(f"{file.filename}: has no recipe; take a PNG that was made here, as it was saved")
    form = form_of(found["recipe"], studio.workspace)
    return render("_compose.html", form=form, **_choices(usable_models(studio)))


@router.get("/generate/form")
def form(studio: StudioOf, image: str) -> Response:
    """Fill the form by the recipe of an image of the workspace."""
    values = form_of(image_routes.recipe(studio, image), studio.workspace)
    return render("_compose.html", form=values, **_choices(usable_models(studio)))


@router.get("/generate/batches/{number}")
def batch(studio: StudioOf, number: int) -> Response:
    """Show the images of a job that are there now."""
    return render("_batch.html", batch=_batch(studio, studio.board.view(studio.store.get(number))))


def _batch(studio: Studio, view: dict[str, Any]) -> Batch:
    request, line = view["request"], job_line(view)
    images = studio.gallery.find(Filter(folder=str(view["output"])), 200, 0)["images"]
    images.sort(key=lambda each: each["image"])
    is_open = view["state"] in ("queued", "running")
    wanted = int(request.get("num_images", 4)) * max(1, len(request.get("prompts", ())))
    first = images[0] if images else {}
    size = request.get("size") or (f"{first['width']}x{first['height']}" if first.get("width") else "1x1")
    grid = studio.workspace.root / str(view["output"]) / "grid.png"
    return Batch(
        line,
        "; ".join(request.get("prompts", ())) or str(first.get("prompt", "")),
        images,
        max(0, wanted - len(images)) if is_open and not request.get("grid") else 0,
        size.replace("x", " / "),
        is_open,
        f"{view['output']}/grid.png" if request.get("grid") and grid.is_file() else "",
    )


@router.get("/images/look")
def look(studio: StudioOf, image: str) -> Response:
    """Show one image large, with its recipe and what can be made of it."""
    name = image.rpartition("/")[2]
    found = studio.gallery.find(Filter(folder=image.rpartition("/")[0]), 500, 0)["images"]
    marks = next((each for each in found if each["image"] == image), {"is_favourite": False, "tags": []})
    recipe = _recipe(studio, image)
    return render("_look.html", image=image, name=name, recipe=recipe, marks=marks, facts=_facts(recipe))


def _recipe(studio: Studio, image: str) -> dict[str, Any]:
    try:
        return image_routes.recipe(studio, image)
    except UserError:
        return {}


def _facts(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return what a recipe says, in words and in the order in which one asks."""
    if not recipe:
        return {}
    names = {
        "model": "model",
        "seed": "seed",
        "num_inference_steps": "steps",
        "guidance_scale": "guidance",
        "scheduler": "sampler",
        "negative_prompt": "away from",
    }
    found = {title: str(recipe[name]) for name, title in names.items() if recipe.get(name) not in (None, "")}
    if "model" in found:
        found["model"] = "/".join(found["model"].split("/")[-2:])
    if "width" in recipe:
        found["size"] = f"{recipe['width']} × {recipe['height']}"
    if init := recipe.get("init_image"):
        found["from image"] = f"{str(init.get('file') or 'an image').rpartition('/')[2]}, {init['strength']:g} new"
    if variations := recipe.get("variations"):
        found["variation"] = ", ".join(f"{each['strength']:g} of seed {each['seed']}" for each in variations)
    if refinement := recipe.get("refinement"):
        found["upscaled"] = f"{refinement['factor']:g} times"
    if loras := recipe.get("loras"):
        found["mixed in"] = ", ".join(f"{each['file']} {each['weight']:g}" for each in loras)
    return found


@router.post("/generate/again")
def again(studio: StudioOf, request: Request, image: Annotated[str, Field()], how: Annotated[str, Field()]) -> Response:
    """Make more of an image: variations, the same again with another seed, larger, or like it."""
    asked = _again(studio, image, how)
    if "/generate" in request.headers.get("hx-current-url", ""):
        return _queued(studio, asked)
    job_routes.create(studio, asked)
    return say("", go_to="/generate")


def _again(studio: Studio, image: str, how: str) -> GenerateRequest:
    if how in VARIATIONS:
        seed = int(drawn_seed())
        asked = {
            "kind": "generate",
            "vary": image,
            "variation_strength": VARIATIONS[how],
            "num_images": 4,
            "seed": seed,
        }
        return GenerateRequest.model_validate(asked)
    form = form_of(image_routes.recipe(studio, image), studio.workspace)
    if how == "reroll":
        if missing := [each for each in form.left_out if each != VARIATION]:
            raise UserError(f"{image}: made with {', '.join(missing)}, which Re-roll cannot repeat; Vary can")
        return request_of(replace(form, seed=drawn_seed(), num_images=4))
    if how == "upscale" and not form.left_out:
        return request_of(replace(form, upscale=UPSCALE))
    if how == "upscale":
        size = pictures.size_of(studio.workspace.find(image))
        if size is None:
            raise UserError(f"{image}: cannot be read as an image")
        return request_of(enlarged(form, image, size, UPSCALE))
    if how == "like":
        return request_of(
            replace(form, init_image=image, strength=LIKE_STRENGTH, mask="", num_images=4, seed=drawn_seed())
        )
    raise UserError(f"how={how}: must be vary-little, vary-much, reroll, upscale or like")


def link_to(image: str) -> str:
    """Return the address of the page with an image's recipe."""
    return f"/generate?image={quote(image)}"
