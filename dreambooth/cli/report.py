"""`report RUN`: write the run's report.html again, from what is in its folder now."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="run folder, e.g. checkpoints/my-dog")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the file to write (default RUN/report.html)")


def run(args: argparse.Namespace) -> int:
    from dreambooth.report import build

    print(build(args.run_folder, args.out))
    return 0
