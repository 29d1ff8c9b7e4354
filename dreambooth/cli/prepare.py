"""`prepare FOLDER`: what is wrong with a subject's photos, and captions, crops, a word and settings to train with."""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.cli import loading_libraries
from dreambooth.cli.check import row
from dreambooth.cli.new import BASE, costs_in_words
from dreambooth.disk import GIB
from dreambooth.errors import UserError, escaped
from dreambooth.hints import command_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth.preflight.costs import Costs
    from dreambooth.prepare.captions import Caption, Captioner
    from dreambooth.prepare.inspection import PhotoReaders
    from dreambooth.prepare.preparation import Preparation

ACCEPTED = ("config", "captions", "masks")
NUM_DRAWN = 4  # words that are drawn
TEXT_NOT_READ = "not looked for, mirrored or not: it needs the extra ocr; pip install dreambooth[ocr]"


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
        "masks (<FOLDER>-masks, where a model has found them, else masks/ there); no file is written over",
    )  # fmt: skip
    parser.add_argument(
        "--draw-words", action="store_true", help=f"rank the first {NUM_DRAWN} words by what the base draws of them"
    )


def run(args: argparse.Namespace) -> int:
    check_options(args)
    out = Path(args.out or ".")
    with loading_libraries():
        from dreambooth.prepare.preparation import Request, prepare, with_accepted

    edited = None if args.captions is None else Path(args.captions)
    config = out / "config.yaml"
    request = Request(Path(args.photos), args.base, args.class_noun, args.identifier, args.masks, config, edited)
    found = prepare(request, *readers_of(args))
    if args.draw_words and found.draft:
        found = with_drawn_words(found)
    found, costs = with_costs(found, None if args.memory is None else int(args.memory * GIB))
    found = with_accepted(found, args.accept)
    rows = [*finding_rows(found), *caption_rows(found.captions), *word_rows(found), *setting_rows(found, costs)]
    print("\n".join(rows))
    if args.out is not None:
        print("\n".join(write(found, out, args.accept)))
    return UserError.exit_code if found.inspection.num["error"] else 0


def readers_of(args: argparse.Namespace) -> "tuple[PhotoReaders, Captioner | None]":
    """Return what looks at photos, and what captions them, where a model is named for it. Raises ModelError."""
    from dreambooth.prepare.inspection import ClassJudge, MaskFinder, PhotoReaders
    from dreambooth.readers.lettering import TextReader, is_available

    find_mask: MaskFinder | None = None
    describe: Captioner | None = None
    sees: ClassJudge | None = None
    if args.mask_model is not None:
        from dreambooth.readers.one_photo import SubjectFinder

        find_mask = SubjectFinder(args.mask_model)
    if args.caption_model is not None:
        from dreambooth.readers.one_photo import PhotoDescriber

        describe = PhotoDescriber(args.caption_model)
        sees = describe.sees
    return PhotoReaders(find_mask, TextReader() if is_available() else None, sees), describe


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that cannot be met, before anything is looked at."""
    if args.masks is not None and args.masks != "alpha" and not Path(args.masks).is_dir():
        raise UserError(f"--masks {escaped(args.masks)}: there is no such folder; name one, or alpha")
    if args.captions is not None and not Path(args.captions).is_file():
        raise UserError(f"--captions {escaped(args.captions)}: there is no such file; save one on the page")
    if args.captions is not None and args.caption_model is not None:
        raise UserError("--captions: not together with --caption-model; name the one that is to count")
    if args.memory is not None and not args.memory > 0:
        raise UserError(f"--memory: {args.memory} is too small; write GiB, e.g. 8")
    if args.accept and args.out is None:
        raise UserError("--accept: says what to write into the folder --out; name one")
    if args.draw_words and not args.class_noun:
        raise UserError("--draw-words: draws them beside the class; name it with --class")
    if "config" in args.accept:
        if not args.class_noun:
            raise UserError("--accept config: settings need the class; name it with --class")
        if Path(args.out, "config.yaml").exists():
            raise UserError(f"{escaped(Path(args.out, 'config.yaml'))}: is there already; name another --out")


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


def with_drawn_words(found: "Preparation") -> "Preparation":
    """Return the preparation with the first words ranked by what the base draws of them, and the best one taken.

    Raises ModelError where the base is not there, UserError without an encoder to compare images with.
    """
    from dreambooth import build
    from dreambooth.generation.images import generate, make_requests
    from dreambooth.generation.models.loading import load_model
    from dreambooth.generation.models.reference import ModelRef
    from dreambooth.generation.options import ImageOptions
    from dreambooth.generation.prompting.wildcards import FOLDER, Wildcards
    from dreambooth.metrics.validation_log import ValidationLog
    from dreambooth.prepare.tokens import draw_tokens
    from dreambooth.proposal.draft import parsed

    config = parsed(found.draft, found.request.out)
    encoders = build.find_encoders(config, ValidationLog(found.request.out.with_name("no-scores.jsonl")))
    if encoders is None:
        raise UserError("--draw-words: no DINO or CLIP is here to compare images with; leave it out")
    model, sampling = load_model(ModelRef(found.request.base), "auto"), config.validate

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
    counted = ", ".join(f"{num} {name}{'s' * (num != 1)}" for name, num in found.num.items() if num)
    sizes = f"{inspection.needs.resolution} x {inspection.needs.resolution} pixels"
    photos = f"{len(inspection.photos)} photo{'s' * (len(inspection.photos) != 1)}"
    lines = [f"{escaped(inspection.folder.path)}: {photos}, to train at {sizes}; {counted or 'nothing is wrong'}"]
    for each in inspection.photos:
        lines += [row(one.severity, escaped(each.path.name), f"{one.text}; {one.advice}") for one in each.findings]
    lines += [row(one.severity, "all photos", f"{one.text}; {one.advice}") for one in inspection.findings]
    return lines if inspection.has_read_text else [*lines, row("note", "text", TEXT_NOT_READ)]


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
    from dreambooth.prepare import writing
    from dreambooth.proposal.draft import render, write_once

    if "captions" in accepted:
        yield from (f"{escaped(path)}: caption" for path in writing.write_captions(found.captions, out))
    if "masks" in accepted:
        yield from (f"{escaped(path)}: mask" for path in writing.write_masks(found.inspection))
    else:
        proposed = writing.write_proposed_masks(found.inspection, out)
        yield from (f"{escaped(path)}: proposed mask" for path in proposed)
    if "config" in accepted:
        write_once(found.request.out, render(found.draft, "prepare"))
        yield f"{escaped(found.request.out)}: config; train: {command_line('train', str(found.request.out))}"
    yield f"{escaped(writing.write_page(found, out))}: the page"
