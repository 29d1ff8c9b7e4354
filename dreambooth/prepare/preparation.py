"""All that is found out about photos before training, and what is proposed: captions, crops, a word, settings.

`prepare` is for programs too: it takes and returns plain data and writes nothing.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dreambooth.config import default_of
from dreambooth.data.buckets import kept_fraction, make_buckets, nearest_bucket
from dreambooth.data.captions import files_beside
from dreambooth.data.cuts import centered
from dreambooth.data.image_folder import ImageFolder, sort_files
from dreambooth.data.masks import find_masks, masks_folder
from dreambooth.data.near_duplicates import ImageInfo
from dreambooth.errors import ModelError
from dreambooth.files import check_utf8
from dreambooth.prepare.captions import Caption, Captioner, captions_of_folder, edited_captions, propose
from dreambooth.prepare.crops import Crops, crops_of
from dreambooth.prepare.findings import Finding, Needs, Photo, Severity
from dreambooth.prepare.inspection import NO_READERS, Inspection, PhotoReaders, inspect_photos, read_photos
from dreambooth.prepare.tokens import Token, load_text_sides, rank_tokens
from dreambooth.proposal import draft as drafts
from dreambooth.proposal.facts import base_facts
from dreambooth.proposal.rules import Draft

DEFAULT_WORD = "sks"  # where no better one is known


@dataclass(frozen=True)
class Request:
    """Hold what the user asks for.

    class_noun: "" where it is not named; then there are no settings. identifier: None for one to be proposed. masks: as
    data.mask; None: those beside the photos. out: the config's file, which is only named here. captions: a file of
    captions that take the place of the photos' own; None: none. mask_model: that finds masks, only named here.
    """

    photos: Path
    base: str
    class_noun: str = ""
    identifier: str | None = None
    masks: str | None = None
    out: Path = Path("config.yaml")
    captions: Path | None = None
    mask_model: str | None = None

    @property
    def names(self) -> list[object]:
        """Return all that is named, which messages and the page show."""
        named = (self.photos, self.base, self.class_noun, self.identifier, self.masks, self.out, self.captions)
        return [each for each in (*named, self.mask_model) if each is not None]


@dataclass(frozen=True)
class Preparation:
    """Hold what was found out about photos, and what is proposed.

    captions: of photos that have one, or get one. crops: of readable photos. draft: settings with their reasons; empty
    where the class is not known. notes: what could not be found out, and why. warnings: what is to be known of the
    settings.
    """

    request: Request
    inspection: Inspection
    captions: list[Caption] = field(default_factory=list)
    crops: list[Crops] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    draft: Draft = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def num(self) -> dict[Severity, int]:
        """Return how many findings there are of each severity, on photos and captions."""
        in_captions = Counter(one.severity for caption in self.captions for one in caption.findings)
        return {severity: number + in_captions[severity] for severity, number in self.inspection.num.items()}

    @property
    def identifier(self) -> str:
        """Return the word that will stand for the subject: the user's, or the best one."""
        return self.request.identifier or next((token.word for token in self.tokens), DEFAULT_WORD)


def prepare(request: Request, readers: PhotoReaders = NO_READERS, describe: Captioner | None = None) -> Preparation:
    """Look at a folder of photos. Writes nothing.

    Raises UserError for a folder that is not there, or has no files, or names that are not UTF-8.

    readers: find the subject where there are no masks, and text. describe: captions photos that have no caption.
    """
    folder = sort_files(request.photos)
    check_utf8(*request.names, *folder.images)
    source = request.masks or find_masks(folder.path, folder.images)
    photos = read_photos(folder, source, request.class_noun, readers)
    needs = needs_of(request.base, [each.photo.info for each in photos if each.photo is not None], source)
    inspection = inspect_photos(folder, photos, needs, source)
    tokens, notes = _tokens(request)
    found = Preparation(request, inspection, tokens=tokens, notes=notes)
    captions = _captions(found, describe)
    crops = [crops_of(photo, needs, default_of("data.unmasked_weight")) for photo in inspection.readable]
    found = replace(found, captions=captions, crops=crops)
    return replace(found, draft=draft_of(found, folder)) if request.class_noun and inspection.readable else found


def _captions(found: Preparation, describe: Captioner | None) -> list[Caption]:
    """Return the photos' captions: as the user edited them, as they are, or else as they are described."""
    request, folder = found.request, found.inspection.folder
    if request.captions is not None:
        return edited_captions(folder, request.captions, request.class_noun, request.identifier)
    captions = captions_of_folder(folder, request.class_noun, request.identifier)
    if describe is None:
        return captions
    by_path, lacking = {caption.path: caption for caption in captions}, lacking_captions(folder)
    for photo in found.inspection.readable:
        if photo.path in lacking:
            by_path[photo.path] = described(photo, describe, request.class_noun)
    return [by_path[path] for path in folder.images if path in by_path]


