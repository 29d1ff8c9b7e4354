"""`describe IMAGES`: captions, answers to questions, boxes of what captions name, and images ranked by a text."""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.cli import loading_libraries, teaching, text_options
from dreambooth.cli.image_paths import image_paths
from dreambooth.devices import AUTO, NAMES
from dreambooth.errors import UserError, escaped
from dreambooth.readers.usual import DESCRIBE, GROUND, SEARCH
from dreambooth.status_line import STATUS_LINE, ProgressDisplay

if TYPE_CHECKING:
    from dreambooth.readers.describe import Description
    from dreambooth.readers.request import DescribeRequest

BATCH_SIZE = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", nargs="*", type=Path, help="image files, or folders of images")
    _add_what(parser)
    _add_model(parser)
    text_options.add_arguments(parser)
    teaching.add_arguments(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where the lines, the table and the page go, in the place of those there are (default "
        "outputs/describe-<name>, or with -2, -3 ... at its end where that is there)",
    )


def _add_what(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is asked for (default: a caption)")
    group.add_argument(
        "--question", metavar="Q", action="append", default=[], help='ask this (repeatable): "what colour is the dog?"'
    )
    group.add_argument("--caption", action="store_true", help="a caption too, beside --question or --search")
    group.add_argument(
        "--ground", action="store_true", help="a caption with the boxes of what it names, drawn and as numbers"
    )
    group.add_argument(
        "--attention",
        action="store_true",
        help="a caption, and which part of the image each word was written from, as overlays (BLIP-2 and Kosmos-2)",
    )
    group.add_argument("--search", metavar="TEXT", help="rank the images by how well they fit this text")
    group.add_argument(
        "--language",
        metavar="TAG",
        help="of the captions: de, fr, es ... (default English), as far as the model has it",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--model",
        metavar="NAME",
        help="hub id or folder of a BLIP-2, a Kosmos-2 or any image-text-to-text model of transformers (default "
        f"{DESCRIBE.published}; with --ground {GROUND.published}; for images of the toy world the embedded ones)",
    )
    group.add_argument(
        "--search-model",
        metavar="NAME",
        help=f"a BLIP-2, CLIP or SigLIP for --search (default {SEARCH.published}; for the toy world the embedded one)",
    )
    group.add_argument("--device", choices=NAMES, default=AUTO, help="default: the first of these that there is")
    group.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="arithmetic (default float16 on a GPU, else float32)",
    )
    group.add_argument(
        "--quantize", choices=("int8", "nf4"), help="hold the weights in 8 or 4 bits, by bitsandbytes (default: no)"
    )
    group.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        metavar="N",
        help=f"images at a time (default {BATCH_SIZE}); halved where the GPU's memory ends",
    )


def run(args: argparse.Namespace) -> int:
    if args.teach is not None:
        return teaching.run(args)
    if args.name or args.others or args.base or args.class_noun or args.steps is not None:
        raise UserError(
            "--name, --class-noun, --others, --base, --steps: say what is taught; name the photos with --teach"
        )
    from dreambooth.disk import check_writable

    if not args.images:
        raise UserError("IMAGES: name image files or folders, or photos to learn from with --teach")
    request = request_of(args)
    paths = image_paths(args.images)
    check_writable(Path(args.out or "outputs"), "--out")
    with loading_libraries():
        from dreambooth.readers.outputs import check_folder

    if args.out:
        check_folder(Path(args.out), "--out")
    found: list[Description] = []
    try:
        _read(args, request, paths, found)
    finally:  # after Ctrl-C too, so that what was read by then is not lost
        STATUS_LINE.clear()
        if found:
            _write(args, found, len(paths))
    return 0


def _read(args: argparse.Namespace, request: "DescribeRequest", paths: list[Path], found: "list[Description]") -> None:
    """Add what is read in the images to `found`, batch by batch, and show how far that is."""
    batches = _describe(args, request, paths)
    display = ProgressDisplay("describing", partial(print, file=sys.stderr, flush=True))
    for batch in batches:
        found += batch
        fraction = len(found) / len(paths)
        if display.is_due(fraction):
            display.show(fraction, [f"image {len(found)}/{len(paths)}", display.time_left(fraction)])


