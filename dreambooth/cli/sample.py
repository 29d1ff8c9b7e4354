"""`sample MODEL PROMPT [PROMPT ...]`: numbered PNGs with their recipe inside, and a grid."""

import argparse
import re
from typing import Any

from dreambooth.cli import loading_libraries
from dreambooth.generation.settings import sampler_settings


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
        """With a picture to make again, model and prompts are in its recipe."""

        def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
            namespace.from_image = values
            model.required = prompts.required = False

    parser.add_argument(
        "--from-image",
        action=FromImage,
        metavar="PNG",
        help="make a picture of this command again, by the recipe in it: needs no MODEL (unless that lies elsewhere "
        "now), no PROMPT, no other option",
    )
    parser.add_argument("--num-images", type=int, default=4, metavar="N", help="pictures a prompt (default 4)")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="sampler steps (default: the run's validation's, else 25)"
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        metavar="G",
        help="pull towards the prompt; 1 is none (default: the run's validation's, else 7.5)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="picture i is made from seed S + i (default 0)"
    )
    parser.add_argument("--negative-prompt", default="", metavar="T", help="what to keep away from (default nothing)")
    parser.add_argument(
        "--scheduler",
        metavar="NAME",
        help="ddim, ddpm, pndm, euler, euler-a, dpm++, unipc, lms, heun (default: the run's validation's, else ddim)",
    )
    parser.add_argument("--size", metavar="WxH", help="pixels, e.g. 512x768 (default: what the model was trained at)")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="pictures at a time (default 4)")
    parser.add_argument("--out", metavar="DIR", help="where the pictures go (default outputs/<name of the model>)")
    add_loading_arguments(parser)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """What a model needs beside its name, and what it computes with."""
    parser.add_argument(
        "--config",
        metavar="DIR",
        help="for a single file: folder or hub id with its configs and tokenizer, or one of sd1, sd1-v, sd2, sd2-v, "
        "sdxl, sdxl-v, sdxl-v-ztsnr (default: read from the file)",
    )
    parser.add_argument("--base", metavar="MODEL", help="for an adapter: its base model, if that is elsewhere now")
    parser.add_argument(
        "--revision", metavar="NAME", help="of a hub id (of an adapter's base): branch, tag or commit (default: main)"
    )
    parser.add_argument(
        "--variant", metavar="NAME", help="which of the weights that lie beside each other: fp16, non_ema ..."
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: the GPU, if there is one"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="arithmetic (default float16 on a GPU, else float32)",
    )


def run(args: argparse.Namespace) -> int:
    size = check_arguments(args)
    asked = (args.steps, args.guidance_scale, args.scheduler, args.negative_prompt)
    sampler_settings(None, *asked)  # a mistake is reported before anything heavy is loaded
    with loading_libraries():
        from dreambooth.generation import images

    if args.from_image:
        return make_again(args)

    model = images.load_model(args.model, args.config, args.device, args.dtype, args.base, args.revision, args.variant)
    settings = sampler_settings(model.card, *asked)
    prompts = [model.fill(prompt) for prompt in args.prompts]
    size = size or (model.resolution, model.resolution)
    made = images.make(model, prompts, args.num_images, args.seed, size, settings, args.batch_size)
    for path in images.write(made, args.out or images.default_folder(args.model), columns=args.num_images):
        print(path)
    return 0


def make_again(args: argparse.Namespace) -> int:
    """--from-image: MODEL only where it lies elsewhere now; other options but --out and --device are the recipe's."""
    from dreambooth.generation import images

    recipe = images.read_recipe(args.from_image)
    name = args.model or recipe["model"]
    loaded_with = {"revision": None, "variant": None, **recipe}  # which older pictures do not name
    model = images.load_model(
        name, recipe["config"], args.device, recipe["dtype"], args.base or recipe["base"], loaded_with["revision"],
        loaded_with["variant"],
    )  # fmt: skip
    for path in images.write(images.reproduce(recipe, model), args.out or images.default_folder(name), 1):
        print(path)
    return 0


def check_arguments(args: argparse.Namespace) -> tuple[int, int] | None:
    """The size as (height, width), None if not given. Raises UserError for a number out of its range."""
    from dreambooth.errors import UserError

    for name in ("num_images", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: {getattr(args, name)} is too small; at least 1")
    if args.seed < 0:
        raise UserError(f"--seed: {args.seed} is too small; at least 0")
    if args.size is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", args.size)
    if match is None:
        raise UserError(f"--size: {args.size!r} is not a size; write WIDTHxHEIGHT in pixels, e.g. 512x768")
    return int(match[2]), int(match[1])
