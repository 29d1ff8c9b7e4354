"""Settings that say `auto` beside nine that were picked by hand, on eleven toy subjects that no rule was made on.

    python benchmarks/automatic_settings.py --work checkpoints/automatic-second

Writes photos and a sweep file into the folder, trains what is not finished (110 runs of about two CPU minutes), and
prints a table: the quality of each subject with each setting, and `auto` beside the best of the nine. Interrupted, the
same command goes on. `--plan` says only what it would cost. `--subjects` takes some of the eleven, so that two
processes share them, each with its own `--work`; `--table` then prints one table of both.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import cast

import yaml

from dreambooth.cli import main as dreambooth
from dreambooth.proposal.rules import RULES
from dreambooth.sweep.reading import load_sweep
from dreambooth.sweep.results import read_cell
from toyworld.editions import SECOND
from toyworld.photos import photos

SEED = 30  # the laboratory's subjects have seeds below 10
RATES, STEPS = (2.0e-4, 4.0e-4, 8.0e-4), (120, 240, 480)
SWEEP, AUTO = "automatic.yaml", "auto"
GOAL = 0.95  # of the best of nine


def write_photos(work: Path, nouns: Sequence[str]) -> None:
    """Write five photos of a subject of each class, and the classes as a sweep reads them."""
    for noun in nouns:
        folder = work / "photos" / noun
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(photos(noun, SEED, edition=SECOND)):
            image.save(folder / f"{number}.png")
    (work / "photos" / "prompts.yaml").write_text(yaml.safe_dump({"classes": {noun: noun for noun in nouns}}))


def write_sweep(work: Path) -> Path:
    """Write the sweep of ten settings and eleven subjects, and return its file."""
    variants = {AUTO: dict.fromkeys(RULES, "auto")}
    variants |= {
        f"lr {rate:g}, {steps} steps": {"optim.lr": rate, "train.max_steps": steps} for rate in RATES for steps in STEPS
    }
    sweep = {"name": "automatic", "dir": str(work), "config": "configs/toyworld.yaml"}
    content = {"sweep": sweep, "subjects": {"folder": str(work / "photos")}, "variants": variants}
    path = work / SWEEP
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def read_qualities(works: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Return the quality of each setting of each subject whose ten runs are finished."""
    found: dict[str, dict[str, float | None]] = {}
    for work in works:
        sweep = load_sweep(work / SWEEP)
        for result in (read_cell(sweep, cell) for cell in sweep.cells(sweep.grid())):
            found.setdefault(result.cell.subject_name, {})[result.setting] = result.quality
    whole = {subject: own for subject, own in found.items() if None not in own.values()}
    for subject in found.keys() - whole.keys():
        print(f"{subject}: not finished")
    if not whole:
        raise SystemExit("no subject has all its runs; the same command goes on")
    return cast(dict[str, dict[str, float]], whole)


def table(qualities: dict[str, dict[str, float]]) -> str:
    """Return a table of each subject's qualities, of their means, and of how near `auto` is to the best of the nine."""
    means = {each: mean(own[each] for own in qualities.values()) for each in next(iter(qualities.values()))}
    lines = [f"| subject | {' | '.join(means)} | auto to the best |", "|---" * (len(means) + 2) + "|"]
    ratios = []
    for subject, own in (*qualities.items(), ("mean", means)):
        best = max(quality for setting, quality in own.items() if setting != AUTO)
        ratios.append(own[AUTO] / best)
        shown = [f"**{quality:.2f}**" if quality == best else f"{quality:.2f}" for quality in own.values()]
        lines.append(f"| {subject} | {' | '.join(shown)} | {ratios[-1]:.2f} |")
    near = sum(ratio >= GOAL for ratio in ratios[:-1])
    return "\n".join([*lines, "", f"{near} of {len(qualities)} subjects within 5 % of the best of nine settings"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("checkpoints/automatic-second"))
    parser.add_argument(
        "--subjects", nargs="+", default=SECOND.classes, choices=SECOND.classes, metavar="CLASS", help="(all)"
    )
    parser.add_argument("--plan", action="store_true", help="say what it would cost, and train nothing")
    parser.add_argument("--table", nargs="+", type=Path, metavar="WORK", help="print the table of these; train nothing")
    args = parser.parse_args()
    if args.table:
        print(table(read_qualities(args.table)))
        return
    write_photos(args.work, args.subjects)
    path = write_sweep(args.work)
    code = dreambooth(["sweep", str(path), *(["--plan"] if args.plan else [])])
    if code:
        raise SystemExit(code)
    if not args.plan:
        print(table(read_qualities([args.work])))


if __name__ == "__main__":
    main()
