"""A preparation as one HTML file in the look of a run's report: nothing fetched, one script, which saves captions."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from PIL import Image, ImageDraw

from dreambooth.data.captions import METADATA
from dreambooth.hints import command_line
from dreambooth.home_folder import hide_home
from dreambooth.prepare.captions import Caption
from dreambooth.prepare.crops import Crops
from dreambooth.prepare.findings import Finding, Photo
from dreambooth.prepare.inspection import InspectedPhoto
from dreambooth.prepare.preparation import Preparation, Request
from dreambooth.proposal.draft import by_section, shown_value
from dreambooth.report import page as run_page

FOLDER = Path(__file__).parent
SCRIPT = "save_captions.js"
CAPTIONS = "captions"  # the folder of captions that photos with one of their own get
BOX_COLOUR, FAULT_COLOUR = (40, 190, 120), (232, 84, 60)  # of the subject, of what is wrong
OUTSIDE = 0.45  # brightness of what a mask leaves out


@dataclass(frozen=True)
class Shown:
    """Hold a photo as the page shows it. marked: with its mask and boxes; None where it cannot be read."""

    name: str
    findings: list[Finding]
    size: str = ""
    marked: Image.Image | None = None
    crops: Crops | None = None
    caption: Caption | None = None


def render(found: Preparation) -> str:
    """Return the page as HTML; the same preparation gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([FOLDER, run_page.FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fitted": run_page.fitted, "data_uri": run_page.data_uri, "leaks": with_leaks}
    environment.filters["sentence"] = sentence
    script = (FOLDER / SCRIPT).read_text(encoding="utf-8")
    page = environment.get_template("prepare.html").render(
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        accept=accepting(found.request),
        captions_folder=found.request.out.parent / CAPTIONS,
        found=found,
        request=found.request,
        inspection=found.inspection,
        photos=[shown(found, each) for each in found.inspection.photos],
        settings=[(key, shown_value(value), reason) for key, (value, reason) in by_section(found.draft).items()],
        small=run_page.SMALL,
    )
    return hide_home(page)


def accepting(request: Request) -> str:
    """Return the command that looks at the captions which the page has saved, and writes them."""
    named = []
    for option, value in (
        ("--class", request.class_noun),
        ("--identifier", request.identifier),
        ("--masks", request.masks),
        ("--mask-model", request.mask_model),
    ):
        named += [option, value] if value else []
    out = ["--captions", METADATA, "--out", str(request.out.parent), "--accept", "captions"]
    return command_line("prepare", str(request.photos), *named, "--base", request.base, *out)


def sentence(text: str, names: Sequence[str] = ()) -> str:
    """Return a text with a capital where it begins with a word, and not with a file's name or a key."""
    first = text.partition(" ")[0].rstrip(",:;")
    is_word = first.replace("-", "").isalpha() and first not in names
    return text[:1].upper() + text[1:] if is_word else text


def shown(found: Preparation, each: InspectedPhoto) -> Shown:
    """Return a photo with what belongs to it."""
    caption = next((caption for caption in found.captions if caption.path == each.path), None)
    findings = [*each.findings, *(caption.findings if caption is not None else [])]
    if each.photo is None:
        return Shown(each.path.name, findings, caption=caption)
    crops = next((crops for crops in found.crops if crops.photo is each.photo), None)
    size = f"{each.photo.size[0]} x {each.photo.size[1]}"
    return Shown(each.path.name, findings, size, marked(each.photo, each.findings), crops, caption)


def marked(photo: Photo, findings: list[Finding]) -> Image.Image:
    """Return a photo with what is not the subject darker, and boxes around the subject and around faults."""
    image = photo.image.copy()
    if photo.mask is not None:
        dark = image.point(lambda level: round(level * OUTSIDE))
        image = Image.composite(image, dark, photo.mask)
    boxes = [(photo.box, BOX_COLOUR)] if photo.box is not None else []
    boxes += [(each.box, FAULT_COLOUR) for each in findings if each.box is not None and each.box != photo.box]
    width = max(1, round(max(image.size) / 160))
    for box, colour in boxes:
        if box is not None:
            left, top, right, bottom = photo.pixels(box)
            ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
    return image


def with_leaks(caption: Caption) -> Markup:
    """Return a caption's text in which the words that leak are marked."""
    parts, end = [], 0
    for start, stop in caption.leaks:
        parts += [escape(caption.text[end:start]), Markup("<mark>{}</mark>").format(caption.text[start:stop])]
        end = stop
    return Markup("").join([*parts, escape(caption.text[end:])])
