"""`clean RUN [RUN ...]`: the files that a run can do without, with their sizes; --yes removes them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.cli import loading_libraries
from dreambooth.disk import size_in_words
from dreambooth.generation.models.location import check_is_there

if TYPE_CHECKING:
    from dreambooth.run.cleaning import Cleaning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folder, e.g. checkpoints/my-dog")
    parser.add_argument("--yes", action="store_true", help="remove what is listed (default: list it only)")
    parser.add_argument(
        "--all",
        action="store_true",
        help="of a finished run also the states, class latents and weights of validations: its model stays, but it can "
        "no longer be made longer",
    )


def run(args: argparse.Namespace) -> int:
    for folder in args.runs:
        check_is_there(str(folder))
    with loading_libraries():
        from dreambooth.run.cleaning import opened_run, plan_cleaning, remove
        from dreambooth.run.lock import RunLock

    for folder in args.runs:
        run_folder, config = opened_run(folder)
        with RunLock(run_folder):
            cleaning = plan_cleaning(run_folder, config, args.all)
            text = table(folder, cleaning, args.yes, args.all)
            if args.yes:
                remove(run_folder, cleaning.found)
            print(text)
    return 0


def table(folder: Path, cleaning: "Cleaning", is_removed: bool, takes_all: bool) -> str:
    """Return what can go, a line each, the sum, and what to do next."""
    lines = [f"{folder}: {cleaning.progress}"]
    for each in cleaning.found:
        lines.append(f"  {size_in_words(each.num_bytes):>9}  {name_in(folder, each.path)}: {each.reason}")
    if not cleaning.found:
        lines.append("  nothing to free")
    elif is_removed:
        lines.append(f"  {size_in_words(cleaning.num_bytes)} freed")
    else:
        lines.append(f"  {size_in_words(cleaning.num_bytes)} would be freed; add --yes to remove them")
    if cleaning.is_finished and not takes_all:
        lines.append("  --all frees its states as well: the model stays, but the run can no longer be made longer")
    return "\n".join(lines)


def name_in(folder: Path, path: Path) -> str:
    """Return a path as it is named within the run's folder."""
    return str(path.relative_to(folder.resolve()))
