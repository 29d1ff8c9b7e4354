"""A new subject: photos, what was found in them, captions, a base and a preset, and the training begins."""

import re
import threading
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Form, Request, Response

from dreambooth.errors import DreamBoothError, UserError
from dreambooth.proposal.facts import base_facts
from dreambooth.studio import plan
from dreambooth.studio.commands import new_job
from dreambooth.studio.pages import photo_findings, proposed_masks
from dreambooth.studio.pages.frame import make_router, render, say, with_message
from dreambooth.studio.pages.settings_text import read_settings
from dreambooth.studio.plan import PRESETS, USUAL, Plan, PlanRequest, Preset
from dreambooth.studio.requests import TrainRequest
from dreambooth.studio.routes import jobs as job_routes
from dreambooth.studio.routes import models as model_routes
from dreambooth.studio.routes import subjects as subject_routes
from dreambooth.studio.state import Studio, StudioOf
from dreambooth.studio.workspace import check_new_name

router = make_router()
LARGE = 512  # pixels of a side; larger photos are shown as thumbnails
UNNAMED = re.compile(r"photos-\d+")  # folders of photos that wait for their subject's name
# What people bring photos of, offered for the class noun, and looked for in the names of folders.
NOUNS = (
    "dog cat person man woman child backpack bag shoe toy doll plush robot car bicycle motorcycle house building cup "
    "mug vase bottle can chair lamp clock book guitar hat glasses jacket dress ring watch teapot bowl cake plant "
    "flower tree bird horse rabbit monster painting"
)


@dataclass(frozen=True)
class ShownPhoto:
    """Hold a photo with its caption and what was found in it."""

    name: str
    url: str
    width: int
    height: int
    caption: str
    has_mask: bool
    findings: list[photo_findings.Finding]


@dataclass(frozen=True)
class ShownPreset:
    """Hold a preset and what it costs, once that is known."""

    name: str
    title: str
    text: str
    costs: Plan | None = None
    problem: str = ""


@dataclass(frozen=True)
class NewForm:
    """Hold what is filled in. name: of the run; empty: made from the class noun."""

    class_noun: str = ""
    name: str = ""
    base: str = ""
    preset: str = USUAL


