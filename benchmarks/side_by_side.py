"""Our training and diffusers' own script, the same work, in turns on the same cores: step time and memory.

    python benchmarks/side_by_side.py --diffusers CHECKOUT --model FOLDER --pictures FOLDER --class-pictures FOLDER \
        --method lora --resolution 256 --steps 8 --rounds 3 --cpus 0

Like for like: the same model, pictures, prompts and sizes, batch 1 + 1, the same precision, no saves, no validation;
class pictures that are there already, or with --class-images as many made first by both, by the base's sampler in 50
steps as the script does it; then one more column has ours make them as it does unless told otherwise: while it trains,
in fewer sampler steps, no more than the run uses. Each --ours is a column of ours with further settings.
Both run with glibc told to keep what tensors let go of, which ours tells it on a CPU by itself.
A step is the time from the end of one optimizer step to the end of the next, the median; the first two do not count.
Memory is the peak of torch's tensors on a GPU; else of what the system counts for the process, files that it maps
included. diffusers' script needs torchvision: --pythonpath names a folder that has it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from dreambooth.generation.settings import SCHEDULERS

HERE = Path(__file__).resolve().parent
PROMPT, CLASS_PROMPT = "a photo of sks dog", "a photo of a dog"
RANK = 4  # the script's default
KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}  # as `devices.keep_freed_memory`


@dataclass(frozen=True)
class Outcome:
    """Hold the costs of one process. Seconds; GiB."""

    step: float
    first_step: float
    total: float
    memory: float


def main() -> None:
    args = parse()
    sides = columns(args)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for name, command in sides.items():
                work = Path(tempfile.mkdtemp(dir=folder))
                outcomes[name].append(measure(command(work), work, args))
                shutil.rmtree(work)
                print(f"round {number + 1}, {name}: {outcomes[name][-1]}", file=sys.stderr, flush=True)
    print(table(outcomes, args))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers", type=Path, required=True, help="a checkout of huggingface/diffusers")
    parser.add_argument("--model", required=True, help="pipeline folder")
    parser.add_argument("--pictures", required=True, help="folder of the subject's pictures")
    prior = parser.add_mutually_exclusive_group(required=True)
    prior.add_argument("--class-pictures", type=Path, help="folder of pictures of the class")
    prior.add_argument("--class-images", type=int, metavar="N", help="both make so many")
    parser.add_argument(
        "--ours",
        action="append",
        default=[],
        metavar="'section.key=value ...'",
        help="one more column, of ours with these",
    )
    parser.add_argument("--method", choices=("full", "lora"), default="lora")
    parser.add_argument("--train-text-encoder", action="store_true")
    parser.add_argument("--resolution", type=int, default=256, help="pixels")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps a process; the first two do not count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--cpus", default="", help='pin both to these cores, e.g. "0"')
    parser.add_argument("--pythonpath", default="", help="where torchvision lies")
    return parser.parse_args()


def columns(args: argparse.Namespace) -> dict[str, Callable[[Path], list[str]]]:
    """Return the scripts' command lines in turn, given a folder to work in. The last is diffusers'."""
    sides = {"ours": partial(our_command, args, our_prior(args), "")}
    if args.class_images:
        sides["ours by default"] = partial(our_command, args, {"num_images": args.class_images}, "")
    sides |= {f"ours, {settings}": partial(our_command, args, our_prior(args), settings) for settings in args.ours}
    return {**sides, "diffusers' script": partial(peer_command, args)}


def our_command(args: argparse.Namespace, prior: dict[str, Any], settings: str, work: Path) -> list[str]:
    config = {
        "run": {"name": "run", "dir": str(work)},
        "model": {"base": args.model},
        "subject": {"images": args.pictures, "class_noun": "dog"},
        "data": {"resolution": args.resolution},
        "prior": prior,
        "method": {"name": args.method, "rank": RANK, "train_text_encoder": args.train_text_encoder},
        "train": {
            "max_steps": args.steps,
            "save_every_steps": 10**6,
            "precision": {"fp32": "32-true", "bf16": "bf16-mixed"}[args.precision],
            "gradient_checkpointing": args.gradient_checkpointing,
        },
        "validate": {"every_steps": 0},
        "log": {"tensorboard": False},
    }
    path = work / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return [str(HERE.parent / "train.py"), str(path), *settings.split()]


def our_prior(args: argparse.Namespace) -> dict[str, Any]:
    if args.class_pictures is not None:
        return {"source": "folder", "folder": str(args.class_pictures)}
    sampler = json.loads((Path(args.model) / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    name = next(name for name, (class_name, _) in SCHEDULERS.items() if class_name == sampler)
    return {"source": "ahead", "num_images": args.class_images, "num_inference_steps": 50, "scheduler": name}


def peer_command(args: argparse.Namespace, work: Path) -> list[str]:
    name = {"full": "train_dreambooth.py", "lora": "train_dreambooth_lora.py"}[args.method]
    options = {
        "pretrained_model_name_or_path": args.model,
        "instance_data_dir": args.pictures,
        "instance_prompt": PROMPT,
        "class_data_dir": args.class_pictures or work / "class",
        "class_prompt": CLASS_PROMPT,
        "num_class_images": args.class_images or sum(1 for _ in args.class_pictures.iterdir()),
        "output_dir": work / "out",
        "resolution": args.resolution,
        "train_batch_size": 1,
        "max_train_steps": args.steps,
        "learning_rate": 1e-4 if args.method == "lora" else 2e-6,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 10**6,
        "seed": 0,
        "mixed_precision": {"fp32": "no", "bf16": "bf16"}[args.precision],
    }
    if args.method == "lora":
        options["rank"] = RANK
    flags = ["--with_prior_preservation"]
    flags += ["--train_text_encoder"] if args.train_text_encoder else []
    flags += ["--gradient_checkpointing"] if args.gradient_checkpointing else []
    return [str(script(args.diffusers, name)), *(f"--{key}={value}" for key, value in options.items()), *flags]


def script(checkout: Path, name: str) -> Path:
    path = checkout / "examples" / "dreambooth" / name
    if not path.is_file():
        sys.exit(f"--diffusers: {checkout} has no examples/dreambooth/{name}")
    return path


def measure(command: list[str], work: Path, args: argparse.Namespace) -> Outcome:
    """Run a script to its end. Exits with what it said where it fails."""
    events, log = work / "events.jsonl", work / "log.txt"
    cpus = {int(number) for number in args.cpus.split(",") if number}
    threads = {"OMP_NUM_THREADS": str(len(cpus)), "MKL_NUM_THREADS": str(len(cpus))} if cpus else {}
    own = str(HERE.parent) if command[0].startswith(str(HERE.parent)) else args.pythonpath
    paths = [own, os.environ.get("PYTHONPATH", "")]
    own_env = {**threads, **KEEP_FREED, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    env = {**os.environ, **own_env}
    started = time.perf_counter()
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "timed.py"), str(events), *command], env=env, stdout=file, stderr=file
        )
        if cpus:
            os.sched_setaffinity(process.pid, cpus)
        _, status, usage = os.wait4(process.pid, 0)
    total = time.perf_counter() - started
    if status:
        sys.exit(f"{command[0]} failed:\n{log.read_text()[-3000:]}")
    told = [json.loads(line) for line in events.read_text().splitlines()]
    ends = [event["seconds"] for event in told]
    steps = [later - earlier for earlier, later in pairwise(ends)][1:]
    memory = told[-1]["gpu_bytes"] / 2**30 or usage.ru_maxrss / 2**20
    return Outcome(statistics.median(steps), ends[0], total, memory)


def table(outcomes: dict[str, list[Outcome]], args: argparse.Namespace) -> str:
    """Return medians over the rounds; in brackets the ratio to diffusers' in a round, of several with its extremes."""
    made = f"{args.class_images} class pictures made first, in 50 steps, " if args.class_images else ""
    rows = [
        f"{args.method}{' with text encoder' if args.train_text_encoder else ''}, {args.resolution} px, batch 1 + 1, "
        f"{args.precision}, {args.steps} steps, {made}{args.rounds} rounds in turns; torch {version('torch')}, "
        f"diffusers {version('diffusers')}",
        "",
        f"| | {' | '.join(outcomes)} |",
        f"|---|{'---|' * len(outcomes)}",
    ]
    labels = {"step": "step, s", "first_step": "first step ends after, s", "total": "whole process, s"}
    for name, label in {**labels, "memory": "peak memory, GiB"}.items():
        *ours, theirs = ([getattr(each, name) for each in side] for side in outcomes.values())
        cells = [f"{statistics.median(mine):.2f} ({ratios(mine, theirs)})" for mine in ours]
        rows.append(f"| {label} | {' | '.join(cells)} | {statistics.median(theirs):.2f} |")
    return "\n".join(rows)


def ratios(ours: list[float], theirs: list[float]) -> str:
    """Return the median of the rounds' own, and of several the smallest and largest."""
    found = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
    spread = f"; {found[0]:.2f} – {found[-1]:.2f}" if len(found) > 1 else ""
    return f"{statistics.median(found):.2f}{spread}"


if __name__ == "__main__":
    main()
