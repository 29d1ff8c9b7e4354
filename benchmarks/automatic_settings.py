"""Settings that say `auto` beside nine that were picked by hand, on ten toy subjects that no rule was made on.

    python benchmarks/automatic_settings.py --work checkpoints/automatic

Writes photos and a sweep file into the folder, trains what is not finished (100 runs of about two CPU minutes), and
prints a table: the quality of each subject with `auto`, with the best of the nine, and the ratio. Interrupted, the same
command goes on. `--plan` says only what it would cost. `--subjects` takes some of the ten, so that two processes share
them, each with its own `--work`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from dreambooth.cli import main as dreambooth
from dreambooth.proposal.rules import RULES
from dreambooth.sweep.reading import load_sweep
from dreambooth.sweep.results import read_cell
from toyworld import world
from toyworld.photos import photos

SEED = 30  # the laboratory's subjects have seeds below 10
RATES, STEPS = (2.0e-4, 4.0e-4, 8.0e-4), (120, 240, 480)
GOAL = 0.95  # of the best of nine


def write_photos(work: Path, nouns: Sequence[str]) -> None:
    """Write five photos of a subject of each class, and the classes as a sweep reads them."""
    for noun in nouns:
        folder = work / "photos" / noun
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(photos(noun, SEED)):
            image.save(folder / f"{number}.png")
    (work / "photos" / "prompts.yaml").write_text(yaml.safe_dump({"classes": {noun: noun for noun in nouns}}))


def write_sweep(work: Path) -> Path:
    """Write the sweep of ten settings and ten subjects, and return its file."""
    variants = {"auto": dict.fromkeys(RULES, "auto")}
    variants |= {
        f"lr {rate:g}, {steps} steps": {"optim.lr": rate, "train.max_steps": steps} for rate in RATES for steps in STEPS
    }
    sweep = {"name": "automatic", "dir": str(work), "config": "configs/toyworld.yaml"}
    content = {"sweep": sweep, "subjects": {"folder": str(work / "photos")}, "variants": variants}
    path = work / "automatic.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def print_table(path: Path) -> None:
    sweep = load_sweep(path)
    results = [read_cell(sweep, cell) for cell in sweep.cells(sweep.grid())]
    print("| subject | auto | best of nine | its setting | ratio |\n|---|---|---|---|---|")
    ratios = []
    for subject in dict.fromkeys(each.cell.subject_name for each in results):
        own = {each.setting: each.quality for each in results if each.cell.subject_name == subject}
        auto = next((quality for setting, quality in own.items() if setting.startswith("auto")), None)
        others = {setting: quality for setting, quality in own.items() if not setting.startswith("auto") and quality}
        if auto is None or not others:
            print(f"| {subject} | not finished | | | |")
            continue
        best = max(others, key=lambda setting: others[setting])
        ratios.append(auto / others[best])
        print(f"| {subject} | {auto:.2f} | {others[best]:.2f} | {best} | {ratios[-1]:.2f} |")
    print(f"\n{sum(ratio >= GOAL for ratio in ratios)} of {len(ratios)} subjects within 5 % of the best of nine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("checkpoints/automatic"))
    parser.add_argument(
        "--subjects", nargs="+", default=list(world.CLASSES), choices=list(world.CLASSES), metavar="CLASS", help="(all)"
    )
    parser.add_argument("--plan", action="store_true", help="say what it would cost, and train nothing")
    args = parser.parse_args()
    write_photos(args.work, args.subjects)
    path = write_sweep(args.work)
    code = dreambooth(["sweep", str(path), *(["--plan"] if args.plan else [])])
    if code:
        raise SystemExit(code)
    if not args.plan:
        print_table(path)


if __name__ == "__main__":
    main()
