"""How long it takes to the demo's first optimizer step and to a first picture, and how much of it is loading libraries.

    python benchmarks/startup.py --rounds 3

Each round starts four processes, one after the other, with one thread: one that only imports what diffusers' script
does, one that imports what training does, the demo up to its first step (with the validation before it), and a picture
of the embedded base. Medians, seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIFFUSERS_SCRIPT = (
    "import torch, accelerate, transformers, diffusers; from diffusers import AutoencoderKL, DDPMScheduler, "
    "DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel; from transformers import CLIPTextModel; "
    "from diffusers.training_utils import compute_snr"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    what = {
        "imports of diffusers' script": lambda: run("-c", DIFFUSERS_SCRIPT),
        "imports of train.py": lambda: run("-c", "import dreambooth.engine"),
        "train.py configs/toyworld.yaml: the first step ends after": first_step,
        "sample.py: one picture, written": first_picture,
    }
    found: dict[str, list[float]] = {name: [] for name in what}
    for _ in range(args.rounds):
        for name, measure in what.items():
            found[name].append(measure())
    print("| | s | |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {statistics.median(seconds):.1f} | {min(seconds):.1f} – {max(seconds):.1f} |")


def run(*arguments: str) -> float:
    """Return the seconds that a Python process takes."""
    started = time.perf_counter()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, check=True, capture_output=True)
    return time.perf_counter() - started


def first_step() -> float:
    with tempfile.TemporaryDirectory() as work:
        events = Path(work) / "events.jsonl"
        run(
            "benchmarks/timed.py",
            str(events),
            "train.py",
            "configs/toyworld.yaml",
            f"run.dir={work}",
            "train.max_steps=1",
        )
        return float(json.loads(events.read_text().splitlines()[0])["seconds"])


def first_picture() -> float:
    with tempfile.TemporaryDirectory() as work:
        return run(
            "sample.py",
            "checkpoints/toyworld-second",
            "a photo of a red dog on the beach",
            "--num-images",
            "1",
            "--out",
            work,
        )


if __name__ == "__main__":
    main()
