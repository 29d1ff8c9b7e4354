"""Folders of images as people have them: images, captions beside them, and files that systems leave there."""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from dreambooth.data.captions import is_caption_file
from dreambooth.data.image_files import allowed_formats, check_image
from dreambooth.errors import UserError, escaped

# In small letters; names with a leading dot (.DS_Store, ._photo.jpg) as well.
SYSTEM_FILES = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "icon\r",
    "picasa.ini", "system volume information", "thumbs.db", "zbthumbnail.info",
}  # fmt: skip
SIDECARS = (".aae", ".xmp")  # files that phones and editors write beside a photo


@dataclass(frozen=True)
class ImageFolder:
    """Hold a folder of readable images, sorted by name.

    captions: caption files. system_files: names of ignored files. warnings: Pillow's, by the image's name.
    """

    path: Path
    images: list[Path]
    captions: list[Path] = field(default_factory=list)
    system_files: list[str] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)


def list_images(folder: str | Path) -> list[Path]:
    """Return the images in `folder`, sorted by name. Raises UserError as `open_folder` does."""
    return open_folder(folder).images


def open_folder(folder: str | Path) -> ImageFolder:
    """Sort a folder's files, and decode every image once, so that none fails during training.

    Raises UserError if the folder is missing or has no images, or with the names of everything in it that is neither a
    readable image nor a caption nor a file that the system puts there.
    """
    found = sort_files(folder)
    return replace(found, warnings=_checked(found.path, found.images))


def sort_files(folder: str | Path) -> ImageFolder:
    """Sort a folder's files by their names alone. Raises UserError if the folder is missing or has no images."""
    folder = Path(folder)
    files = sorted(_entries(folder))
    system_files = [path.name for path in files if _is_system_file(path.name)]
    files = [path for path in files if not _is_system_file(path.name)]
    names = {name for path in files for name in (path.name, path.stem) if not is_caption_file(path, {path.stem})}
    captions = [path for path in files if is_caption_file(path, names)]
    images = [path for path in files if path not in set(captions)]
    if not images:
        raise UserError(f"{escaped(folder)}: the folder has no images. {allowed_formats()}")
    return ImageFolder(folder, images, captions, system_files)


def _checked(folder: Path, images: list[Path]) -> dict[str, list[str]]:
    """Decode every image and return Pillow's warnings by name. Raises UserError that names all that cannot be used."""
    warnings, bad = {}, []
    for path in images:
        try:
            warned = _check(path)
        except UserError as error:
            bad.append(f"{escaped(path.name)} ({escaped(error)})")
            continue
        if warned:
            warnings[path.name] = warned
    if bad:
        raise UserError(
            f"{escaped(folder)}: {len(bad)} of {len(images)} files cannot be used as images: {', '.join(bad)}.\n"
            f"{allowed_formats()} Mend, move or remove the others."
        )
    return warnings


def _check(path: Path) -> list[str]:
    """Decode an image unless this process has done so since it was written: commands check before they load torch."""
    try:
        status = path.stat()
    except OSError:
        return check_image(path)  # which says what is wrong
    return _checked_once(path, status.st_mtime_ns, status.st_size)


@cache
def _checked_once(path: Path, mtime_ns: int, num_bytes: int) -> list[str]:
    return check_image(path)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except NotADirectoryError as error:
        raise UserError(f"{escaped(folder)}: a file. Name a folder of images.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = "no such folder" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error})"
        raise UserError(f"{escaped(folder)}: {reason}. Name a folder of images.") from error


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES or name.lower().endswith(SIDECARS)
