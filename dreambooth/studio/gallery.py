"""The images of outputs/, indexed in SQLite so that thousands can be searched: prompt, model, seed, marks.

The index follows the folders: what a terminal adds or removes is found at the next look. Marks alone are kept here.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.errors import escaped
from dreambooth.generation.request import RECIPE
from dreambooth.studio.problems import MissingError
from dreambooth.studio.workspace import Workspace

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LOOK_S = 1.0  # between two looks at the folders
HIDDEN = ("grid-", "attention-")  # images about others; they have no recipe
CROPS = "-crops.png"  # the end of the name under which `new` shows how photos are cut
NO_IMAGES = ("masks",)  # folders of what is about others: the masks that `prepare` proposes

SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    image TEXT PRIMARY KEY,
    folder TEXT NOT NULL,
    changed INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    width INTEGER,
    height INTEGER,
    prompt TEXT NOT NULL DEFAULT '',
    model TEXT NOT NULL DEFAULT '',
    seed INTEGER,
    is_there INTEGER NOT NULL DEFAULT 1,
    is_favourite INTEGER NOT NULL DEFAULT 0,
    tags TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX IF NOT EXISTS images_by_time ON images (changed);
"""


@dataclass(frozen=True)
class Filter:
    """Hold what is looked for: words of the prompt, a tag, a model, a folder, favourites only. Empty: all."""

    search: str = ""
    tag: str = ""
    model: str = ""
    folder: str = ""
    favourites: bool = False


