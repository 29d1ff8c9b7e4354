"""`export RUN --format NAME`: a result as other tools want it."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help="run folder, or the model/ of one")
    parser.add_argument(
        "--format",
        required=True,
        metavar="NAME",
        help="diffusers: a pipeline folder; single-file: one .safetensors in the original layout (both with adapters "
        "merged); lora: as diffusers and peft name it; kohya: as AUTOMATIC1111, SD.Next and ComfyUI name it; "
        "embedding: a learned word",
    )
    parser.add_argument("--out", metavar="DIR", help="a new folder (default <RUN>/exports/<NAME>, replaced)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float16",
        help="of the weights (default float16)",
    )
    parser.add_argument("--base", metavar="MODEL", help="for an adapter: its base model, if that is elsewhere now")


def run(args: argparse.Namespace) -> int:
    from dreambooth import pictures
    from dreambooth.errors import UserError
    from dreambooth.export import replaced
    from dreambooth.formats import find_format, write_as

    card = pictures.find_card(args.model)
    if card is None:
        raise UserError(f"{args.model}: no result of a run (it has no dreambooth.json), so there is nothing to export")
    form = find_format(args.format, card.method)
    folder = Path(args.out) if args.out else Path(args.model) / "exports" / args.format
    if args.out and folder.exists():
        raise UserError(f"--out: {folder} is there already; name a new folder, nothing is written over")
    model = pictures.load_model(args.model, None, "cpu", "float32", args.base)
    with replaced(folder) as beside:
        write_as(form, model.family, card, beside, args.dtype)
    for path in sorted(folder.rglob("*.safetensors")):
        print(path)
    return 0
