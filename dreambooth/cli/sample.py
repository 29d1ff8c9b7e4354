"""`sample MODEL PROMPT [PROMPT ...]`: numbered PNGs with their recipe inside, and a grid of several."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.cli import loading_libraries
from dreambooth.cli.progress import SamplingBar
from dreambooth.cli.sampling import add_loading_arguments, add_sampling_arguments, check_arguments

if TYPE_CHECKING:
    from dreambooth.generation.loading import Model
    from dreambooth.generation.request import ImageRequest, ModelRef

BYTES_A_PIXEL = 2 * 3  # at most: an image's own, and those in the grid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument(
        "model", metavar="MODEL", help="run folder, pipeline or adapter folder, hub id or single .safetensors"
    )
    prompts = parser.add_argument(
        "prompts",
        metavar="PROMPT",
        nargs="+",
        help="{subject} stands for what the model has learned, {subject_2} for the second of several",
    )

    class FromImage(argparse.Action):
        """With an image to make again, model and prompts are in its recipe."""

        def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
            namespace.from_image = values
            model.required = prompts.required = False

    parser.add_argument(
        "--from-image",
        action=FromImage,
        metavar="PNG",
        help="make an image of sample or evaluate again, by the recipe in it: needs no MODEL (unless that lies "
        "elsewhere now), no PROMPT, no other option",
    )
    parser.add_argument("--num-images", type=int, default=4, metavar="N", help="images a prompt (default 4)")
    add_sampling_arguments(parser, seed_help="image i is made from seed S + i (default 0)")
    parser.add_argument("--out", metavar="DIR", help="where the images go (default outputs/<name of the model>)")
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
    add_loading_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from dreambooth.disk import check_writable, translate_write_errors
    from dreambooth.generation.location import default_folder, find_vae_scale_factor
    from dreambooth.generation.settings import check_size

    size = check_arguments(args)
    recipe = find_recipe(args)
    ref = find_model(args, recipe)
    folder = Path(args.out or default_folder(ref.name))
    check_writable(folder, "--out")
    if size is not None and (factor := find_vae_scale_factor(ref)) is not None:
        check_size(factor, size)
    with loading_libraries():
        from dreambooth.generation.images import generate, reproduce, write
        from dreambooth.generation.loading import load_model

    model = load_model(ref, args.device)
    requests = [reproduce(recipe, model)] if recipe else requested(args, model, size)
    check_writable(folder, "--out", sum(each.height * each.width * BYTES_A_PIXEL for each in requests))
    with SamplingBar() as bar, translate_write_errors(folder, "--out"):
        for path in write(generate(model, requests, args.batch_size, bar), folder, columns=args.num_images):
            bar.print(path)
    return 0


def find_recipe(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the recipe in the image of --from-image, None without that option. Raises UserError."""
    from dreambooth.generation.request import read_recipe, request_of

    if not args.from_image:
        return None
    recipe = read_recipe(args.from_image)
    request_of(recipe)
    return recipe


def find_model(args: argparse.Namespace, recipe: dict[str, Any] | None) -> "ModelRef":
    """Return the model that is asked for: by the options or, with --from-image, as the recipe has it.

    Of the latter MODEL, --base, --vae, --lora and --embedding go over the recipe's, where they lie elsewhere now.
    Raises ModelError for a file that is not there, UserError for a prompt that cannot be filled, before anything heavy
    is loaded.
    """
    from dataclasses import replace

    from dreambooth.generation.additions import check_additions, learned_by, parse_embedding, parse_lora
    from dreambooth.generation.location import check_is_there, check_path, fill, find_card
    from dreambooth.generation.request import ModelRef, request_of

    loras = tuple(map(parse_lora, args.lora))
    embeddings = tuple(map(parse_embedding, args.embedding))
    if recipe is not None:
        ref = request_of(recipe).model
        ref = replace(ref, name=args.model or ref.name, base=args.base or ref.base, vae=args.vae or ref.vae)
        prompts = []
    else:
        ref = ModelRef(args.model, args.base, args.config, args.revision, args.variant, args.dtype, args.vae)
        prompts = [*args.prompts, args.negative_prompt]
    ref = replace(ref, loras=loras or ref.loras, embeddings=embeddings or ref.embeddings)
    check_is_there(ref.name)
    if ref.vae is not None:
        check_path(ref.vae, "--vae")
    check_additions(ref.loras, ref.embeddings)
    card = find_card(ref.name)
    subjects = (() if card is None else card.subjects) + learned_by(ref.loras)
    for prompt in prompts:
        fill(prompt, ref.name, subjects)
    return ref


def requested(args: argparse.Namespace, model: "Model", size: tuple[int, int] | None) -> "list[ImageRequest]":
    """Return the requests of the prompts. What is not given is as the run sampled its own. Raises UserError."""
    from dreambooth.generation.images import make_requests
    from dreambooth.generation.settings import sampler_settings

    negative_prompt = model.fill(args.negative_prompt)
    settings = sampler_settings(model.card, args.steps, args.guidance_scale, args.scheduler, negative_prompt)
    prompts = [model.fill(prompt) for prompt in args.prompts]
    size = size or (model.resolution, model.resolution)
    return make_requests(model, prompts, args.num_images, args.seed, size, settings)
