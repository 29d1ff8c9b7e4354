"""`export RUN --format NAME`: a result as other tools want it, with a model card, and on the hub if wished."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.errors import UserError

if TYPE_CHECKING:
    from dreambooth.export.subject_info import ExportCard
    from dreambooth.families import Family


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
    parser.add_argument(
        "--rank",
        type=int,
        metavar="R",
        help="for lora and kohya of a run whose method has no LoRA, such as full: extract one of this rank",
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
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the folder to this model repository")
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: a new repository is private")


def run(args: argparse.Namespace) -> int:
    from dreambooth.export import hub, model_card
    from dreambooth.export.formats import find_format, write_as
    from dreambooth.export.history import read_history
    from dreambooth.files import atomic_folder
    from dreambooth.generation import images

    card = images.find_card(args.model)
    if card is None:
        raise UserError(f"{args.model}: no result of a run (it has no dreambooth.json), so there is nothing to export")
    form = find_format(args.format, card.method, args.rank)
    folder = check_arguments(args)
    history = read_history(Path(args.model), card)
    family, card = learned(args, replace(card, settings=history.settings or None))
    with atomic_folder(folder) as beside:
        write_as(form, family, card, beside, args.dtype)
        model_card.write(beside, args.format, family, card, history, args.push_to_hub)
    for path in sorted(folder.rglob("*.safetensors")):
        print(path)
    if args.push_to_hub:
        print(hub.push(folder, args.push_to_hub, args.private))
    return 0


def check_arguments(args: argparse.Namespace) -> Path:
    """The folder to write. Raises UserError for one that is there already, and for what the hub would refuse."""
    from dreambooth.export import hub

    folder = Path(args.out) if args.out else Path(args.model) / "exports" / args.format
    if args.out and folder.exists():
        raise UserError(f"--out: {folder} is there already; name a new folder, nothing is written over")
    if args.private and not args.push_to_hub:
        raise UserError("--private: says how --push-to-hub makes a repository; name one, or leave it out")
    if args.push_to_hub:
        hub.check(args.push_to_hub)
    return folder


def learned(args: argparse.Namespace, card: "ExportCard") -> "tuple[Family, ExportCard]":
    """The model, with --rank as a LoRA over its base, and what it is."""
    from dreambooth.export import extraction
    from dreambooth.generation import images

    base = extraction.load_base(card, args.base) if args.rank is not None else None
    family = images.load_model(args.model, None, "cpu", "float32", args.base).family
    if base is None:
        return family, card
    extracted, kept = extraction.extract(family, base, card, args.rank)
    print(f"rank {args.rank}: {kept}", file=sys.stderr)
    for before, after in zip(card.subjects, extracted.subjects, strict=True):
        if before.identifier != after.identifier:
            print(f"the identifier {before.identifier!r} is the word {after.identifier!r} now", file=sys.stderr)
    return base, extracted
