"""Write what a preparation proposes: a page, a config, captions and masks. No file that is there is written over."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dreambooth.data.masks import masks_folder
from dreambooth.disk import check_writable, translate_write_errors
from dreambooth.errors import UserError, escaped
from dreambooth.files import atomic_file, read_text, write_text
from dreambooth.prepare.captions import Caption
from dreambooth.prepare.findings import Photo
from dreambooth.prepare.inspection import Inspection
from dreambooth.prepare.page import render
from dreambooth.prepare.preparation import Preparation

PAGE, CONFIG, CAPTIONS, MASKS = "prepare.html", "config.yaml", "captions", "masks"


def write_page(found: Preparation, out: Path) -> Path:
    """Write the page into the folder `out`, and return its path; an older page there is replaced."""
    check_writable(out, "--out")
    with translate_write_errors(out, "--out"):
        write_text(out / PAGE, render(found))
    return out / PAGE


def write_captions(captions: Sequence[Caption], out: Path) -> list[Path]:
    """Write the proposed captions, and return their files.

    One of a photo without a caption goes beside it, where training reads it. One for a photo that has a caption goes
    into captions/ of the folder `out`: what the user wrote stays as it is. Raises UserError before anything is written,
    for a file there that says something else.
    """
    texts = {}
    for caption in captions:
        if caption.proposed is not None:
            path = caption.file if caption.is_free else out / CAPTIONS / caption.file.name
            texts[path] = f"{caption.proposed}\n"
    for path, text in texts.items():
        if path.exists() and read_text(path) != text:
            raise UserError(f"{escaped(path)}: is there already, with another caption; move it, or name another --out")
    for path, text in texts.items():
        with translate_write_errors(path.parent, "--accept"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    return [*texts]


def write_masks(inspection: Inspection) -> list[Path]:
    """Write the masks that a finder has found into <photos>-masks beside the photos, and return their files.

    Raises UserError where that folder is there already.
    """
    folder, found = masks_folder(inspection.folder.path), _found_masks(inspection)
    if found and folder.exists():
        raise UserError(f"{escaped(folder)}: is there already; move it, or leave --accept masks out")
    return _write_masks(found, folder)


def write_proposed_masks(inspection: Inspection, out: Path) -> list[Path]:
    """Write the masks that a finder has found into masks/ of the folder `out`, and return their files."""
    return _write_masks(_found_masks(inspection), out / MASKS)


def _found_masks(inspection: Inspection) -> list[Photo]:
    """Return the photos with a mask that a finder has found."""
    return [each for each in inspection.readable if each.mask is not None] if inspection.mask_source is None else []


def _write_masks(photos: Sequence[Photo], folder: Path) -> list[Path]:
    written = []
    for photo in photos:
        assert photo.mask is not None
        path = folder / f"{photo.path.stem}.png"
        with translate_write_errors(folder, "--accept"), atomic_file(path) as file:
            photo.mask.resize(photo.size, Image.Resampling.BILINEAR).save(file, "PNG")
        written.append(path)
    return written
