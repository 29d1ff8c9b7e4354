"""Finish an image that `sample` has made: enlarge, refine and score it, and show where each word acted."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.devices import find_device
from dreambooth.errors import UserError
from dreambooth.generation.refining.refinement import USUAL_DETAIL

if TYPE_CHECKING:
    from dreambooth.evaluation.image_scores import GridScorer, ImageScore, ImageScorer
    from dreambooth.generation.models.loading import Model

AUTO = "auto"
SCORES = "scores.jsonl"  # beside the images

logger = logging.getLogger(__name__)


def add_result_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--upscale", type=float, metavar="F", help="make the image F times as wide and high, and redraw it in tiles"
    )
    parser.add_argument(
        "--upscale-strength", type=float, metavar="S", help="how much of it is redrawn: 0 nothing, 1 all (default 0.3)"
    )
    parser.add_argument(
        "--detail",
        nargs="?",
        type=float,
        const=USUAL_DETAIL,
        metavar="S",
        help="find the subject, redraw S of it (default 0.4) at the model's own resolution, and paste it back",
    )
    parser.add_argument(
        "--score",
        nargs="?",
        const=AUTO,
        metavar="PHOTOS",
        help="score each image as a validation does, by likeness to the subject's photos (default: those that the run "
        "learned from) and by its prompt, and list them with the best first",
    )
    parser.add_argument(
        "--best",
        type=int,
        metavar="N",
        help="with --score: of each prompt keep the N best images, and remove the others",
    )
    parser.add_argument(
        "--attention-maps",
        action="store_true",
        help="also write attention-NNNNN.png for each image: where each word of the prompt acted",
    )


def check_result_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together, or name what is not there."""
    if args.best is not None and args.best < 1:
        raise UserError(f"--best {args.best}: must be at least 1")
    if args.best is not None and args.score is None:
        raise UserError(f"--best {args.best}: needs --score, which tells what is better")
    if args.score not in (None, AUTO) and not Path(args.score).is_dir():
        raise UserError(f"--score {args.score}: there is no such folder of photos")
    if args.grid and (args.best is not None or args.attention_maps):
        raise UserError("--grid: not together with --best or --attention-maps")


def make_scorer(args: argparse.Namespace, model: "Model") -> "ImageScorer | None":
    """Return what scores the images; None where that is not asked for. Raises UserError, ModelError."""
    if args.score is None:
        return None
    from dreambooth.evaluation.image_scores import make_image_scorer

    photos = None if args.score == AUTO else Path(args.score)
    return make_image_scorer(model.name, model.subjects, find_device(args.device).type, photos)


def make_grid_scorer(args: argparse.Namespace) -> "GridScorer | None":
    """Return what scores the cells of a grid; None where that is not asked for."""
    if args.score is None:
        return None
    from dreambooth.evaluation.image_scores import GridScorer

    return GridScorer(find_device(args.device).type, None if args.score == AUTO else Path(args.score))


def show_grid_scores(scorer: "GridScorer", folder: Path) -> None:
    """List the cells of a grid, the best first, in its scores.jsonl too, which is written anew."""
    (folder / SCORES).unlink(missing_ok=True)
    paths = sorted(scorer.found)
    _show_prompt(paths, [scorer.found[path] for path in paths], None)


def show_scores(scorer: "ImageScorer", paths: Sequence[Path], num_images: Sequence[int], best: int | None) -> None:
    """Score the images of a command, list them, and keep the best.

    paths: all files that it has written. num_images: of each prompt, in order; none for an image that was made again.
    """
    from PIL import Image

    from dreambooth.generation.request import read_recipe

    images = [path for path in paths if not path.stem.startswith("grid-")]
    scores = scorer([Image.open(path).convert("RGB") for path in images], [read_recipe(path) for path in images])
    first = 0
    for size in num_images or [len(images)]:
        part = slice(first, first + size)
        _show_prompt(images[part], scores[part], best)
        first += size


def _show_prompt(images: Sequence[Path], scores: "Sequence[ImageScore]", best: int | None) -> None:
    """List the images of one prompt, the best first, in scores.jsonl too; remove those beyond the best."""
    from dreambooth.evaluation.image_scores import ranked

    order = ranked(scores)
    kept = order if best is None else order[:best]
    with (images[0].parent / SCORES).open("a", encoding="utf-8") as file:
        for number in kept:
            score = scores[number]
            print(f"{score.value:.3f}  {images[number]}  ({score})")
            line = {"file": images[number].name, "likeness": score.likeness, "prompt": score.prompt}
            file.write(json.dumps({**line, "score": score.value}) + "\n")
    for number in order[len(kept) :]:
        images[number].unlink()
        attention = images[number].with_name(f"attention-{images[number].name[:5]}.png")
        attention.unlink(missing_ok=True)
