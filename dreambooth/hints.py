"""Commands to type next, written so that they work in the user's shell."""

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = ("train", "sample")  # commands that have a file of their own: train.py
NEEDED = ("omegaconf", "torch", "diffusers")  # packages that every environment of the toolkit has


def command_line(command: str, *words: str) -> str:
    """Return a command of the toolkit to be typed, quoted, by the way in which the running one was started."""
    started = Path(sys.argv[0])
    if started.name == "dreambooth" and os.access(started, os.X_OK):
        program = ["dreambooth" if shutil.which("dreambooth") == str(started) else str(started), command]
    elif started.name == "train.py" and command in SCRIPTS:
        program = ["python", str(started.with_name(f"{command}.py"))]
    else:
        program = ["python", "-m", "dreambooth", command]
    return shlex.join([*program, *words])


def activation_hint() -> str | None:
    """Return the command that activates the running environment; None where it is active, or is none."""
    activate = Path(sys.prefix, "Scripts" if os.name == "nt" else "bin", "activate")
    python = shutil.which("python")
    if sys.prefix == sys.base_prefix or not activate.is_file() or (python and _same_folder(python, sys.executable)):
        return None
    return f". {shlex.quote(_from_here(activate))}"


def missing_environment(error: ModuleNotFoundError) -> str | None:
    """Return what to do about a missing package; None if this Python is an environment of the toolkit."""
    if all(importlib.util.find_spec(name) is not None for name in NEEDED):
        return None
    python = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    lacks = f"this Python ({sys.executable}) has no package {error.name}"
    if python.is_file():
        return f"{lacks}; use that of the toolkit: {shlex.join([_from_here(python), *sys.argv])}"
    return f"{lacks}; `make demo` sets up the toolkit's own environment, or: python -m pip install -e {ROOT}"


def _same_folder(one: str, other: str) -> bool:
    return Path(one).parent.resolve() == Path(other).parent.resolve()


def _from_here(path: Path) -> str:
    """Return a path as short as it can be typed here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