class Gallery:
    """Find images and keep their marks."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._lock = threading.RLock()
        self._looked_at = -LOOK_S
        self._folders: dict[str, int] = {}  # when each was changed, at the last look
        self._database = sqlite3.connect(workspace.own / "images.sqlite", isolation_level=None, check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.executescript(SCHEMA)
        before = self._database.execute("SELECT DISTINCT folder FROM images WHERE is_there")
        self._folders |= {row["folder"]: 0 for row in before}  # one that is no longer there is found to be gone

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def find(self, wanted: Filter, limit: int, offset: int) -> dict[str, Any]:
        """Return images, the newest first, and how many there are in all."""
        condition, values = _condition(wanted)
        with self._lock:
            self.look()
            total = self._database.execute(f"SELECT COUNT(*) FROM images WHERE {condition}", values).fetchone()[0]
            rows = self._database.execute(
                f"SELECT * FROM images WHERE {condition} ORDER BY changed DESC, image DESC LIMIT ? OFFSET ?",
                [*values, limit, offset],
            )
            return {"total": total, "images": [_public(row) for row in rows]}

    def tags(self) -> list[str]:
        """Return the tags that images have, by name."""
        return self._distinct("SELECT DISTINCT value FROM images, json_each(tags) WHERE is_there ORDER BY value")

    def models(self) -> list[str]:
        """Return the models that have made images, by name."""
        return self._distinct("SELECT DISTINCT model FROM images WHERE is_there AND model != '' ORDER BY model")

    def _distinct(self, query: str) -> list[str]:
        with self._lock:
            self.look()
            return [str(row[0]) for row in self._database.execute(query)]

    def mark(self, image: str, is_favourite: bool | None, tags: Sequence[str] | None) -> dict[str, Any]:
        """Set the marks of an image, and return it; None leaves one as it is. Raises MissingError for none of these."""
        with self._lock:
            self.look(at_once=True)
            if not self._database.execute("SELECT 1 FROM images WHERE image = ? AND is_there", (image,)).fetchone():
                raise MissingError(f"{escaped(image)}: the gallery has no such image; it shows those of outputs/")
            if is_favourite is not None:
                self._database.execute("UPDATE images SET is_favourite = ? WHERE image = ?", (is_favourite, image))
            if tags is not None:
                text = json.dumps(list(dict.fromkeys(tags)))
                self._database.execute("UPDATE images SET tags = ? WHERE image = ?", (text, image))
            return _public(self._database.execute("SELECT * FROM images WHERE image = ?", (image,)).fetchone())

    def look(self, at_once: bool = False) -> None:
        """Take over what has changed in the folders since the last look."""
        with self._lock:
            if not at_once and time.monotonic() - self._looked_at < LOOK_S:
                return
            with self._database:  # a look that fails leaves no transaction open
                self._database.execute("BEGIN")
                folders = self._take_changed()
            self._folders = folders
            self._looked_at = time.monotonic()

    def _take_changed(self) -> dict[str, int]:
        """Take over the folders that have changed; return when each one that is there was."""
        found = {}
        for folder in self._walk():
            try:
                name, changed = self._workspace.relative(folder), folder.stat().st_mtime_ns
                if self._folders.get(name) != changed:
                    self._take(folder, name)
                found[name] = changed
            except (OSError, UnicodeEncodeError):  # it has gone meanwhile, or its name is no text
                continue
        for gone in self._folders.keys() - found.keys():
            self._database.execute("UPDATE images SET is_there = 0 WHERE folder = ?", (gone,))
        return found

    def _walk(self) -> Iterator[Path]:
        for place, folders, _ in os.walk(self._workspace.outputs):
            folders[:] = [name for name in folders if not name.startswith(".") and name not in NO_IMAGES]
            yield Path(place)

    def _take(self, folder: Path, name: str) -> None:
        """Take over the images of one folder."""
        there = {path.name: path for path in folder.iterdir() if is_shown(path.name) and os.path.isfile(path)}
        rows = self._database.execute("SELECT image, changed, is_there FROM images WHERE folder = ?", (name,))
        known = {row["image"].rpartition("/")[2]: row for row in rows}
        for gone in known.keys() - there.keys():
            self._database.execute("UPDATE images SET is_there = 0 WHERE image = ?", (known[gone]["image"],))
        for each, path in there.items():
            row = known.get(each)
            try:
                if row is None or not row["is_there"] or row["changed"] != path.stat().st_mtime_ns:
                    self._add(path)
            except (OSError, UnicodeEncodeError, OverflowError):  # it has gone, or has what the index cannot hold
                continue

    def _add(self, path: Path) -> None:
        status = path.stat()
        size, recipe = _head(path)
        values = {
            "image": self._workspace.relative(path),
            "folder": self._workspace.relative(path.parent),
            "changed": status.st_mtime_ns,
            "bytes": status.st_size,
            "width": size[0],
            "height": size[1],
            "prompt": str(recipe.get("prompt", "")),
            "model": str(recipe.get("model", "")),
            "seed": seed if isinstance(seed := recipe.get("seed"), int) and -(2**63) <= seed < 2**63 else None,
            "is_there": 1,
        }
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        update = ", ".join(f"{name} = excluded.{name}" for name in values if name != "image")
        self._database.execute(
            f"INSERT INTO images ({names}) VALUES ({marks}) ON CONFLICT (image) DO UPDATE SET {update}",
            list(values.values()),
        )


def is_shown(name: str) -> bool:
    """Return whether a file is an image that was made from a recipe: no grid, no map of where words acted."""
    return name.lower().endswith(SUFFIXES) and not name.startswith((".", *HIDDEN)) and not name.endswith(CROPS)


def _head(path: Path) -> tuple[tuple[int | None, int | None], dict[str, Any]]:
    """Return size and recipe of an image by its head; nothing is decoded."""
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            recipe = json.loads(image.info.get(RECIPE, "{}"))
            return image.size, recipe if isinstance(recipe, dict) else {}
    except (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError):
        return (None, None), {}


def _condition(wanted: Filter) -> tuple[str, list[Any]]:
    """Return the condition of a search, and its values."""
    conditions: list[str] = ["is_there"]
    values: list[Any] = []
    for word in wanted.search.split():
        conditions.append(r"prompt LIKE ? ESCAPE '\'")
        values.append(f"%{_literal(word)}%")
    for column, value in (("model", wanted.model), ("folder", wanted.folder)):
        if value:
            conditions.append(f"{column} = ?")
            values.append(value)
    if wanted.tag:
        conditions.append("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)")
        values.append(wanted.tag)
    if wanted.favourites:
        conditions.append("is_favourite")
    return " AND ".join(conditions), values


def _literal(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")


def _public(row: sqlite3.Row) -> dict[str, Any]:
    found = {name: row[name] for name in ("image", "folder", "bytes", "width", "height", "prompt", "model", "seed")}
    marks = {"is_favourite": bool(row["is_favourite"]), "tags": json.loads(row["tags"])}
    return {**found, **marks, "changed": row["changed"] / 1e9}
