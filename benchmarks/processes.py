"""Measure what several processes cost: step time of 1 and 2 on this machine for the same batch, and what a step sends.

    python benchmarks/processes.py configs/toyworld.yaml --batch-size 4 --steps 20 --rounds 3

The same pictures a step each time, divided among the processes, one thread a process; in turns. On a machine with two
cores two processes share what one has alone: this is the cost of dividing, not what GPUs gain.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
WAYS = {"1 process": (1, "auto"), "2, ddp": (2, "ddp"), "2, fsdp": (2, "fsdp")}
QUIET = ("validate.every_steps=0", "prior.source=none", "train.num_threads=1", "log.tensorboard=false")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--batch-size", type=int, default=4, help="pictures a step, of all processes")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    steps: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for way in WAYS:
                steps[way].append(median_step(args, way, Path(folder) / f"{number}-{way}"))
                print(f"round {number + 1}, {way}: {steps[way][-1]:.3f} s", file=sys.stderr, flush=True)
        sent = trained_bytes(Path(folder) / "0-1 process" / "run" / "state" / "last.ckpt")
    print("| | step, s | beside 1 process |\n|---|---|---|")
    for way, seconds in steps.items():
        ratios = sorted(mine / alone for mine, alone in zip(seconds, steps["1 process"], strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f})"
        print(f"| {way} | {statistics.median(seconds):.3f} | {spread} |")
    print(f"\ntrained weights: {sent / 2**20:.1f} MiB. In a step ddp reduces as many bytes of gradients over all;")
    print("fsdp gathers the weights before forward and backward and scatters the gradients, three times as many.")


def median_step(args: argparse.Namespace, way: str, folder: Path) -> float:
    """Return the seconds from the end of one optimizer step to the end of the next, in the first process."""
    devices, strategy = WAYS[way]
    folder.mkdir(parents=True)
    settings = [f"run.dir={folder}", "run.name=run", f"train.max_steps={args.steps}", f"train.devices={devices}"]
    settings += [f"train.batch_size={args.batch_size // devices}", f"train.strategy={strategy}", *QUIET]
    settings += ["optim.identifier_lr=null"]  # fsdp has none
    command = [str(ROOT / "benchmarks" / "timed.py"), str(folder / "events.jsonl"), str(ROOT / "train.py"), args.config]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command, *settings], env=env, check=True, stdout=subprocess.DEVNULL)
    ends = [json.loads(line)["seconds"] for line in (folder / "events.jsonl").read_text().splitlines()]
    return statistics.median([later - earlier for earlier, later in pairwise(ends)][1:])


def trained_bytes(state: Path) -> int:
    weights = torch.load(state, weights_only=True, mmap=True)["state_dict"].values()
    return sum(weight.numel() * weight.element_size() for weight in weights)


if __name__ == "__main__":
    main()
