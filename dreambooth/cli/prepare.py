"""`prepare FOLDER`: what is wrong with a subject's photos, and captions, crops, a word and settings to train with."""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dreambooth.cli import loading_libraries
from dreambooth.cli.check import row
from dreambooth.cli.new import BASE, costs_in_words, memory_bytes
from dreambooth.disk import check_writable
from dreambooth.errors import ModelError, UserError, escaped
from dreambooth.files import check_utf8
from dreambooth.hints import command_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth.metrics.subject import Encoders
    from dreambooth.preflight.costs import Costs
    from dreambooth.prepare.captions import Caption, Captioner
    from dreambooth.prepare.findings import Severity
    from dreambooth.prepare.inspection import PhotoReaders
    from dreambooth.prepare.preparation import Preparation, Request

ACCEPTED = ("config", "captions", "masks")
NUM_DRAWN = 4  # words that are drawn
TEXT_NOT_READ = "not looked for, mirrored or not: it needs the extra ocr; pip install 'dreambooth[ocr]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", metavar="FOLDER", help="folder with 3 to 10 photos of the subject")
    parser.add_argument(
        "--class", dest="class_noun", metavar="NOUN", default="",
        help="what kind of thing it is: dog, backpack ...; without it no settings are proposed",
    )  # fmt: skip
    parser.add_argument(
        "--base", metavar="MODEL", default=BASE, help=f"hub id, folder or single .safetensors (default {BASE})"
    )
    parser.add_argument(
        "--identifier", metavar="WORD", help="rare word that will mean the subject (default: the best one)"
    )
    parser.add_argument(
        "--masks",
        metavar="FOLDER",
        help="masks of the photos, of the same names, white where the subject is; or alpha: what is not transparent "
        "(default: <FOLDER>-masks, or alpha, where they are there)",
    )
    parser.add_argument(
        "--mask-model",
        metavar="MODEL",
        help="find the subject where there are no masks: hub id or folder of a CLIPSeg, SegFormer, SAM, SAM 2 or SAM 3",
    )
    parser.add_argument(
        "--caption-model",
        metavar="MODEL",
        help="caption photos where there are no captions, and ask whether the class is there: hub id or folder of a "
        "BLIP-2, a Kosmos-2 or another image-text-to-text model",
    )
    parser.add_argument(
        "--captions", metavar="FILE",
        help="captions that you edited on the page and saved (metadata.jsonl), in the place of those there are",
    )  # fmt: skip
    parser.add_argument("--memory", type=float, metavar="GIB", help="what there is (default: what this device has)")
    parser.add_argument("--out", metavar="FOLDER", help="write prepare.html there; without it nothing is written")
    parser.add_argument(
        "--accept", nargs="+", choices=ACCEPTED, default=[], metavar="WHAT",
        help="with --out, also write: config (config.yaml there), captions (beside photos that have none, else there), "
        "masks (that a model has found: to those of the other photos, else <FOLDER>-masks); no file is written over",
    )  # fmt: skip
    parser.add_argument(
        "--draw-words", action="store_true", help=f"rank the first {NUM_DRAWN} words by what the base draws of them"
    )


def run(args: argparse.Namespace) -> int:
    memory = memory_bytes(args.memory)
    check_options(args)
    out = Path(args.out or ".")
    with loading_libraries():
        from dreambooth.prepare.preparation import Request, with_accepted

    edited = None if args.captions is None else Path(args.captions)
    config = out / "config.yaml"
    photos, model = Path(args.photos), args.mask_model
    request = Request(photos, args.base, args.class_noun, args.identifier, args.masks, config, edited, model)
    check_utf8(*request.names)
    encoders = encoders_for_words(request) if args.draw_words else None
    warnings = identifier_problems(request)
    readers, describe, notes = readers_of(request, args.caption_model)
    found = look_at(request, readers, describe)
    found = dataclasses.replace(found, notes=[*found.notes, *warnings])
    if encoders is not None and found.draft:
        found = with_drawn_words(found, encoders)
    found, costs = with_costs(found, memory)
    found = with_accepted(found, args.accept)
    rows = [*finding_rows(found), *(row("note", about, note) for about, note in notes)]
    rows += [*caption_rows(found.captions), *word_rows(found), *setting_rows(found, costs)]
    print("\n".join(rows))
    if args.out is not None:
        print("\n".join(write(found, out, args.accept)))
    return UserError.exit_code if found.inspection.num["error"] else 0


def identifier_problems(request: "Request") -> list[str]:
    """Return what `check` warns of the word that the user named. Raises UserError for one that has no token."""
    from dreambooth.build.prompts import identifier_warnings
    from dreambooth.families import Family
    from dreambooth.prepare.tokens import load_text_sides
    from dreambooth.proposal.facts import base_facts

    if not request.identifier:
        return []
    try:
        side = load_text_sides(request.base, base_facts(request.base).family)[0]
    except ModelError:
        return []  # which a note on words says
    family = cast(Family, side)  # of which only the tokenizer is asked
    return [*identifier_warnings(family, "--identifier", request.identifier)]


