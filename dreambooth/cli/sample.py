"""`sample MODEL PROMPT [PROMPT ...]`: numbered PNGs with their recipe inside, and a grid of several."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.cli import loading_libraries
from dreambooth.cli.grids import add_grid_arguments, run_grid
from dreambooth.cli.image_options import add_image_arguments, check_images, find_images
from dreambooth.cli.progress import SamplingBar
from dreambooth.cli.recipe_options import check_recipe_options
from dreambooth.cli.results import add_result_arguments, check_result_arguments, make_scorer, show_scores
from dreambooth.cli.sampling import (
    add_loading_arguments,
    add_memory_arguments,
    add_sampling_arguments,
    check_arguments,
    check_compile,
    parse_size,
)
from dreambooth.errors import UserError, escaped
from dreambooth.generation.prompting.wildcards import FOLDER

if TYPE_CHECKING:
    from dreambooth.generation.models.loading import Model
    from dreambooth.generation.models.reference import ModelRef
    from dreambooth.generation.options import ImageOptions
    from dreambooth.generation.prompting.wildcards import Wildcards

logger = logging.getLogger(__name__)

USUAL_VARIATION = 0.3  # the strength of --vary
BYTES_A_PIXEL = 2 * 3  # at most: an image's own, and those in the grid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_prompts(parser)
    parser.add_argument("--num-images", type=int, default=4, metavar="N", help="images a prompt (default 4)")
    add_sampling_arguments(parser, seed_help="image i is made from seed S + i (default 0)")
    parser.add_argument("--out", metavar="DIR", help="where the images go (default outputs/<name of the model>)")
    _add_additions(parser)
    add_image_arguments(parser)
    add_grid_arguments(parser)
    add_result_arguments(parser)
    add_loading_arguments(parser)
    add_memory_arguments(parser)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    """Add the model, and where prompts come from: the command line, a file, or an image's recipe."""
    model = parser.add_argument(
        "model", metavar="MODEL", help="run folder, pipeline or adapter folder, hub id or single .safetensors"
    )
    prompts = parser.add_argument(
        "prompts",
        metavar="PROMPT",
        nargs="+",
        default=[],
        help="{subject} stands for what the model has learned, {subject_2} for the second of several; {red|blue} draws "
        "one by the seed, __colours__ a line of colours.txt; (word:1.3) weighs a word",
    )

    parser.add_argument(
        "--prompts",
        action=_instead_of(prompts),
        dest="prompt_file",
        metavar="FILE",
        help="read prompts from a text, one a line, or from JSON lines (.jsonl), each with options of its own: "
        '{"prompt": "a photo of {subject}", "seed": 3, "steps": 40}',
    )
    parser.add_argument(
        "--wildcards",
        metavar="DIR",
        help=f"where colours.txt lies that __colours__ is drawn from (default {FOLDER}, then beside --prompts)",
    )
    parser.add_argument(
        "--from-image",
        action=_instead_of(model, prompts),
        metavar="IMAGE",
        help="make an image of sample or evaluate again, by the recipe in it: needs no MODEL (unless that lies "
        "elsewhere now), no PROMPT, and no option that the recipe holds; with a MODEL also one by webui, SD.Next and "
        "the like, as far as their text says how",
    )
    parser.add_argument(
        "--vary",
        action=_instead_of(model, prompts),
        metavar="IMAGE",
        help="make variations of an image of sample or evaluate, by the recipe in it; as many as --num-images",
    )
    parser.add_argument(
        "--variation-strength",
        type=float,
        metavar="S",
        help="how far they go: 0 is the image itself, 1 another one of the same prompt (default 0.3)",
    )


def _instead_of(*positionals: argparse.Action) -> type[argparse.Action]:
    """Return the action of an option beside which these positionals need not be given."""

    class InsteadOf(argparse.Action):
        """Store the value."""

        def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
            setattr(namespace, self.dest, values)
            for each in positionals:
                each.required = False

    return InsteadOf


def _add_additions(parser: argparse.ArgumentParser) -> None:
    """Add what is laid over the model."""
    parser.add_argument("--base", metavar="MODEL", help="for an adapter: its base model, if that is elsewhere now")
    parser.add_argument(
        "--lora",
        metavar="FILE[:WEIGHT]",
        action="append",
        default=[],
        help="lay a LoRA, LoHa or LoKr over the model (repeatable): a file of kohya's, diffusers' or LyCORIS' names, "
        "or a run; WEIGHT scales it (default 1)",
    )
    parser.add_argument(
        "--embedding",
        metavar="FILE[:WORD]",
        action="append",
        default=[],
        help="add a learned embedding (repeatable), as AUTOMATIC1111, kohya or diffusers write it; WORD stands for it "
        "in a prompt (default: the word in the file, else the file's name)",
    )