def _write(args: argparse.Namespace, found: "list[Description]", num_images: int) -> None:
    """Print what was read, and write it. num_images: that were to be read."""
    from dreambooth.disk import translate_write_errors
    from dreambooth.readers.describe import ranked
    from dreambooth.readers.outputs import take_folder, write_all

    found = ranked(found)
    for each in found:
        print(in_words(each))
    title = f"{num_images} images" if len(found) == num_images else f"{len(found)} of {num_images} images"
    usual = Path("outputs") / f"describe-{args.images[0].resolve().stem}"
    with translate_write_errors(Path(args.out or usual), "--out"):
        folder = Path(args.out) if args.out else take_folder(usual)
        for path in write_all(folder, found, title):
            print(path)


def _describe(args: argparse.Namespace, request: "DescribeRequest", paths: list[Path]) -> "Iterator[list[Description]]":
    """Load what is needed, and return what reads the images."""
    from dreambooth.data.image_files import load_image
    from dreambooth.devices import find_device
    from dreambooth.readers.describe import describe
    from dreambooth.readers.loading import ReaderSource
    from dreambooth.readers.table import load_reader, load_searcher

    device = find_device(args.device).type
    size = load_image(paths[0]).size
    name = args.model or (GROUND if request.ground else DESCRIBE).model_for(size)
    search_name = args.search_model or SEARCH.model_for(size)
    reader = load_reader(ReaderSource(name, device, args.dtype, args.quantize)) if request.is_read else None
    searcher = load_searcher(ReaderSource(search_name, device, args.dtype, args.quantize)) if request.search else None
    return describe(paths, request, reader, searcher, args.batch_size)


def request_of(args: argparse.Namespace) -> "DescribeRequest":
    """Return what is asked for, by the options. Raises UserError for a value out of its range."""
    from dreambooth.readers.request import DescribeRequest

    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    if not all(question.strip() for question in args.question):
        raise UserError("--question: the text is empty; write what to ask")
    if args.search is not None and not args.search.strip():
        raise UserError("--search: the text is empty; write what to look for")
    if args.attention and args.ground:
        raise UserError("--attention: not together with --ground; ask for one, then for the other")
    only_other = bool(args.question or args.search)
    request = DescribeRequest(
        questions=tuple(dict.fromkeys(args.question)),
        captions=args.caption or not only_other,
        ground=args.ground,
        attention=args.attention,
        language=args.language,
        search=args.search or "",
        options=text_options.text_options(args),
    )
    _check_effects(args, request)
    return request


def _check_effects(args: argparse.Namespace, request: "DescribeRequest") -> None:
    """Raise UserError for options that nothing that is asked for would use."""
    if args.search_model and not request.search:
        raise UserError(f"--search-model {escaped(args.search_model)}: ranks images by --search, which is not there")
    if not request.is_read and (stray := text_options.given(args, ("model", "language"))):
        raise UserError(
            f"{', '.join(stray)}: of what is written, and --search writes nothing; add --caption or leave it out"
            + ("; --search-model names what searches" if args.model else "")
        )
    if args.language and not request.has_captions:
        raise UserError(f"--language {escaped(args.language)}: of captions, and none is asked for; add --caption")


def in_words(found: "Description") -> str:
    """Return what was read in an image as lines of text."""
    likeness = "" if found.likeness is None else f"{found.likeness:.3f}  "
    lines = [f"{likeness}{escaped(found.path)}" + ("" if found.caption is None else f": {found.caption}")]
    lines += [f"  {question} {answer}" for question, answer in found.answers.items()]
    lines += [f"  {box.phrase}: {', '.join(map(str, box.pixels(found.size)))}" for box in found.boxes or ()]
    return "\n".join(lines)
