"""`evaluate MODEL [MODEL ...]`: the paper's protocol, resumable, and one table with the paper's rows beside ours."""

import argparse
from pathlib import Path

from dreambooth.cli import sample
from dreambooth.errors import UserError
from dreambooth.evaluation.prompts import AUTO, SEEDS_A_PROMPT
from dreambooth.generation.settings import sampler_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="run folder, pipeline folder, hub id or single .safetensors, a row each; {name} in it stands for the "
        "subject's folder: checkpoints/{name} is a run a subject",
    )
    _add_subjects(parser)
    _add_measures(parser)
    _add_sampling(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="where pictures and tables go (default outputs/evaluate-<name of the photos>)"
    )


def _add_subjects(parser: argparse.ArgumentParser) -> None:
    photos = parser.add_mutually_exclusive_group(required=True)
    photos.add_argument("--images", type=Path, metavar="DIR", help="photos of one subject")
    photos.add_argument("--dataset", type=Path, metavar="DIR", help="a folder of photos a subject, as DreamBooth's")
    parser.add_argument("--subjects", nargs="+", metavar="NAME", help="only these of the data set (default all)")
    parser.add_argument(
        "--class-noun", metavar="T", help="what the subject is (default: the data set's or the model's)"
    )
    parser.add_argument(
        "--prompts",
        default=AUTO,
        metavar="SET|FILE",
        help="objects or live, the paper's 25 each; auto (default), by what the data set says of the subject; a file: "
        "a YAML list or a prompt a line, each with {subject}",
    )


def _add_measures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-images", type=int, default=4, metavar="N", help="pictures a prompt (default 4)")
    parser.add_argument(
        "--class-prompt-images",
        type=int,
        default=4,
        metavar="N",
        help="pictures of 'a photo of a <class noun>', for PRES, class DIV and drift (default 4); 0: none",
    )
    parser.add_argument("--base", metavar="MODEL", help="measure the class's drift from this untouched base")
    parser.add_argument(
        "--dino",
        default="facebook/dino-vits16",
        metavar="NAME",
        help="hub id or folder of a DINO, DINOv2 or ViT (default facebook/dino-vits16); none",
    )
    parser.add_argument(
        "--clip",
        default="openai/clip-vit-base-patch32",
        metavar="NAME",
        help="hub id or folder of a CLIP (default openai/clip-vit-base-patch32); none",
    )
    parser.add_argument(
        "--lpips", action="store_true", help="DIV by LPIPS, as in the paper (package lpips), not by cosine distance"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=int, metavar="N", help="sampler steps (default: the runs' validation's, else 25)"
    )
    parser.add_argument(
        "--guidance-scale", type=float, metavar="G", help="1 is none (default: the runs' validation's, else 7.5)"
    )
    parser.add_argument(
        "--scheduler", metavar="NAME", help="a name as for sample (default: the runs' validation's, else ddim)"
    )
    parser.add_argument("--negative-prompt", default="", metavar="T", help="what to keep away from (default nothing)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="picture i of prompt p is made from seed S + 1000 p + i, of the class prompt from S + i (default 0)",
    )
    parser.add_argument("--size", metavar="WxH", help="pixels, e.g. 512x512 (default: what the runs were trained at)")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="pictures at a time (default 4)")
    parser.add_argument(
        "--config", metavar="DIR", help="for a single file: folder or hub id with configs and tokenizer"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: the GPU if any")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="arithmetic of sampling (default float16 on a GPU, else float32)",
    )


def run(args: argparse.Namespace) -> int:
    size = check_arguments(args)
    from dreambooth.evaluation.run import evaluate

    return evaluate(args, size)


def check_arguments(args: argparse.Namespace) -> tuple[int, int] | None:
    """The size, if given. Raises UserError for options that are out of range or do not go together."""
    size = sample.check_arguments(args)
    sampler_settings(None, args.steps, args.guidance_scale, args.scheduler, args.negative_prompt)
    problems = []
    if args.num_images > SEEDS_A_PROMPT or not 0 <= args.class_prompt_images <= SEEDS_A_PROMPT:
        problems.append(
            f"--num-images, --class-prompt-images: 0 to {SEEDS_A_PROMPT}, where the next prompt's seeds begin"
        )
    if args.base is not None and args.class_prompt_images == 0:
        problems.append("--base: drift is measured on pictures of the class prompt, and --class-prompt-images is 0")
    if args.subjects is not None and args.dataset is None:
        problems.append("--subjects: chooses among those of --dataset; --images has one")
    if Path(args.out or ".").is_file():
        problems.append(f"--out: {args.out} is a file")
    if problems:
        raise UserError("\n  ".join(problems))
    return size