def run(args: argparse.Namespace) -> int:
    from dreambooth.disk import check_writable, translate_write_errors
    from dreambooth.generation.before_loading import check_model, check_options
    from dreambooth.generation.models.location import default_folder
    from dreambooth.generation.request import request_of

    check_arguments(args)
    check_compile(args)
    check_result_arguments(args)
    recipe, wildcards = find_recipe(args), find_wildcards(args)
    check_recipe_options(args, is_own=recipe is not None)
    wanted = [] if recipe is not None else find_options(args)
    ref = find_model(args, recipe)
    check_model(ref)
    check_options(ref, wanted, wildcards)
    images, styles = find_images(args, None if recipe is None else request_of(recipe).images, ref)
    if args.grid:
        return run_grid(args, ref, wanted, wildcards, images, styles)
    wanted = [styles.apply(each) for each in wanted]
    for own in dict.fromkeys(options.images for options in wanted if options.images is not None):
        check_images(own, ref)
    check_options(ref, wanted, wildcards)
    folder = Path(args.out or default_folder(ref.name))
    check_writable(folder, "--out")
    with loading_libraries():
        from dreambooth.generation.images import generate, make_requests, reproduce, vary
        from dreambooth.generation.numbered_files import write

    model = _load_model(args, ref)
    if recipe is not None:
        requests = [reproduce(recipe, model, images)]
    else:
        requests = make_requests(model, wanted, wildcards, images)
    if args.vary:
        requests = vary(requests[0], args.num_images, args.seed, _variation_strength(args))
    scorer = make_scorer(args, model)
    check_writable(folder, "--out", sum(each.num_pixels * BYTES_A_PIXEL for each in requests))
    with SamplingBar() as bar, translate_write_errors(folder, "--out"):
        made = generate(model, requests, args.batch_size, bar, args.attention_maps, args.decoding)
        paths = []
        for path in write(made, folder, columns=args.num_images):
            paths.append(path)
            bar.print(path)
        if scorer is not None:
            show_scores(scorer, paths, [options.num_images for options in wanted], args.best)
    return 0


def _load_model(args: argparse.Namespace, ref: "ModelRef") -> "Model":
    """Load a model as the options of memory and speed ask for. Raises UserError, ModelError."""
    from dreambooth.generation.memory import compile_denoiser, slice_attention
    from dreambooth.generation.models.loading import load_model

    model = load_model(ref, args.device, "none" if args.compile else args.offload)
    if args.attention_slices:
        slice_attention(model.family)
    if args.compile:
        compile_denoiser(model.family)
    return model


def find_options(args: argparse.Namespace) -> "list[ImageOptions]":
    """Return the prompts of the command line, then those of --prompts, with their options. Raises UserError.

    Of another program's image, which --from-image names, the one that its text says.
    """
    from dreambooth.generation.options import ImageOptions
    from dreambooth.generation.prompting.prompt_file import read_prompt_file

    if (theirs := find_infotext(args)) is not None:
        return [theirs]
    usual = ImageOptions(
        prompt="",
        num_images=args.num_images,
        seed=args.seed,
        negative_prompt=args.negative_prompt,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        scheduler=args.scheduler,
        size=None if args.size is None else parse_size(args.size),
        upscale=args.upscale,
        upscale_strength=args.upscale_strength,
        detail=args.detail,
    )
    typed = [replace(usual, prompt=prompt) for prompt in args.prompts]
    return typed + (read_prompt_file(Path(args.prompt_file), usual) if args.prompt_file else [])


def find_wildcards(args: argparse.Namespace) -> "Wildcards":
    """Return where wildcard files are looked for."""
    from dreambooth.generation.prompting.wildcards import Wildcards

    if args.wildcards is not None and not Path(args.wildcards).is_dir():
        raise UserError(f"--wildcards {escaped(args.wildcards)}: there is no such folder")
    beside = [Path(args.prompt_file).parent] if args.prompt_file else []
    return Wildcards([Path(args.wildcards or FOLDER), *beside])


def find_recipe(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the recipe in the image of --from-image or --vary, None without one. Raises UserError."""
    from dreambooth.generation.request import read_infotext, read_recipe, request_of
    from dreambooth.generation.variation import Variation

    image = args.vary or args.from_image
    if not image or (not args.vary and read_infotext(image) is not None):
        return None
    recipe = read_recipe(image)
    request_of(recipe)
    if args.vary:
        Variation(args.seed, _variation_strength(args))
    return recipe


def _variation_strength(args: argparse.Namespace) -> float:
    return USUAL_VARIATION if args.variation_strength is None else float(args.variation_strength)


def find_infotext(args: argparse.Namespace) -> "ImageOptions | None":
    """Return what another program says of the image of --from-image; None without one. Raises UserError."""
    from dreambooth.generation.request import read_infotext

    found = read_infotext(args.from_image) if args.from_image else None
    if found is None:
        return None
    if args.model is None:
        raise UserError(f"--from-image {escaped(args.from_image)}: was made with the model {found.model!r}; name MODEL")
    if found.not_read:
        logger.warning(f"{args.from_image}: not read of it: {', '.join(found.not_read)}")
    logger.info(
        "note: other programs draw their noise otherwise; this is another image of the same prompt and settings"
    )
    return found.options


def find_model(args: argparse.Namespace, recipe: dict[str, Any] | None) -> "ModelRef":
    """Return the model that is asked for: by the options or, with --from-image, as the recipe has it.

    Of the latter MODEL, --base, --vae, --lora and --embedding go over the recipe's, where they lie elsewhere now.
    Raises UserError.
    """
    from dreambooth.generation.models.additions import moved_loras, parse_embedding
    from dreambooth.generation.models.reference import ModelRef
    from dreambooth.generation.request import request_of

    embeddings = tuple(map(parse_embedding, args.embedding))
    if recipe is not None:
        ref = request_of(recipe).model
        ref = replace(ref, name=args.model or ref.name, base=args.base or ref.base, vae=args.vae or ref.vae)
    else:
        ref = ModelRef(args.model, args.base, args.config, args.revision, args.variant, args.dtype, args.vae)
        ref = replace(ref, quantize=args.quantize)
    loras = moved_loras(args.lora, ref.loras) or ref.loras
    return replace(ref, loras=loras, embeddings=embeddings or ref.embeddings)
