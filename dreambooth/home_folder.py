"""Paths with `~` for the home folder: what is shown to others, or moved to another machine, names nobody's."""

import os
import re

MAX_BEFORE = 300  # letters before the home folder that are looked at
BEFORE = re.compile(r"[\w./~\\\x1b\[-]*$")
PATH_SO_FAR = re.compile(r"(?!-)[\w./~-]*[\w.~-]")  # and no option, escape or terminal's code


def without_home(path: str) -> str:
    """Return a path with `~` for the home folder, so that it can be shown to others and read again."""
    home = os.path.expanduser("~").rstrip(os.sep)
    return "~" + path[len(home) :] if home and (path + os.sep).startswith(home + os.sep) else path


def hide_home(text: str) -> str:
    """Return a text in which `~` replaces the home folder wherever a path begins with it, and nowhere within one."""
    home = os.path.expanduser("~").rstrip(os.sep)
    if not home:
        return text

    def shown(found: re.Match[str]) -> str:
        before = BEFORE.search(text[max(0, found.start() - MAX_BEFORE) : found.start()])
        return found[0] if before is not None and PATH_SO_FAR.fullmatch(before[0]) else "~"

    return re.sub(re.escape(home) + r"(?![\w.-])", shown, text)


def with_home(path: str) -> str:
    """Return a path with the home folder for a leading `~/`: the inverse of `without_home`."""
    return os.path.expanduser(path) if (path + os.sep).startswith("~" + os.sep) else path
