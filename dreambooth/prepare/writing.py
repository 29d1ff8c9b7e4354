"""Write what a preparation proposes: a page, a config, captions and masks.

Nothing is written before all of it is known to have its place. No file that says something else is written over, but an
older page.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from dreambooth.data.captions import files_beside
from dreambooth.data.image_folder import ImageFolder
from dreambooth.data.masks import masks_folder
from dreambooth.disk import check_writable, translate_write_errors
from dreambooth.errors import UserError, escaped
from dreambooth.files import atomic_file
from dreambooth.prepare.captions import Caption
from dreambooth.prepare.findings import Photo, listed, twins
from dreambooth.prepare.inspection import Inspection
from dreambooth.prepare.page import CAPTIONS, render
from dreambooth.prepare.preparation import Preparation
from dreambooth.proposal import draft as drafts

PAGE, MASKS = "prepare.html", "masks"


@dataclass(frozen=True)
class PlannedFile:
    """Hold a file that is to be written. text: what it is, for the user. option: that asks for it."""

    path: Path
    content: bytes
    text: str
    option: str = "--accept"


def planned_files(found: Preparation, out: Path, accepted: Collection[str]) -> list[PlannedFile]:
    """Return what is written into the folder `out` and beside the photos.

    accepted: of "config", "captions" and "masks". Raises UserError for what cannot be written: there is another file,
    no permission, or nothing to write.
    """
    files = []
    if "captions" in accepted:
        files += caption_files(found.captions, found.inspection.folder, out)
    if "masks" in accepted:
        files += mask_files(found.inspection)
    else:
        files += proposed_mask_files(found.inspection, out)
    if "config" in accepted:
        if not found.draft:
            raise UserError("--accept config: no photo can be read, so no settings are proposed; mend the photos first")
        files.append(PlannedFile(found.request.out, drafts.render(found.draft, "prepare").encode(), "config"))
    page = PlannedFile(out / PAGE, render(found).encode(), "the page", "--out")
    check_files(files)
    check_folders([*files, page])
    return [*files, page]


def check_files(files: Sequence[PlannedFile]) -> None:
    """Raise UserError where another file is in the place of one that is to be written."""
    for file in files:
        path = file.path
        is_same = path.is_file() and path.read_bytes() == file.content
        if path.exists() and not is_same:
            name = file.text.partition(";")[0].removeprefix("proposed ")
            raise UserError(f"{escaped(path)}: is there already, with another {name}; move it, or name another --out")


def check_folders(files: Sequence[PlannedFile]) -> None:
    """Raise UserError for a folder that cannot be written to."""
    for folder, option in {file.path.parent: file.option for file in files}.items():
        check_writable(folder, option)


def write_files(files: Sequence[PlannedFile]) -> list[Path]:
    """Write the files, and return their paths."""
    for file in files:
        with translate_write_errors(file.path, file.option):
            try:
                with atomic_file(file.path) as stream:
                    stream.write(file.content)
            except OSError as error:
                raise OSError(error.errno, error.strerror) from error  # which names a temporary file
    return [file.path for file in files]


def caption_files(captions: Sequence[Caption], folder: ImageFolder, out: Path) -> list[PlannedFile]:
    """Return the files of the proposed captions.

    One of a photo without a caption goes beside it, where training reads it. One for a photo that has a caption goes
    into captions/ of the folder `out`: what the user wrote stays as it is.
    """
    files = []
    for caption in captions:
        if caption.proposed is None:
            continue
        path, text = caption_path(caption.path, folder), "caption"
        if not caption.is_free:
            text = f"caption; to train with it, move it to {escaped(path)}, as the photo has another one"
            path = out / CAPTIONS / path.name
        files.append(PlannedFile(path, f"{caption.proposed}\n".encode(), text))
    return files


def caption_path(photo: Path, folder: ImageFolder) -> Path:
    """Return the file that training reads a photo's caption from: that which is there, or would be.

    a.png.txt where there is an a.jpg too, which would share a.txt; training reads it first.
    """
    if photo.stem in twins(folder.images):
        return photo.with_name(f"{photo.name}.txt")
    return files_beside(folder.images, folder.captions).get(photo, photo.with_name(f"{photo.stem}.txt"))


def mask_files(inspection: Inspection) -> list[PlannedFile]:
    """Return the files of the masks that a finder has found, in the folder that training reads masks from.

    Raises UserError for photos that would share one.
    """
    source, photos = inspection.mask_source, inspection.proposed_masks
    for names in twins([photo.path for photo in photos]).values():
        raise UserError(f"--accept masks: {escaped(listed(names))} would share a mask; rename all but one")
    folder = masks_folder(inspection.folder.path) if source is None else Path(source)
    return [PlannedFile(folder / f"{photo.path.stem}.png", png_of_mask(photo), "mask") for photo in photos]


def proposed_mask_files(inspection: Inspection, out: Path) -> list[PlannedFile]:
    """Return the files of the masks that a finder has found, in masks/ of the folder `out`."""
    photos, files = inspection.proposed_masks, []
    shared = twins([photo.path for photo in photos])
    for photo in photos:
        name = photo.path.name if photo.path.stem in shared else photo.path.stem
        files.append(PlannedFile(out / MASKS / f"{name}.png", png_of_mask(photo), "proposed mask"))
    return files


def png_of_mask(photo: Photo) -> bytes:
    """Return a photo's mask, of the photo's size, as the bytes of a PNG."""
    assert photo.mask is not None
    stream = BytesIO()
    photo.mask.resize(photo.size, Image.Resampling.BILINEAR).save(stream, "PNG")
    return stream.getvalue()
