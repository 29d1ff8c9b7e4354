"""`export RUN --format NAME`: a result as other tools want it, with a model card, and on the hub if asked for."""

import argparse

from dreambooth.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help="run folder, or the model/ of one")
    parser.add_argument(
        "--format",
        required=True,
        metavar="NAME",
        help="diffusers: a pipeline folder; single-file: one .safetensors in the original layout (both with adapters "
        "merged); lora: as diffusers and peft name it; kohya: as AUTOMATIC1111 and SD.Next name it; "
        "comfyui: as ComfyUI does, of SD and SDXL the same; embedding: a learned word; "
        "onnx, openvino: graphs of SD 1.x and 2.x, which sample runs",
    )
    parser.add_argument(
        "--rank",
        type=int,
        metavar="R",
        help="for lora, kohya and comfyui of a run whose method has no LoRA, such as full: extract one of this rank",
    )
    parser.add_argument("--out", metavar="DIR", help="a new folder (default <RUN>/exports/<NAME>, replaced)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float16",
        help="of the weights (default float16)",
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="for an adapter, and for --rank: the base model, if that is elsewhere now"
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="read what was written as other programs do, count the modules that arrive, compare weights and an image "
        "with the trained model, and write nothing where they differ by more than rounding (default: where the free "
        "memory holds three models)",
    )
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the folder to this model repository")
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: a new repository is private")


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    from dreambooth.exporting import hub
    from dreambooth.exporting.to_format import export

    folder = export(args.model, args.format, args.out, args.dtype, args.rank, args.base, args.push_to_hub, args.verify)
    for path in sorted(folder.rglob("*.safetensors")):
        if not path.is_symlink():
            print(path)
    if args.push_to_hub:
        print(hub.push(folder, args.push_to_hub, args.private))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for what the hub would refuse, before anything is computed."""
    from dreambooth.exporting import hub

    if args.private and not args.push_to_hub:
        raise UserError("--private: says how --push-to-hub makes a repository; name one, or leave it out")
    if args.push_to_hub:
        hub.check(args.push_to_hub)