def look_at(request: "Request", readers: "PhotoReaders", describe: "Captioner | None") -> "Preparation":
    """Return what is found out about the photos. Raises UserError; what a mask model does not know is of --class."""
    from dreambooth.prepare.preparation import prepare

    try:
        return prepare(request, readers, describe)
    except UserError as error:
        if not str(error).startswith("mask="):
            raise
        raise UserError(f"--class {str(error).removeprefix('mask=')}") from error


def readers_of(
    request: "Request", caption_model: str | None
) -> "tuple[PhotoReaders, Captioner | None, list[tuple[str, str]]]":
    """Return what looks at photos, and what captions them, where a model is named for it, and what is not asked.

    A model that nothing is left for is not loaded. Raises ModelError, UserError.
    """
    from dreambooth.data.image_folder import sort_files
    from dreambooth.data.masks import find_masks
    from dreambooth.prepare.inspection import ClassJudge, MaskFinder, PhotoReaders, lacks_mask
    from dreambooth.prepare.preparation import lacking_captions
    from dreambooth.readers.lettering import TextReader, is_available

    find_mask: MaskFinder | None = None
    describe: Captioner | None = None
    sees: ClassJudge | None = None
    notes = []
    folder = sort_files(request.photos)
    source = request.masks or find_masks(folder.path, folder.images)
    if request.mask_model is not None:
        if any(lacks_mask(path, source) for path in folder.images):
            from dreambooth.readers.one_photo import SubjectFinder

            find_mask = SubjectFinder(request.mask_model)
        else:
            reason = "transparency is the photos' mask" if source == "alpha" else f"{source} has a mask of each photo"
            notes.append(("masks", f"--mask-model: not asked: {escaped(reason)}"))
    if caption_model is not None:
        has_all = not lacking_captions(folder)
        if has_all:
            rest = ", only whether the class is there" if request.class_noun else ""
            notes.append(("captions", f"--caption-model: not asked for captions{rest}: each photo has one"))
        if request.class_noun or not has_all:
            from dreambooth.readers.one_photo import PhotoDescriber

            describer = PhotoDescriber(caption_model)
            describe, sees = None if has_all else describer, describer.sees
    return PhotoReaders(find_mask, TextReader() if is_available() else None, sees), describe, notes


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that cannot be met, before anything is looked at."""
    if args.masks is not None and args.masks != "alpha" and not Path(args.masks).is_dir():
        raise UserError(f"--masks {escaped(args.masks)}: there is no such folder; name one, or alpha")
    if args.captions is not None and not Path(args.captions).is_file():
        raise UserError(f"--captions {escaped(args.captions)}: there is no such file; save one on the page")
    if args.captions is not None and args.caption_model is not None:
        raise UserError("--captions: not together with --caption-model; name the one that is to count")
    if args.accept and args.out is None:
        raise UserError("--accept: says what to write into the folder --out; name one")
    if args.draw_words and not args.class_noun:
        raise UserError("--draw-words: draws them beside the class; name it with --class")
    if args.out is not None:
        check_out(Path(args.out), Path(args.photos))
    if "config" in args.accept:
        if not args.class_noun:
            raise UserError("--accept config: settings need the class; name it with --class")
        if Path(args.out, "config.yaml").exists():
            raise UserError(f"{escaped(Path(args.out, 'config.yaml'))}: is there already; name another --out")


def check_out(out: Path, photos: Path) -> None:
    """Raise UserError for a folder that cannot be written to, or that training reads photos or masks from."""
    from dreambooth.data.masks import masks_folder

    own = out.resolve()
    for folder, what in ((photos, "photos"), (masks_folder(photos), "masks")):
        if folder.resolve() in (own, *own.parents):
            raise UserError(f"--out {escaped(out)}: training reads {what} there and nothing else; name another folder")
    check_writable(out, "--out")


def with_costs(found: "Preparation", memory: int | None) -> "tuple[Preparation, Costs | None]":
    """Return the preparation with settings that fit into the memory, and what training takes.

    Where photos are to be mended first the settings stay as the rules have them.
    """
    from dreambooth.preflight.new_config import complete
    from dreambooth.proposal.draft import Request

    if not found.draft or found.inspection.num["error"]:
        return found, None
    draft, own = dict(found.draft), found.request
    request = Request(own.photos, own.class_noun, own.base, found.identifier, own.out, memory)
    _, warnings, costs = complete(draft, request)
    return dataclasses.replace(found, draft=draft, warnings=warnings), costs


def encoders_for_words(request: "Request") -> "Encoders":
    """Return what compares the images that the base draws of words. Raises UserError where there is nothing."""
    from dreambooth import build
    from dreambooth.metrics.validation_log import ValidationLog
    from dreambooth.proposal.draft import encoder_settings, parsed
    from dreambooth.proposal.rules import Draft

    draft: Draft = {
        "run.name": ("words", ""),
        "model.base": (request.base, ""),
        "subject.images": (str(request.photos), ""),
        "subject.class_noun": (request.class_noun, ""),
        **encoder_settings(request.base),
    }
    config = parsed(draft, request.out)
    encoders = build.find_encoders(config, ValidationLog(request.out.with_name("no-scores.jsonl")))
    if encoders is None:
        raise UserError("--draw-words: no DINO or CLIP is here to compare images with; leave it out")
    return encoders


def with_drawn_words(found: "Preparation", encoders: "Encoders") -> "Preparation":
    """Return the preparation with the first words ranked by what the base draws of them, and the best one taken.

    Raises ModelError where the base is not there.
    """
    from dreambooth.generation.images import generate, make_requests
    from dreambooth.generation.models.loading import load_model
    from dreambooth.generation.models.reference import ModelRef
    from dreambooth.generation.options import ImageOptions
    from dreambooth.generation.prompting.wildcards import FOLDER, Wildcards
    from dreambooth.prepare.tokens import draw_tokens
    from dreambooth.proposal.draft import parsed

    sampling = parsed(found.draft, found.request.out).validate
    model = load_model(ModelRef(found.request.base), "auto")

    def draw(prompt: str, num_images: int) -> list["Image"]:
        how = sampling.num_inference_steps, sampling.guidance_scale, sampling.scheduler
        requests = make_requests(model, [ImageOptions(prompt, num_images, 0, "", *how)], Wildcards([Path(FOLDER)]))
        return [*generate(model, requests, num_images)]

    tokens = draw_tokens(found.tokens[:NUM_DRAWN], found.request.class_noun, draw, encoders.main.images)
    draft = dict(found.draft)
    if found.request.identifier is None and tokens:
        draft["subject.identifier"] = (tokens[0].word, "what the base draws of it means least, of the words drawn")
    return dataclasses.replace(found, tokens=tokens, draft=draft)


def finding_rows(found: "Preparation") -> list[str]:
    """Return the findings on photos as lines, after a line that counts them and those on captions."""
    inspection = found.inspection
    counted = in_words(inspection.num)
    if in_captions := in_words({name: num - inspection.num[name] for name, num in found.num.items()}):
        counted = f"{counted or 'nothing is wrong with them'}; captions: {in_captions}"
    sizes = f"{inspection.needs.resolution} x {inspection.needs.resolution} pixels"
    photos = f"{len(inspection.photos)} photo{'s' * (len(inspection.photos) != 1)}"
    lines = [f"{escaped(inspection.folder.path)}: {photos}, to train at {sizes}; {counted or 'nothing is wrong'}"]
    for each in inspection.photos:
        lines += [row(one.severity, escaped(each.path.name), f"{one.text}; {one.advice}") for one in each.findings]
    lines += [row(one.severity, "all photos", f"{one.text}; {one.advice}") for one in inspection.findings]
    return lines if inspection.has_read_text else [*lines, row("note", "text", TEXT_NOT_READ)]


def in_words(num: "Mapping[Severity, int]") -> str:
    """Return how many findings there are: "1 error, 2 warnings"; empty for none."""
    return ", ".join(f"{number} {name}{'s' * (number != 1)}" for name, number in num.items() if number)


def caption_rows(captions: Sequence["Caption"]) -> Iterator[str]:
    """Yield what is wrong with captions, and what to write instead."""
    for caption in captions:
        name = escaped(caption.path.name)
        yield from (row(one.severity, name, f"caption: {one.text}; {one.advice}") for one in caption.findings)
        if caption.proposed is not None:
            yield row("", name, f"proposed: {caption.proposed}")


def word_rows(found: "Preparation") -> Iterator[str]:
    """Yield the words that can stand for the subject."""
    yield from (row("note", "words", note) for note in found.notes)
    if found.tokens:
        yield row("", "words", f"rare, one token each, the best first: {', '.join(each.word for each in found.tokens)}")


def setting_rows(found: "Preparation", costs: "Costs | None") -> Iterator[str]:
    """Yield the config as lines, after what is to be known of it."""
    from dreambooth.proposal.draft import render

    if not found.draft:
        if not found.request.class_noun:
            yield row("note", "settings", "name the class with --class to have them proposed")
        return
    yield from (row("warning", "settings", warning) for warning in found.warnings)
    yield ""
    yield render(found.draft, "prepare").rstrip()
    if costs is not None:
        yield f"# {costs_in_words(costs)}"


def write(found: "Preparation", out: Path, accepted: Sequence[str]) -> Iterator[str]:
    """Write the page and what is accepted, and yield where each lies."""
    from dreambooth.prepare.writing import planned_files, write_files

    files = planned_files(found, out, accepted)
    write_files(files)
    for file in files:
        train = f"; train: {command_line('train', str(file.path))}" if file.path == found.request.out else ""
        yield f"{escaped(file.path)}: {file.text}{train}"
