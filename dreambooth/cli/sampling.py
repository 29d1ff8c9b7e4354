"""Options that `sample` and `evaluate` share: how images are sampled, and how a model is loaded."""

import argparse
from typing import Any

from dreambooth.cli.option_names import option_of
from dreambooth.devices import AUTO, NAMES
from dreambooth.errors import UserError
from dreambooth.generation import options
from dreambooth.generation.settings import SCHEDULERS, problem_of


def add_sampling_arguments(parser: argparse.ArgumentParser, seed_help: str) -> None:
    """Add the options of the sampler. What is not given is as the run sampled its own validation images."""
    parser.add_argument(
        "--steps", type=int, metavar="N", help="sampler steps (default: the run's validation's, else 25)"
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        metavar="G",
        help="pull towards the prompt; 1 is none, of z_image and krea2 0 (default: the run's validation's, else 7.5)",
    )
    parser.add_argument(
        "--scheduler", metavar="NAME", help=f"{', '.join(SCHEDULERS)} (default: the run's validation's, else ddim)"
    )
    parser.add_argument("--negative-prompt", default="", metavar="T", help="what to keep away from (default nothing)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help=seed_help)
    parser.add_argument("--size", metavar="WxH", help="pixels, e.g. 512x768 (default: what the model was trained at)")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="images at a time (default 4)")


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that loading a model needs beside its name."""
    parser.add_argument(
        "--config",
        metavar="DIR",
        help="for a single file: folder or hub id with its configs and tokenizer, or one of sd1, sd1-v, sd2, sd2-v, "
        "sdxl, sdxl-v, sdxl-v-ztsnr, sd1-inpaint, sd2-inpaint, sdxl-inpaint (default: read from the file)",
    )
    parser.add_argument(
        "--revision", metavar="NAME", help="of a hub id (of an adapter's base): branch, tag or commit (default: main)"
    )
    parser.add_argument(
        "--variant", metavar="NAME", help="which of the weights that lie beside each other: fp16, non_ema ..."
    )
    parser.add_argument(
        "--vae",
        metavar="MODEL",
        help="another VAE in the place of the model's own, or where a single file has none: folder, hub id or single "
        ".safetensors",
    )
    parser.add_argument("--device", choices=NAMES, default=AUTO, help="default: the first of these that there is")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="arithmetic (default on a GPU float16, of transformers bfloat16; else float32)",
    )
    parser.add_argument(
        "--quantize",
        choices=("int8", "fp8", "nf4"),
        help="store the weights in 8 or 4 bits, which takes less memory and is slower (default: as --dtype)",
    )


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options by which sampling takes less memory, or less time; auto: as what is free on a GPU needs it."""
    parser.add_argument(
        "--offload",
        choices=("auto", "none", "parts", "blocks"),
        default="auto",
        help="which networks wait in main memory until they compute: parts in turns, or blocks of the denoiser "
        "(default auto: as what is free on a GPU needs it)",
    )
    parser.add_argument(
        "--decoding",
        choices=("auto", "whole", "slices", "tiles"),
        default="auto",
        help="decode the images of a batch together, one by one, or in tiles that overlap (default auto)",
    )
    parser.add_argument(
        "--attention-slices", action="store_true", help="compute attention a part of the heads at a time; for UNets"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the denoiser: the first image takes minutes, the others less on a GPU; not with --offload",
    )


def check_compile(args: argparse.Namespace) -> None:
    """Raise UserError where the denoiser cannot be compiled for what is asked."""
    if args.compile and args.offload in ("parts", "blocks"):
        raise UserError(f"--compile: a compiled network knows no weights that wait; leave --offload {args.offload} out")
    if args.compile and args.grid:
        raise UserError("--compile: not for a grid, whose models and sizes change; leave it out")


def check_arguments(args: argparse.Namespace) -> tuple[int, int] | None:
    """Return the size as (height, width), None if not given. Raises UserError for a value out of its range."""
    for name in ("num_images", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"{option_of(name)} {getattr(args, name)}: must be at least 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be at least 0")
    for name, field in options.SETTINGS.items():
        value: Any = getattr(args, name)
        if value is not None and (problem := problem_of(field, value)) is not None:
            raise UserError(f"{option_of(name)} {value}: {problem}")
    return None if args.size is None else parse_size(args.size)


def parse_size(text: str) -> tuple[int, int]:
    """Return WIDTHxHEIGHT as (height, width). Raises UserError for another text."""
    try:
        return options.parse_size(text)
    except ValueError as error:
        raise UserError(f"--size {text}: {error}") from error
