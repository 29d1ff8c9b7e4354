"""The gallery: all images of outputs/, searched, marked, deleted with undo, and shared as a folder."""

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Form, Response

from dreambooth.errors import UserError
from dreambooth.studio import share as sharing
from dreambooth.studio import trash
from dreambooth.studio.gallery import Filter
from dreambooth.studio.pages.frame import make_router, query, render, say
from dreambooth.studio.routes import images as image_routes
from dreambooth.studio.routes.images import Marks
from dreambooth.studio.state import Studio, StudioOf

router = make_router()
A_PAGE = 60  # images
Images = Annotated[list[str], Form(min_length=1, max_length=500)]


@router.get("/gallery")
def page(
    studio: StudioOf,
    search: str = "",
    tag: str = "",
    model: str = "",
    folder: str = "",
    favourites: bool = False,
    offset: int = 0,
) -> Response:
    """Show the images that fit, the newest first."""
    wanted = Filter(search[:200], tag, model, folder, favourites)
    values = _found(studio, wanted, max(0, offset))
    is_filtered = wanted != Filter()
    return render(
        "gallery.html",
        "gallery",
        **values,
        is_filtered=is_filtered,
        tags=studio.gallery.tags(),
        models=studio.gallery.models(),
    )


@router.get("/gallery/more")
def more(
    studio: StudioOf,
    search: str = "",
    tag: str = "",
    model: str = "",
    folder: str = "",
    favourites: bool = False,
    offset: int = 0,
) -> Response:
    """Show the next images."""
    return render(
        "_thumbs.html", **_found(studio, Filter(search[:200], tag, model, folder, favourites), max(0, offset))
    )


def _found(studio: Studio, wanted: Filter, offset: int) -> dict[str, Any]:
    found = studio.gallery.find(wanted, A_PAGE, offset)
    after = offset + A_PAGE
    address = query({**vars(wanted), "favourites": "true" if wanted.favourites else "", "offset": after})
    return {"found": found, "wanted": wanted, "next_page": f"/gallery/more?{address}" if after < found["total"] else ""}


@router.post("/images/favourite")
def favourite(studio: StudioOf, image: Images, on: Annotated[str, Form()] = "") -> Response:
    """Make images favourites; without `on` one that is a favourite is none any more."""
    before = [image_routes.mark(studio, each, Marks()) for each in image]  # all are there, or none changes
    for each in before:
        image_routes.mark(studio, each["image"], Marks(is_favourite=bool(on) or not each["is_favourite"]))
    return say(f"{_several(image)} among the favourites." if on else "")


@router.post("/images/tags")
def tags(
    studio: StudioOf, image: Images, tags: Annotated[str, Form(max_length=1000)] = "", add: Annotated[str, Form()] = ""
) -> Response:
    """Set the tags of images, or with `add` give them more."""
    new = [each for each in map(str.strip, tags.split(",")) if each]
    before = [image_routes.mark(studio, each, Marks()) for each in image]  # all are there, or none changes
    marks = [Marks.model_validate({"tags": [*each["tags"], *new] if add else new}) for each in before]
    for each, own in zip(image, marks, strict=True):
        image_routes.mark(studio, each, own)
    return say("Tagged.")


@router.post("/images/delete")
def delete(studio: StudioOf, image: Images) -> Response:
    """Move images to the trash, with a way back."""
    images = list(dict.fromkeys(image))  # one that came while pages were turned may be shown on two of them
    paths = [studio.workspace.find(each) for each in images]
    outside = [
        each for each, path in zip(images, paths, strict=True) if not path.is_relative_to(studio.workspace.outputs)
    ]
    if outside:
        raise UserError(f"{outside[0]}: belongs to a run or a subject; only images in outputs/ are deleted here")
    name = trash.throw_away(studio.workspace, *paths)
    response = say(f"{_several(images)} deleted.", undo=f"/trash/{name}/restore")
    response.headers["HX-Trigger-After-Settle"] = "images-gone"
    return response


@router.post("/trash/{name}/restore")
def restore(studio: StudioOf, name: str) -> Response:
    """Bring back what was deleted."""
    trash.bring_back(studio.workspace, name)
    response = say("It is back.")
    response.headers["HX-Refresh"] = "true"
    return response


@router.post("/images/share")
def share(
    studio: StudioOf,
    image: Images,
    name: Annotated[str, Form(max_length=60)],
    title: Annotated[str, Form(max_length=120)] = "",
    recipes: Annotated[str, Form()] = "",
    repo: Annotated[str, Form(max_length=200)] = "",
    public: Annotated[str, Form()] = "",
) -> Response:
    """Make a folder with the images and a page that shows them. repo: of the hub, OWNER/NAME, which gets it too."""
    repo = repo.strip()
    if repo:
        sharing.check_hub(repo)
    folder = sharing.share(studio.workspace, image, name.strip(), title.strip() or name, keeps_recipes=bool(recipes))
    if repo:
        address = sharing.push(folder, repo, is_public=bool(public))
        return say(f"{address} shows {_several(image)}, {'for everybody' if public else 'for you alone'}.")
    return say(
        f"{studio.workspace.relative(folder)}/index.html shows {_several(image)}; copy the folder wherever you like."
    )


def _several(images: Sequence[str]) -> str:
    return "1 image" if len(images) == 1 else f"{len(images)} images"


def link_to_folder(folder: str) -> str:
    """Return the address of a folder's images."""
    return f"/gallery?folder={quote(folder)}"