def lacking_captions(folder: ImageFolder) -> list[Path]:
    """Return the photos that a model is asked to caption: all where none has a caption, else those without a file."""
    captions = captions_of_folder(folder, "", None)
    if not captions:
        return folder.images
    beside = files_beside(folder.images, folder.captions)
    return [
        caption.path
        for caption in captions
        if not caption.text and not caption.is_broken and caption.path not in beside
    ]


def needs_of(base: str, images: Sequence[ImageInfo], mask: str | None) -> Needs:
    """Return what a base's resolution asks of photos: buckets where a square would cut much."""
    facts = base_facts(base)
    side = facts.resolution
    has_buckets = not facts.is_tiny and any(kept_fraction(each.size, (1, 1)) < drafts.MIN_KEPT for each in images)
    buckets = make_buckets(side, default_of("data.bucket_step")) if has_buckets else [(side, side)]
    return Needs(side, buckets, mask)


def _tokens(request: Request) -> tuple[list[Token], list[str]]:
    """Return proposed words, and why there are none."""
    try:
        return rank_tokens(load_text_sides(request.base, base_facts(request.base).family), request.class_noun), []
    except ModelError as error:
        return [], [f"no word is proposed: {error}"]


def described(photo: Photo, describe: Captioner, class_noun: str) -> Caption:
    """Return the caption that is proposed for a photo without one."""
    finding = Finding("no caption", "note", 0, "has no caption", "write the proposed one beside it with --accept")
    return Caption(photo.path, "", [finding], proposed=propose(describe(photo.image, class_noun), class_noun))


def draft_of(found: Preparation, folder: ImageFolder) -> Draft:
    """Return the settings to train with, each with its reason."""
    request, inspection = found.request, found.inspection
    own = drafts.Request(request.photos, request.class_noun, request.base, found.identifier, request.out)
    draft = drafts.first_draft(own, folder, [photo.info for photo in inspection.readable])
    if request.identifier is None and found.tokens:
        draft["subject.identifier"] = (found.identifier, "rare, and one token to each of the base's tokenizers")
    if inspection.proposed_masks:
        draft.pop("data.mask", None)  # that folder lacks some
    if inspection.mask_source is None or inspection.proposed_masks:
        return draft
    return _with_masks(draft, inspection, inspection.mask_source)


def _with_masks(draft: Draft, inspection: Inspection, source: str) -> Draft:
    """Return settings with the photos' masks, and with crops around the subject where these are of use."""
    crop = _crop_reason(inspection)
    crops: Draft = {"data.crop": ("subject", crop)} if crop else {}
    return {**draft, "data.mask": drafts.mask_setting(source), **crops}


def with_accepted(found: Preparation, accepted: Collection[str]) -> Preparation:
    """Return the preparation with settings that use the captions and masks which are written with them.

    Training needs one for each photo: where some have none, the settings stay.
    """
    inspection, draft = found.inspection, dict(found.draft)
    paths = set(inspection.folder.images)
    if not draft:
        return found
    has_all_masks = paths == {photo.path for photo in inspection.readable if photo.mask is not None}
    if "masks" in accepted and inspection.proposed_masks and has_all_masks:
        source = inspection.mask_source or str(masks_folder(inspection.folder.path))
        draft = _with_masks(draft, inspection, source)
    is_complete = paths == {each.path for each in found.captions if each.lies_beside}
    if "captions" in accepted and is_complete and any(each.is_free for each in found.captions):
        draft["data.captions"] = drafts.CAPTIONS
    return replace(found, draft=draft)


def _crop_reason(inspection: Inspection) -> str:
    """Return why to cut around the subject; empty where the middle does as well."""
    num_cut = sum(is_cut_by_middle(photo, inspection.needs) for photo in inspection.readable)
    num_small = sum(one.kind == "far away" for each in inspection.photos for one in each.findings)
    parts = [f"the middle would cut the subject in {num_cut} photo{'s' * (num_cut != 1)}"] * bool(num_cut)
    parts += [f"it is small in {num_small}"] * bool(num_small)
    return ", ".join(parts)


def is_cut_by_middle(photo: Photo, needs: Needs) -> bool:
    """Return whether data.crop=center would cut a part of the subject away."""
    if photo.box is None:
        return False
    width, height = photo.size
    left, top, right, bottom = photo.box
    window = centered(photo.size, nearest_bucket(photo.size, needs.buckets)).window
    room = 1.0  # pixel, by which a reduced mask may be off
    return (
        left * width < window.left - room
        or top * height < window.top - room
        or right * width > window.left + window.width + room
        or bottom * height > window.top + window.height + room
    )
