"""`describe --teach FOLDER`: teach a BLIP-2 one subject, beside others of its class."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.cli import loading_libraries, text_options
from dreambooth.cli.image_paths import image_paths
from dreambooth.errors import UserError, escaped
from dreambooth.files import atomic_file, check_utf8
from dreambooth.readers.lesson_folder import check_lesson, digests, write_lesson
from dreambooth.readers.usual import DESCRIBE, DRAW
from dreambooth.status_line import STATUS_LINE, ProgressDisplay

if TYPE_CHECKING:
    from dreambooth.generation.images import Progress
    from dreambooth.generation.request import GeneratedImage

NUM_STEPS = 300
NUM_OTHERS = 40  # that a base draws
BATCH_SIZE = 4  # that it draws at once
OTHERS = "others"  # the folder of them, in the result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("teach a BLIP-2 a subject; the same command again goes on")
    group.add_argument("--teach", metavar="DIR", type=Path, help="photos of the subject, in the place of IMAGES")
    group.add_argument("--name", metavar="T", default="", help="what to call it")
    group.add_argument(
        "--class-noun", metavar="T", help="what the model calls it now, such as dog (default: what it answers)"
    )
    group.add_argument(
        "--others",
        metavar="DIR",
        type=Path,
        help=f"others of its class, best in places like the photos' (default: {NUM_OTHERS} that --base draws)",
    )
    group.add_argument(
        "--base",
        metavar="MODEL",
        help=f"what draws the others, as --model of sample (default for the toy world: {DRAW.embedded})",
    )
    group.add_argument("--steps", type=int, metavar="N", help=f"optimizer steps (default {NUM_STEPS})")


def run(args: argparse.Namespace) -> int:
    from dreambooth.disk import check_writable, translate_write_errors

    check_options(args)
    folder, photos = Path(args.out), tuple(image_paths([args.teach]))
    others = () if args.others is None else tuple(image_paths([args.others]))
    if both := set(digests(photos)) & set(digests(others)):
        raise UserError(f"--others {escaped(args.others)}: {len(both)} of its images are photos of the subject")
    check_writable(folder, "--out")
    with loading_libraries():
        from dreambooth.data.image_files import load_image
        from dreambooth.devices import find_device
        from dreambooth.readers.loading import ReaderSource
        from dreambooth.readers.teach import Lesson, class_prompts, load_pupil, said_class, teach

    images = [load_image(path) for path in photos]
    base = args.base or DRAW.model_for(images[0].size)
    if not (others or base):
        raise UserError("--others: name images of others of its class, or with --base a model that draws them")
    model = args.model or DESCRIBE.model_for(images[0].size)
    given = {"--name": args.name, "--class-noun": args.class_noun, "--model": model, "--teach": digests(photos)}
    told = {**given, **({"--others": digests(others)} if others else {"--base": base})}
    check_lesson(folder, told)
    reader = load_pupil(ReaderSource(model, find_device(args.device).type, args.dtype or "float32", args.quantize))
    class_noun = args.class_noun or said_class(reader, images)
    with translate_write_errors(folder, "--out"):
        drawn = tuple(folder / OTHERS / f"{number:02d}.png" for number in range(NUM_OTHERS))
        is_drawn = bool(others) or all(path.is_file() for path in drawn)
        new = [] if is_drawn else draw(base, class_prompts(reader, images, class_noun), args.device)
        write_lesson(folder, told)
        if new:
            write_images(new, drawn)
        others = others or drawn
        print(teach(reader, Lesson(args.name, class_noun, photos, others, args.steps or NUM_STEPS), folder))
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that cannot be met. The name's blanks are made single."""
    args.name = " ".join(args.name.split())
    if args.images or args.question or args.search or args.ground or args.attention:
        raise UserError("--teach: reads no IMAGES and answers nothing; ask the taught reader then, with --model")
    if stray := text_options.given(args, ("caption", "language", "search_model", "batch_size")):
        raise UserError(f"{', '.join(stray)}: not together with --teach, which describes nothing; leave it out")
    if not args.name:
        raise UserError("--teach: needs --name, what to call the subject")
    if not args.out:
        raise UserError("--teach: needs --out, a new folder for the taught reader")
    if args.class_noun is not None and not args.class_noun.strip():
        raise UserError("--class-noun: the text is empty; leave it out, or say what the subject is")
    if args.others is not None and args.base is not None:
        raise UserError("--base: not together with --others; name the one that is to count")
    if args.steps is not None and args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    check_utf8(args.name, args.out, args.class_noun)


def draw(base: str, prompts: Sequence[str], device: str) -> "list[GeneratedImage]":
    """Return images of others of the class, drawn by a base. Raises ModelError for one that is not there."""
    from dreambooth.generation.images import generate, make_requests
    from dreambooth.generation.models.loading import load_model
    from dreambooth.generation.models.reference import ModelRef
    from dreambooth.generation.options import ImageOptions
    from dreambooth.generation.prompting.wildcards import FOLDER, Wildcards

    model = load_model(ModelRef(base), device)
    wanted = [ImageOptions(prompts[seed % len(prompts)], num_images=1, seed=seed) for seed in range(NUM_OTHERS)]
    requests = make_requests(model, wanted, Wildcards((Path(FOLDER),)))
    display = ProgressDisplay("drawing others of its class", partial(print, file=sys.stderr, flush=True))

    def show(progress: "Progress") -> None:
        if display.is_due(progress.fraction):
            count = f"image {progress.images + 1}/{progress.num_images}"
            display.show(progress.fraction, [count, display.time_left(progress.fraction)])

    try:
        return list(generate(model, requests, BATCH_SIZE, show))
    finally:
        STATUS_LINE.clear()


def write_images(images: "Sequence[GeneratedImage]", paths: Sequence[Path]) -> None:
    """Write images with their recipes."""
    for image, path in zip(images, paths, strict=True):
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path) as file:
            image.save(file, "PNG")
