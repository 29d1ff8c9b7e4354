"""`evaluate MODEL [MODEL ...]`: the paper's protocol, resumable, and one table with the paper's rows beside ours."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.cli import loading_libraries
from dreambooth.cli.progress import SamplingBar
from dreambooth.cli.sampling import add_loading_arguments, add_sampling_arguments, check_arguments

if TYPE_CHECKING:
    from dreambooth.evaluation.request import EvaluationRequest


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
    add_sampling_arguments(
        parser,
        seed_help="image i of prompt p is made from seed S + 1000 p + i, of the class prompt from S + i (default 0)",
    )
    add_loading_arguments(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="where images and tables go (default outputs/evaluate-<name of the photos>)"
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
        default="auto",
        metavar="SET|FILE",
        help="objects or live, the paper's 25 each; auto (default), by what the data set says of the subject; a file: "
        "a YAML list or a prompt a line, each with {subject}",
    )


def _add_measures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-images", type=int, default=4, metavar="N", help="images a prompt (default 4)")
    parser.add_argument(
        "--class-prompt-images",
        type=int,
        default=4,
        metavar="N",
        help="images of 'a photo of a <class noun>', for PRES, class DIV and drift (default 4); 0: none",
    )
    parser.add_argument("--base", metavar="MODEL", help="measure the class's drift from this untouched base")
    parser.add_argument(
        "--dino",
        default="auto",
        metavar="NAME",
        help="hub id or folder of a DINO, DINOv2 or ViT; none; auto (default): what the models' runs measured with, "
        "else facebook/dino-vits16",
    )
    parser.add_argument(
        "--clip",
        default="auto",
        metavar="NAME",
        help="hub id or folder of a CLIP; none; auto (default): as --dino, else openai/clip-vit-base-patch32",
    )
    parser.add_argument(
        "--matcher",
        metavar="NAME",
        help="hub id or folder of a BLIP-2 for retrieval: do image and prompt belong together?",
    )
    parser.add_argument("--reader", metavar="NAME", help="hub id or folder of a model that answers each --question")
    parser.add_argument(
        "--question",
        dest="questions",
        action="append",
        default=[],
        metavar="Q",
        help="score images by the probability of the right answer: 'is there a beach?', 'where is it? on the beach', "
        "'beach: is there a beach?' where the prompt has the word, 'is this {subject}?' of a reader that was taught it",
    )
    parser.add_argument(
        "--lpips", action="store_true", help="DIV by LPIPS, as in the paper (package lpips), not by cosine distance"
    )


def run(args: argparse.Namespace) -> int:
    from dreambooth.disk import check_writable, translate_write_errors
    from dreambooth.evaluation.subjects import subjects_of

    request = request_of(args)
    check_writable(request.out, "--out")
    subjects_of(request)  # photos that cannot be read are reported before the libraries are loaded
    with loading_libraries():
        from dreambooth.evaluation.run import evaluate

    with SamplingBar() as bar, translate_write_errors(request.out, "--out"):
        found = evaluate(request, bar)
    print(found)
    print("\n".join(map(str, found.files)))
    return 0


def request_of(args: argparse.Namespace) -> "EvaluationRequest":
    """Return the evaluation that is asked for. Raises UserError for options out of range or that contradict."""
    from dreambooth.evaluation.request import EvaluationRequest
    from dreambooth.generation.models.reference import ModelRef

    size = check_arguments(args)
    return EvaluationRequest(
        models=args.models,
        out=Path(args.out or Path("outputs") / f"evaluate-{(args.dataset or args.images).resolve().name}"),
        images=args.images,
        dataset=args.dataset,
        subjects=args.subjects,
        class_noun=args.class_noun,
        prompts=args.prompts,
        num_images=args.num_images,
        num_class_images=args.class_prompt_images,
        base=args.base,
        dino=args.dino,
        clip=args.clip,
        lpips=args.lpips,
        matcher=args.matcher,
        reader=args.reader,
        questions=args.questions,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        scheduler=args.scheduler,
        negative_prompt=args.negative_prompt,
        seed=args.seed,
        size=size,
        batch_size=args.batch_size,
        options=ModelRef(
            "", None, args.config, args.revision, args.variant, args.dtype, args.vae, quantize=args.quantize
        ),
        device=args.device,
    )
