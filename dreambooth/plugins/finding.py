"""Where plug-ins are looked for: packages with an entry point of the group `dreambooth`, and the folder plugins/."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

GROUP = "dreambooth"
FOLDER = Path("plugins")  # in the folder that a command is started in
VARIABLE = "DREAMBOOTH_PLUGINS"  # of the environment: another folder; empty: no plug-ins at all
PREFIX = "dreambooth_plugin_"  # of the modules' names


@dataclass(frozen=True)
class Candidate:
    """Hold a plug-in that was found. version: of its package; None: the module says. load: imports its module."""

    name: str
    version: str | None
    where: str
    load: Callable[[], Any]


def find_candidates() -> list[Candidate]:
    """Return the plug-ins that there are, by name; of equal names the package's."""
    folder = os.environ.get(VARIABLE, str(FOLDER))
    if not folder.strip():
        return []
    found = {each.name: each for each in [*_in_folder(Path(folder)), *_in_packages()]}
    return [found[name] for name in sorted(found)]


def _in_folder(folder: Path) -> Iterator[Candidate]:
    """Yield the modules and packages of a folder that name dreambooth; others are another program's."""
    for path in sorted(folder.glob("[a-zA-Z]*")) if folder.is_dir() else ():
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix == ".py" and source.is_file() and GROUP in source.read_text(encoding="utf-8", errors="ignore"):
            yield Candidate(path.stem, None, str(path), partial(_import_file, PREFIX + path.stem, source.resolve()))


def _import_file(name: str, source: Path) -> Any:
    places = [str(source.parent)] if source.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, source, submodule_search_locations=places)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _in_packages() -> Iterator[Candidate]:
    """Yield the entry points of installed packages."""
    if not _has_entry_points():
        return
    from importlib.metadata import entry_points  # reads every package's metadata: only where it finds something

    for point in entry_points(group=GROUP):
        package = "" if point.dist is None else point.dist.name
        yield Candidate(point.name, None if point.dist is None else point.dist.version, package, point.load)


def _has_entry_points() -> bool:
    """Return whether a package on the path has an entry point of the group, by its metadata's text alone."""
    for folder in dict.fromkeys(sys.path):
        for file in Path(folder or ".").glob("*-info/entry_points.txt"):
            try:
                if f"[{GROUP}]" in file.read_text(encoding="utf-8", errors="ignore"):
                    return True
            except OSError:
                continue
    return False
