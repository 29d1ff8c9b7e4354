"""`sample --grid AXIS=V1,V2,...`: one image for each combination of values, on one sheet and on a page that filters."""

import argparse
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.cli import loading_libraries
from dreambooth.cli.progress import SamplingBar
from dreambooth.cli.results import make_grid_scorer, show_grid_scores
from dreambooth.errors import UserError

if TYPE_CHECKING:
    from dreambooth.generation.inputs.from_images import FromImages
    from dreambooth.generation.inputs.styles import Styles
    from dreambooth.generation.models.reference import ModelRef
    from dreambooth.generation.options import ImageOptions
    from dreambooth.generation.prompting.wildcards import Wildcards

logger = logging.getLogger(__name__)


def add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--grid",
        nargs="+",
        action="extend",
        default=[],
        metavar="AXIS=V1,V2,...",
        help="one image for each combination of values of up to three axes: columns, rows, blocks (or x=AXIS:V1,V2, "
        "y=, z=). AXIS is an option of an image (prompt, seed, strength, style ...) or of a model (model, step, lora, "
        "lora_weight ...). Writes grid.png and grid.html; the same command again makes what is missing",
    )


def _check_grid_options(args: argparse.Namespace, wanted: "list[ImageOptions]") -> None:
    """Raise UserError for options that a grid leaves out, and for lines of --prompts that differ in more than words."""
    from dreambooth.generation.options import differences

    given = {
        f"--offload {args.offload}": args.offload not in ("auto", "none"),
        f"--decoding {args.decoding}": args.decoding not in ("auto", "whole"),
        "--attention-slices": args.attention_slices,
    }
    if stray := [option for option, is_given in given.items() if is_given]:
        raise UserError(f"{stray[0]}: not for a grid, whose models change; leave it out")
    for options in wanted:
        if names := sorted(differences(options, wanted[0]) - {"prompt", "num_images"}):
            raise UserError(
                f"--grid: the prompts {wanted[0].prompt!r} and {options.prompt!r} have another {', '.join(names)} "
                "each; in a grid prompts alone differ, so make it an axis or leave it out"
            )


def run_grid(
    args: argparse.Namespace,
    ref: "ModelRef",
    wanted: "list[ImageOptions]",
    wildcards: "Wildcards",
    images: "FromImages",
    styles: "Styles",
) -> int:
    """Make the grid of the command line, and return the exit code. wanted: prompts; several become an axis."""
    from dreambooth.disk import check_writable, translate_write_errors
    from dreambooth.generation.before_loading import check_cells
    from dreambooth.generation.grids.axes import cells_of, folder_name, parse_axes, with_images, with_prompts
    from dreambooth.generation.models.location import default_folder

    if args.from_image or args.vary:
        raise UserError("--grid: not together with --from-image or --vary; name MODEL and PROMPT")
    _check_grid_options(args, wanted)
    axes = with_prompts(parse_axes(args.grid), [options.prompt for options in wanted])
    usual, beside = with_images(axes, wanted[0], images)
    cells = [replace(cell, options=styles.apply(cell.options)) for cell in cells_of(axes, ref, usual)]
    check_cells(cells, wildcards)
    folder = Path(args.out) if args.out else default_folder(ref.name) / folder_name(cells, images)
    check_writable(folder, "--out")
    with loading_libraries():
        from dreambooth.generation.grids.grid_run import Grid, make_grid
        from dreambooth.generation.models.model_pool import ModelPool
        from dreambooth.step_models import load_at_step

    pool, grid, scorer = ModelPool(args.device), Grid(axes, cells, folder, beside), make_grid_scorer(args)

    logger.info(grid.size_in_words)
    with SamplingBar() as bar, translate_write_errors(folder, "--out"):
        for path in make_grid(grid, partial(load_at_step, pool), wildcards, args.batch_size, bar, scorer):
            bar.print(path)
        if scorer is not None:
            show_grid_scores(scorer, folder)
    return 0
