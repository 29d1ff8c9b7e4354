"""A folder with images and one page that shows them: it opens from the disk, on any web server, or on the hub."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from PIL import Image

from dreambooth.errors import UserError
from dreambooth.files import atomic_folder, write_text
from dreambooth.generation.request import read_recipe
from dreambooth.studio.problems import ConflictError
from dreambooth.studio.workspace import Workspace, check_new_name

TEMPLATES = Path(__file__).parent / "templates"
FOLDER = "shared"  # in the workspace; not in outputs/, where the gallery would show its copies


@dataclass(frozen=True)
class SharedImage:
    """Hold an image of the page."""

    file: str
    width: int
    height: int
    prompt: str


def share(workspace: Workspace, images: Sequence[str], name: str, title: str, keeps_recipes: bool) -> Path:
    """Write images and index.html to a new folder in shared/, and return it.

    images: as requests name them. keeps_recipes: with prompts on the page, and files as they are; else neither.
    Raises ConflictError where the folder is there, MissingError for an image that is not.
    """
    folder = workspace.root / FOLDER / check_new_name(name, "name")
    if folder.exists():
        raise ConflictError(f"name={name}: {workspace.relative(folder)} is there already; take another name")
    paths = [workspace.find(each) for each in images]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as beside:
        beside.mkdir()
        shown = [_added(path, beside, number, keeps_recipes) for number, path in enumerate(paths)]
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
        )
        page = environment.get_template("share.html").render(title=title, images=shown)
        write_text(beside / "index.html", page)
    return folder


def check_hub(repo: str) -> None:
    """Raise UserError for a name that is not OWNER/NAME, ModelError where nobody is logged in to the hub."""
    from dreambooth.exporting import hub  # half a second, which only who shares there waits for

    hub.check(repo, "repo")


def push(folder: Path, repo: str, is_public: bool) -> str:
    """Upload a shared folder to the hub as a static Space, which shows its page; return its address.

    Raises ModelError; the folder stays.
    """
    from dreambooth.exporting import hub

    return hub.push(folder, repo, private=not is_public, kind="space")


def _added(path: Path, folder: Path, number: int, keeps_recipes: bool) -> SharedImage:
    """Put an image into the folder, and return what the page shows of it."""
    place = folder / f"{number + 1:03d}{path.suffix.lower()}"
    with Image.open(path) as image:
        width, height = image.size
        if not keeps_recipes:
            bare = image.convert("RGB")
            bare.info.clear()  # a JPEG's comment would be kept
            bare.save(place)
    if keeps_recipes:
        shutil.copyfile(path, place)
    return SharedImage(place.name, width, height, _prompt(path) if keeps_recipes else "")


def _prompt(path: Path) -> str:
    try:
        return str(read_recipe(path).get("prompt", ""))
    except UserError:
        return ""
