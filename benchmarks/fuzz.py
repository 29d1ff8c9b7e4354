"""Junk in every file that a user feeds in, as many as one likes: nothing may come of it but an error of ours.

    python benchmarks/fuzz.py --seed 0 --examples 100000
    python benchmarks/fuzz.py --seed 1 --examples 5000 --only pictures states

Kinds and promises are in tests/fuzzing.py: no traceback, no hang beyond 10 s of computing, no 2 GB, and no wrong result
taken for right. Hypothesis makes an input that breaks one as small as it can, and prints it; then comes the next kind.
A seed gives the same inputs again. Prints counts by kind; exits with 1 where anything was found.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from fuzzing import fuzz, make_kinds  # noqa: E402
from tiny import make_tiny_base  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--only", nargs="*", metavar="KIND", help="beginnings of the kinds' names")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = tried = 0
    with tempfile.TemporaryDirectory() as folder:
        kinds = make_kinds(make_tiny_base(Path(folder) / "base"), Path(folder))
        for name, kind in kinds.items():
            if args.only and not name.startswith(tuple(args.only)):
                continue
            started, examples = time.monotonic(), max(1, round(kind.share * args.examples))
            try:
                own, taken = fuzz(kind, examples, args.seed)
            except BaseException as error:  # whatever it is: this is what is looked for
                if isinstance(error, KeyboardInterrupt):
                    raise
                found += 1
                traceback.print_exc()
                print(f"{name}: FOUND {type(error).__name__}", flush=True)
                continue
            tried += own
            print(f"{name}: {own} tried, {taken} taken, {time.monotonic() - started:.0f} s", flush=True)
    print(f"{tried} inputs tried; in {found} kinds something was found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
