"""The images that a command names: files, or folders of them."""

import re
from pathlib import Path

from dreambooth.errors import UserError, escaped
from dreambooth.files import check_utf8

ABOUT_OTHERS = re.compile(r"(grid|attention)-\d{5,}\.png")  # what `sample` writes beside its images


def is_about_others(path: Path) -> bool:
    """Return whether a file in a folder is a grid or a map of the images there."""
    if path.name in ("grid.png", "grid.html"):  # a sheet with its page; else some photo of this name
        return path.with_name("grid.html").is_file()
    return ABOUT_OTHERS.fullmatch(path.name) is not None


def image_paths(named: list[Path]) -> list[Path]:
    """Return the images that are named, and those in folders that are named, without the grids of `sample`.

    Raises UserError for what is no image, and for a name that the lines could not hold.
    """
    from dreambooth.data.image_files import load_image
    from dreambooth.data.image_folder import sort_files

    paths: list[Path] = []
    for path in named:
        if not path.exists():
            raise UserError(f"{escaped(path)}: there is no such image or folder")
        found = sort_files(path).images if path.is_dir() else [path]
        paths += [each for each in found if each == path or not is_about_others(each)]
    if not paths:
        raise UserError(f"{escaped(named[0])}: has grids of images alone; name the file of one to have it described")
    for path in paths:
        check_utf8(path)
        load_image(path)  # what cannot be read is reported before a model is loaded
    return paths
