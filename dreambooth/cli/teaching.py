"""`describe --teach FOLDER`: teach a BLIP-2 one subject, beside others of its class."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.cli import loading_libraries
from dreambooth.cli.image_paths import image_paths
from dreambooth.errors import UserError
from dreambooth.files import atomic_file
from dreambooth.readers.usual import DESCRIBE, DRAW
from dreambooth.status_line import STATUS_LINE, ProgressDisplay

if TYPE_CHECKING:
    from dreambooth.generation.images import Progress

NUM_OTHERS = 40  # that a base draws
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
    group.add_argument("--steps", type=int, default=300, metavar="N", help="optimizer steps (default 300)")


def run(args: argparse.Namespace) -> int:
    from dreambooth.disk import check_writable, translate_write_errors

    if args.images or args.out is None or not args.name.strip():
        raise UserError("--teach: needs --name and --out DIR, and no IMAGES")
    if args.others is not None and args.base is not None:
        raise UserError("--base: not together with --others; name the one that is to count")
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    photos = tuple(image_paths([args.teach]))
    others = () if args.others is None else tuple(image_paths([args.others]))
    folder = Path(args.out)
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
    name = args.model or DESCRIBE.model_for(images[0].size)
    reader = load_pupil(ReaderSource(name, find_device(args.device).type, args.dtype or "float32", args.quantize))
    class_noun = args.class_noun or said_class(reader, images)
    with translate_write_errors(folder, "--out"):
        if not others:
            others = draw(base, class_prompts(reader, images, class_noun), folder / OTHERS, args.device)
        print(teach(reader, Lesson(args.name, class_noun, photos, others, args.steps), folder))
    return 0


def draw(base: str, prompts: Sequence[str], folder: Path, device: str) -> tuple[Path, ...]:
    """Draw others of the class by a base, unless an earlier call did, and return their files."""
    paths = tuple(folder / f"{number:02d}.png" for number in range(NUM_OTHERS))
    if all(path.is_file() for path in paths):
        return paths
    from dreambooth.api import load

    display = ProgressDisplay("drawing others of its class", partial(print, file=sys.stderr, flush=True))

    def show(progress: "Progress") -> None:
        if display.is_due(progress.fraction):
            count = f"image {progress.images + 1}/{progress.num_images}"
            display.show(progress.fraction, [count, display.time_left(progress.fraction)])

    wanted = [{"prompt": prompts[seed % len(prompts)], "seed": seed} for seed in range(NUM_OTHERS)]
    try:
        drawn = load(base, device).generate(wanted, num_images=1, on_progress=show)
    finally:
        STATUS_LINE.clear()
    folder.mkdir(parents=True, exist_ok=True)
    for image, path in zip(drawn, paths, strict=True):
        with atomic_file(path) as file:
            image.save(file, "PNG")
    return paths
