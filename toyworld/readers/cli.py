"""`python -m dreambooth toyworld segmenter`: train the models that read images of the toy world, and measure them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toyworld.arguments import check_has, positive

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SEGMENTER = Path("checkpoints/toyworld-segmenter")
SEGMENTER_STEPS = 1200
BLIP2 = Path("checkpoints/toyworld-blip2")
BLIP2_STEPS = (16000, 4500, 1500, 2000, 1500)  # of its image encoder with large and small patches, queries, two stages
KOSMOS2 = Path("checkpoints/toyworld-kosmos2")
KOSMOS2_STEPS = (16000, 500, 3400)  # of its image encoder, its queries and the rest
READERS_WORK = Path("checkpoints/toyworld-readers.work")  # both begin with the image encoder whose state is there
NUM_RENDERINGS = 30_000  # from which what follows the image encoder's lesson draws
BLIP2_CARD, KOSMOS2_CARD = (Path(__file__).with_name(name) for name in ("blip2_card.md", "kosmos2_card.md"))
RETRIEVAL = "retrieval"  # the first stage's model, in the folder of the second's
CLIP = Path("checkpoints/toyworld-encoders/clip")


def add_commands(commands: Any) -> None:
    """Add the commands of the readers to those of `toyworld`."""
    segmenter = commands.add_parser("segmenter", help="train what finds masks, and measure it; run again to resume")
    segmenter.add_argument(
        "--steps", type=positive, default=SEGMENTER_STEPS, help="optimizer steps in all (default: %(default)s)"
    )
    _add_folders(segmenter, SEGMENTER, Path(f"{SEGMENTER}.work"))

    blip2 = commands.add_parser("blip2", help="train what describes and answers, and measure it; run again to resume")
    blip2.add_argument(
        "--steps", type=positive, nargs=5, default=BLIP2_STEPS,
        metavar=("LARGE", "SMALL", "QUERIES", "FIRST", "SECOND"),
        help="optimizer steps of the image encoder with large and with small patches, the queries and the two stages "
        f"(default: {' '.join(map(str, BLIP2_STEPS))})",
    )  # fmt: skip
    blip2.add_argument("--clip", type=Path, default=CLIP, help="whose image encoder it begins with (%(default)s)")
    _add_folders(blip2, BLIP2, READERS_WORK)

    kosmos2 = commands.add_parser("kosmos2", help="train what ties captions to boxes, and measure it; resumable")
    kosmos2.add_argument(
        "--steps", type=positive, nargs=3, default=KOSMOS2_STEPS, metavar=("ENCODER", "QUERIES", "REST"),
        help="optimizer steps of the image encoder, the queries and the rest "
        f"(default: {' '.join(map(str, KOSMOS2_STEPS))})",
    )  # fmt: skip
    kosmos2.add_argument("--clip", type=Path, default=CLIP, help="whose image encoder it begins with (%(default)s)")
    _add_folders(kosmos2, KOSMOS2, READERS_WORK)


def _add_folders(parser: argparse.ArgumentParser, out: Path, work: Path) -> None:
    parser.add_argument("--work", type=Path, default=work, help="states (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=out, help="folder to write (default: %(default)s)")
    parser.add_argument("--measure-only", action="store_true", help="measure the model in the --out folder")


def run_segmenter(args: argparse.Namespace) -> None:
    """Train the segmenter, write it, and print its figures."""
    from toyworld.evaluate import refresh_model_card
    from toyworld.readers import segmenter
    from toyworld.readers.figures import table

    if not args.measure_only:
        segmenter.train(args.steps, args.work)
        segmenter.save(segmenter.trained(args.work), args.out)
    text = table(segmenter.measure(finder(args.out)))
    refresh_model_card(args.out / "README.md", text)
    print(text)


def run_blip2(args: argparse.Namespace) -> None:
    """Train both stages of the BLIP-2, write it and what searches, and print its figures."""
    from dreambooth.readers.blip2 import Blip2Reader
    from dreambooth.readers.loading import ReaderSource
    from toyworld.evaluate import add_model_card, refresh_model_card
    from toyworld.readers import blip2, blip2_metrics, lessons
    from toyworld.readers.batches import renderings, see_once
    from toyworld.readers.figures import table

    if not args.measure_only:
        check_has("--clip", args.clip, "config.json", "model.safetensors")
        clip = lessons.taught_clip(args.clip, args.steps[0], args.work)
        matcher = blip2.Matcher(clip)
        blip2.teach_image_encoder(matcher, args.clip, args.steps[1], args.work, lessons.NUM_RENDERINGS)
        seen = see_once(matcher.look, renderings(NUM_RENDERINGS))
        blip2.teach_queries(matcher, seen, args.steps[2], args.work)
        blip2.train_matcher(matcher, seen, args.steps[3], args.work)
        blip2.save(matcher.model, args.out / RETRIEVAL)
        model = blip2.build_writer_model(matcher, clip)
        blip2.train_writer(model, seen.read_by(matcher.find), args.steps[4], args.work)
        blip2.save(model, args.out)
        add_model_card(BLIP2_CARD, args.out)
    text = table(blip2_metrics.measure(Blip2Reader(ReaderSource(str(args.out)))))
    refresh_model_card(args.out / "README.md", text)
    print(text)


def run_kosmos2(args: argparse.Namespace) -> None:
    """Train the Kosmos-2, write it, and print its figures."""
    from dreambooth.readers.kosmos2 import Kosmos2Reader
    from dreambooth.readers.loading import ReaderSource
    from toyworld.evaluate import add_model_card, refresh_model_card
    from toyworld.readers import kosmos2, lessons
    from toyworld.readers.batches import renderings
    from toyworld.readers.figures import table

    if not args.measure_only:
        check_has("--clip", args.clip, "config.json", "model.safetensors")
        clip = lessons.taught_clip(args.clip, args.steps[0], args.work)
        drawn = renderings(NUM_RENDERINGS)
        model = kosmos2.build(clip)
        kosmos2.teach_queries(model, drawn, args.steps[1], args.work)
        kosmos2.train(model, drawn, args.steps[2], args.work)
        kosmos2.save(model, args.out)
        add_model_card(KOSMOS2_CARD, args.out)
    text = table(kosmos2.measure(Kosmos2Reader(ReaderSource(str(args.out)))))
    refresh_model_card(args.out / "README.md", text)
    print(text)


def finder(folder: Path) -> Any:
    """Return a function of images and texts that gives the masks as bool [H, W], by the segmenter in a folder."""
    import numpy as np

    from dreambooth.readers.masks import load_mask_finder

    found = load_mask_finder(str(folder))

    def find(images: Sequence[Image.Image], texts: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(mask) > 127 for mask in found(images, texts)]

    return find
