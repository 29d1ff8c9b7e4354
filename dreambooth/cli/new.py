"""`new FOLDER --class NOUN`: a commented config for a folder of photos, and the crops that training will see."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.cli import loading_libraries
from dreambooth.disk import GIB, size_in_words
from dreambooth.errors import UserError
from dreambooth.hints import command_line

if TYPE_CHECKING:
    from dreambooth.preflight.costs import Costs

BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", metavar="FOLDER", help="folder with 3 to 10 photos of the subject")
    parser.add_argument(
        "--class", dest="class_noun", metavar="NOUN", required=True, help="what kind of thing it is: dog, backpack ..."
    )
    parser.add_argument(
        "--base", metavar="MODEL", default=BASE, help=f"hub id, folder or single .safetensors (default {BASE})"
    )
    parser.add_argument(
        "--identifier", metavar="WORD", default="sks", help="rare word that will mean the subject (default sks)"
    )
    parser.add_argument("--memory", type=float, metavar="GIB", help="what there is (default: what this device has)")
    parser.add_argument("--out", metavar="FILE", help="where the config goes (default configs/<name of FOLDER>.yaml)")


def run(args: argparse.Namespace) -> int:
    memory = memory_bytes(args.memory)
    photos = Path(args.photos)
    out = Path(args.out or Path("configs", f"{photos.resolve().name}.yaml"))
    if out.exists():
        raise UserError(f"{out}: is there already; name another file with --out, or remove it")
    with loading_libraries():
        from dreambooth.generation.request import write_png
        from dreambooth.preflight.new_config import write_new_config
        from dreambooth.proposal.draft import Request

    made = write_new_config(Request(photos, args.class_noun, args.base, args.identifier, out, memory))
    crops = write_png(Path("outputs", f"{out.stem}-crops.png"), made.crops, {})
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{out}: {made.found}; the crops that training will see: {crops}")
    if made.costs is not None:
        print(costs_in_words(made.costs))
    print(f"train: {command_line('train', str(out))}")
    return 0


def memory_bytes(gib: float | None) -> int | None:
    """Return what --memory says in bytes. Raises UserError for what is no size."""
    if gib is None:
        return None
    if gib * GIB < 1:
        raise UserError(f"--memory: {gib} is too small; write GiB, e.g. 8")
    if not math.isfinite(gib * GIB):
        raise UserError(f"--memory: {gib} is no size; write GiB, e.g. 8")
    return int(gib * GIB)


def costs_in_words(costs: "Costs") -> str:
    memory, disk = size_in_words(costs.memory.total), size_in_words(sum(costs.disk.largest.values()))
    return f"takes {memory} of memory, {disk} of disk; time: {costs.time}"