@dataclass
class PlanCache:
    """Keep plans, by the photos too: a process of some seconds makes each, one at a time."""

    plans: dict[tuple[PlanRequest, tuple[str, ...]], dict[str, Plan]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@router.get("/new")
def page(studio: StudioOf, subject: str = "") -> Response:
    """Show the page, for new photos or for those of a folder in data/."""
    values = values_of(studio, subject) if subject else _nothing(studio)
    return render("new.html", "new", **values)


@router.post("/new/photos")
async def upload(studio: StudioOf, request: Request, subject: str = "") -> Response:
    """Take photos, into a folder of their own if they are the first ones."""
    is_new = not subject
    if is_new:
        used = {str(job.request.get("subject")) for job in studio.store.find(limit=-1)}  # what they found is not for it
        subject = _free_name(studio.workspace.photos, "photos", used=used)
        subject_routes.create(studio, subject_routes.NewSubject(name=subject))
    try:
        stored = await subject_routes.upload(studio, subject, request)
    except DreamBoothError:
        if is_new:
            (studio.workspace.photos / subject).rmdir()
        raise
    response = render("_new.html", **values_of(studio, subject))
    response.headers["HX-Push-Url"] = f"/new?subject={quote(subject)}"
    if stored["refused"]:
        return with_message(response, "; ".join(each["reason"] for each in stored["refused"]))
    return response


@router.post("/new/{subject}/remove")
def remove(studio: StudioOf, subject: str, photo: Annotated[str, Form()]) -> Response:
    """Move a photo to the trash."""
    subject_routes.delete_photo(studio, subject, photo)
    return with_message(render("_new.html", **values_of(studio, subject)), f"{photo} is removed.")


@router.post("/new/{subject}/caption")
def caption(
    studio: StudioOf, subject: str, photo: Annotated[str, Form()], caption: Annotated[str, Form()] = ""
) -> Response:
    """Write a photo's caption."""
    subject_routes.caption(studio, subject, photo, subject_routes.Caption(text=caption))
    return say("Caption saved.")


@router.get("/new/{subject}/costs")
def costs(studio: StudioOf, request: Request, subject: str, base: str, preset: str = USUAL) -> Response:
    """Show what each preset costs on a base."""
    shown = _shown_presets(_plans(studio, request.app.state, subject, base))
    return render("_presets.html", presets=shown, form=NewForm(base=base, preset=preset))


@router.post("/new/{subject}/start")
def start(
    studio: StudioOf,
    request: Request,
    subject: str,
    class_noun: Annotated[str, Form(min_length=1, max_length=60)],
    base: Annotated[str, Form(min_length=1)],
    name: Annotated[str, Form()] = "",
    preset: Annotated[str, Form()] = USUAL,
    more: Annotated[str, Form(max_length=20_000)] = "",
) -> Response:
    """Queue the training, and show its run. more: settings, one a line, which go over the preset's."""
    noun = " ".join(class_noun.split())
    name = name.strip() or _free_name(studio.workspace.runs, "my-" + re.sub(r"\W+", "-", noun.lower()).strip("-"), 2)
    check_new_name(name, "name")
    if (studio.workspace.runs / name).exists():
        raise UserError(f"name={name}: there is a run of this name already; take another one")
    settings = {} if preset == USUAL else _settings(_plans(studio, request.app.state, subject, base), preset)
    settings |= _without_masks(studio, subject) | read_settings(more)
    asked = {"kind": "train", "class_noun": noun, "base": base, "name": name, "settings": settings}
    new_job(studio.workspace, TrainRequest.model_validate({**asked, "subject": subject}))  # or say what is wrong
    named = _named(studio, subject, name)
    try:
        job_routes.create(studio, TrainRequest.model_validate({**asked, "subject": named}))
    except DreamBoothError:
        _rename(studio.workspace.photos, named, subject)
        raise
    return say("", go_to=f"/runs/{quote(name)}")


def _settings(plans: dict[str, Plan] | str, preset: str) -> dict[str, Any]:
    """Return what a preset changes of the settings that are found for the photos. Raises UserError."""
    if isinstance(plans, str):
        raise UserError(plans)
    if preset not in plans:
        raise UserError(f"preset={preset}: must be one of {', '.join(plans)}")
    return {"train.max_steps": plans[preset].max_steps}


def _without_masks(studio: Studio, subject: str) -> dict[str, Any]:
    """Return the setting that leaves masks out where only some of the photos have one."""
    have = [each["has_mask"] for each in subject_routes.show(studio, subject)["photos"]]
    return {"data.mask": None} if any(have) and not all(have) else {}


def _named(studio: Studio, subject: str, name: str) -> str:
    """Give a folder of photos that has no name yet that of its run, if it is free; return the folder's name.

    Raises ConflictError where a job needs the photos under the name that they have.
    """
    photos = studio.workspace.photos
    if UNNAMED.fullmatch(subject) is None or any((photos / each).exists() for each in _folders_of(name)):
        return subject
    subject_routes.check_not_needed(studio, photos / subject)
    _rename(photos, subject, name)
    return name


def _rename(photos: Path, subject: str, name: str) -> None:
    """Rename a folder of photos, and that of its masks."""
    for before, after in zip(_folders_of(subject), _folders_of(name), strict=True):
        if (photos / before).is_dir():
            (photos / before).rename(photos / after)


def _folders_of(subject: str) -> tuple[str, str]:
    return f"{subject}{subject_routes.MASKS}", subject


def _free_name(folder: Path, stem: str, first: int = 1, used: Set[str] = frozenset()) -> str:
    """Return stem-1, stem-2 ... whichever nothing has yet; with `first` 2 the stem itself if that is free.

    used: names that count as taken, too.
    """
    if first > 1 and not (folder / stem).exists():
        return stem
    names = (f"{stem}-{number}" for number in range(first, 10**6))
    return next(name for name in names if name not in used and not (folder / name).exists())


# -------------------------------------------------------------------------------- what the page shows


def _nothing(studio: Studio) -> dict[str, Any]:
    return {"subject": None, "photos": [], "notes": [], "folders": subject_routes.index(studio)}


def values_of(studio: Studio, subject: str) -> dict[str, Any]:
    """Return what the page shows of a folder of photos."""
    shown = subject_routes.show(studio, subject)
    folder = studio.workspace.find_in(studio.workspace.photos, subject)
    bases = find_bases(studio)
    found = photo_findings.look_at([folder / each["name"] for each in shown["photos"]], _resolution(studio, bases[0]))
    notes = [*found.of_all, *_about_parts(shown["photos"])]
    return {
        "subject": shown,
        "photos": [shown_photo(subject, each, found.of_photo[each["name"]]) for each in shown["photos"]],
        "notes": notes,
        "proposal": proposed_masks.proposal_for(studio, subject),
        "mask_models": proposed_masks.find_models(studio),
        "folders": [],
        "form": NewForm(class_noun=_guess(subject), base=bases[0], name="" if UNNAMED.fullmatch(subject) else subject),
        "nouns": NOUNS.split(),
        "bases": bases,
        "presets": _shown_presets({}),
    }


def shown_photo(subject: str, photo: dict[str, Any], findings: list[photo_findings.Finding]) -> ShownPhoto:
    """Return a photo as the page shows it. photo: as the API answers."""
    width, height = photo["size"] or (1, 1)
    address = f"/api/v1/subjects/{quote(subject)}/photos/{quote(photo['name'])}"
    url = address if max(width, height) <= LARGE else f"{address}/thumbnail?side=512"
    return ShownPhoto(photo["name"], url, width, height, photo["caption"], photo["has_mask"], findings)


def _about_parts(photos: list[dict[str, Any]]) -> list[photo_findings.Finding]:
    """Return what to know of captions and masks that only some of the photos have."""
    notes = []
    for key, text in (
        ("caption", "Captions count once every photo has one; until then the run's own prompt stands for all."),
        ("has_mask", "Masks count once every photo has one; until then all of each photo is learned."),
    ):
        if any(each[key] for each in photos) and not all(each[key] for each in photos):
            notes.append(photo_findings.Finding("warning", text))
    return notes


def _guess(subject: str) -> str:
    """Return the class noun that a folder's name has in it, empty where there is none."""
    return next((word for word in re.split(r"[\W_\d]+", subject.lower()) if word in NOUNS.split()), "")


def find_bases(studio: Studio) -> list[str]:
    """Return base models: folders of the workspace, then well-known ones of the hub."""
    runs = studio.workspace.runs
    here = sorted(runs.glob("*/model_index.json")) if runs.is_dir() else []
    return [*(studio.workspace.relative(path.parent) for path in here), *model_routes.HUB_BASES]


def _resolution(studio: Studio, base: str) -> int:
    """Return the resolution of a base, pixels, by its folder or by its name."""
    folder = studio.workspace.root / base
    return base_facts(str(folder) if folder.is_dir() else base).resolution


def _plans(studio: Studio, state: Any, subject: str, base: str) -> dict[str, Plan] | str:
    """Return what each preset costs, or why that is not known."""
    if not hasattr(state, "plans"):
        state.plans = PlanCache()
    cache: PlanCache = state.plans
    folder = studio.workspace.find_in(studio.workspace.photos, subject)
    request = PlanRequest(studio.workspace.relative(folder), "thing", studio.workspace.model(base))
    photos = subject_routes.show(studio, subject)["photos"]
    key = (request, tuple(f"{each['name']} {each['bytes']}" for each in photos))
    with cache.lock:
        if key not in cache.plans:
            try:
                cache.plans[key] = plan.plan_in_process(request, studio.workspace.root)
            except DreamBoothError as error:
                return str(error)
        return cache.plans[key]


def _shown_presets(plans: dict[str, Plan] | str) -> list[ShownPreset]:
    return [_shown_preset(preset, plans) for preset in PRESETS]


def _shown_preset(preset: Preset, plans: dict[str, Plan] | str) -> ShownPreset:
    costs = None if isinstance(plans, str) else plans.get(preset.name)
    problem = plans if isinstance(plans, str) else "" if costs is None else costs.problem
    is_known = costs is not None and not costs.problem
    return ShownPreset(preset.name, preset.title, preset.text, costs if is_known else None, problem)
