"""Keep what was deleted aside until it is brought back or the trash is emptied."""

import json
import os
import shutil
import time
import uuid
from pathlib import Path

from dreambooth.errors import escaped
from dreambooth.files import write_text
from dreambooth.studio.problems import ConflictError, MissingError
from dreambooth.studio.workspace import Workspace

FOLDER = ".trash"  # in each of the workspace's folders, so that nothing is copied from disk to disk
KEEP_S = 7 * 24 * 3600.0


def throw_away(workspace: Workspace, *paths: Path) -> str:
    """Move files or folders of one folder of the workspace to its trash; return the name to bring them back by.

    Raises ConflictError where one cannot be moved; then all are left where they are.
    """
    top = next(folder for folder in workspace.shared if paths[0].is_relative_to(folder))
    name = uuid.uuid4().hex
    place = top / FOLDER / name
    place.mkdir(parents=True)
    write_text(place / "from.json", json.dumps([workspace.relative(path) for path in paths]))
    for number, path in enumerate(paths):
        try:
            os.replace(path, place / str(number))
        except OSError as error:
            for moved, before in enumerate(paths[:number]):
                os.replace(place / str(moved), before)
            shutil.rmtree(place)
            why = f"cannot be moved to the trash ({error.strerror}); nothing was deleted"
            raise ConflictError(f"{escaped(workspace.relative(path))}: {why}") from error
    return name


def bring_back(workspace: Workspace, name: str) -> list[str]:
    """Move what was deleted back to its place; return where that is. Raises MissingError, ConflictError."""
    place = _place(workspace, name)
    names: list[str] = json.loads((place / "from.json").read_bytes())
    taken = [each for each in names if (workspace.root / each).exists()]
    if taken:
        raise ConflictError(f"{', '.join(taken)}: something else has this name now; rename or delete that first")
    for number, each in enumerate(names):
        (workspace.root / each).parent.mkdir(parents=True, exist_ok=True)
        os.replace(place / str(number), workspace.root / each)
    shutil.rmtree(place)
    return names


def empty(workspace: Workspace, older_than_s: float = KEEP_S) -> None:
    """Remove for good what was deleted longer ago than this."""
    for folder in workspace.shared:
        for place in (folder / FOLDER).glob("*"):
            if time.time() - place.stat().st_mtime >= older_than_s:
                shutil.rmtree(place, ignore_errors=True)


def _place(workspace: Workspace, name: str) -> Path:
    if len(name) == 32 and name.isalnum():
        for folder in workspace.shared:
            if (place := folder / FOLDER / name).is_dir():
                return place
    raise MissingError(
        "there is nothing of this name in the trash; a server that starts deletes what is older than 7 days"
    )
