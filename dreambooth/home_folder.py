"""Paths with `~` for the home folder: what is shown to others, or moved to another machine, names nobody's."""

import os
import re


def without_home(path: str) -> str:
    """Return a path with `~` for the home folder, so that it can be shown to others and read again."""
    home = os.path.expanduser("~").rstrip(os.sep)
    return "~" + path[len(home) :] if home and (path + os.sep).startswith(home + os.sep) else path


def hide_home(text: str) -> str:
    """Return a text in which `~` replaces the home folder wherever a path begins with it, and nowhere within one."""
    home = os.path.expanduser("~").rstrip(os.sep)
    return re.sub(r"(?<![\w.~-])" + re.escape(home) + r"(?![\w.-])", "~", text) if home else text


def with_home(path: str) -> str:
    """Return a path with the home folder for a leading `~/`: the inverse of `without_home`."""
    return os.path.expanduser(path) if (path + os.sep).startswith("~" + os.sep) else path
