"""The folder that a studio works in, and the names by which requests reach what lies there.

A workspace has the folders that the commands use by default: data/ (a folder of photos a subject), configs/,
checkpoints/ (runs and pipelines), outputs/ (images), models/ (files of other tools). What the studio itself keeps lies
in .studio/. A request names things by their names; no path that a request brings is opened outside the workspace.
"""

import re
from pathlib import Path

from dreambooth.errors import escaped
from dreambooth.studio.problems import MissingError, RequestError

MAX_NAME = 100  # letters
MAX_BYTES = 255  # of a name, which file systems take
MAX_NEW_BYTES = 200  # of a new one, to which endings and numbers are added
FORBIDDEN = re.compile(r'[/\\:*?"<>|${}]')  # in a new name: what separates, expands or has a meaning in an option
UPLOADS = ".studio/uploads/"  # the only hidden folder that requests name files in
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


class Workspace:
    """Name the folders of a workspace. root: the folder, which is the working directory of every job."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.photos = self.root / "data"
        self.configs = self.root / "configs"
        self.runs = self.root / "checkpoints"
        self.outputs = self.root / "outputs"
        self.models = self.root / "models"
        self.own = self.root / ".studio"
        self.jobs = self.own / "jobs"
        self.uploads = self.own / "uploads"
        self.thumbnails = self.own / "thumbnails"
        self.database = self.own / "studio.sqlite"

    def __repr__(self) -> str:
        return f"Workspace({str(self.root)!r})"

    @property
    def shared(self) -> tuple[Path, ...]:
        """Return the folders that a request may name files in."""
        return self.photos, self.configs, self.runs, self.outputs, self.models, self.uploads

    def prepare(self) -> None:
        """Make the studio's own folders."""
        for folder in (self.own, self.jobs, self.uploads, self.thumbnails):
            folder.mkdir(parents=True, exist_ok=True)
        self.own.chmod(0o700)  # the queue and the hash of the token are nobody else's

    def relative(self, path: Path) -> str:
        """Return a path in the workspace as requests and commands name it: checkpoints/my-dog."""
        return path.relative_to(self.root).as_posix()

    def find(self, name: str) -> Path:
        """Return what a request names by its path in the workspace. Raises MissingError for what is not in there.

        A link that leads out of the workspace's folders leads nowhere; one of these folders may itself be a link.
        """
        is_upload = name.startswith(UPLOADS)
        path = self.root / name
        if not all(map(is_name, name.removeprefix(UPLOADS).split("/"))) or (path.parent != self.uploads and is_upload):
            raise MissingError(f"{escaped(name)}: there is nothing of this name in the workspace")
        if not self._is_inside(path) or not _is_there(path):
            raise MissingError(f"{escaped(name)}: there is nothing of this name in the workspace")
        return path

    def find_in(self, folder: Path, name: str) -> Path:
        """Return an entry of one of the workspace's folders by its name. Raises MissingError."""
        path = folder / name
        if not is_name(name) or not self._is_inside(path) or not path.exists():
            raise MissingError(f"{escaped(name)}: there is nothing of this name in {folder.name}/")
        return path

    def model(self, name: str) -> str:
        """Return a MODEL of a request: a path in the workspace, or a hub id. Raises MissingError for anything else."""
        if (self.root / name.split("/")[0]) not in self.shared and HUB_ID.fullmatch(name):
            return name
        return self.relative(self.find(name))

    def _is_inside(self, path: Path) -> bool:
        real = path.resolve()
        return any(real.is_relative_to(folder.resolve()) for folder in self.shared)


def is_name(name: str) -> bool:
    """Return whether a text can be the name of one entry of a folder, and no option, hidden file or way out of it."""
    is_safe = 0 < len(name) <= MAX_NAME and name[0] not in ".-" and name.isprintable() and not set(name) & set("/\\")
    return is_safe and len(name.encode()) <= MAX_BYTES


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a longer path than the system takes
        return False


def check_new_name(name: str, what: str) -> str:
    """Return a name for something new. Raises RequestError for one that a folder or a command would trip over."""
    if not is_name(name) or FORBIDDEN.search(name) or name != name.strip() or len(name.encode()) > MAX_NEW_BYTES:
        raise RequestError(
            f"{what}={escaped(name)!r}: no name for a folder; use letters, digits, - and _, {MAX_NAME} at most "
            f"({MAX_NEW_BYTES} bytes), a letter or digit first"
        )
    return name
