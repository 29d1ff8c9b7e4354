"""Measure what grows with what: step time, memory and start-up of the demo's training, one thing changed at a time.

    python benchmarks/growth.py --out outputs/growth

Every point is a run of its own on the embedded base, one thread, all weights, without validation, with four class
pictures unless their number is what changes: the median of its steps but the first two, when the first one ended, and
the peak that the system counts for the process. The last line is of one long run. A table a curve and a picture of all.
Some ten minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
PICTURES = "subject pictures"  # not a key: the folder holds so many
CURVES: dict[str, tuple[int, ...]] = {
    "data.resolution": (32, 64, 96, 128, 192),
    "train.batch_size": (1, 2, 4, 8, 16),
    PICTURES: (3, 30, 300, 1000),
    "prior.num_images": (4, 64, 1000),
}
LONG_RUN = 2000  # steps


@dataclass(frozen=True)
class Point:
    """Hold the costs of one run: seconds, MiB."""

    step: float
    first_step: float
    memory: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/growth"))
    parser.add_argument("--steps", type=int, default=12, help="of each run")
    parser.add_argument("--long-run", type=int, default=LONG_RUN, help="steps of the long run")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    curves = {}
    for key, values in CURVES.items():
        curves[key] = {value: measure(settings_of(key, value, args.out), args.steps)[0] for value in values}
        print(table(key, curves[key]), flush=True)
    print(long_run(args.long_run))
    draw(curves, args.out / "growth.png")


def settings_of(key: str, value: int, work: Path) -> list[str]:
    if key != PICTURES:
        return [f"{key}={value}"]
    folder = work / f"pictures-{value}"
    if not folder.is_dir():
        options = f"toyworld subject --class robot --seed 21 --count {value} --out {folder}".split()
        subprocess.run([sys.executable, "-m", "dreambooth", *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return [f"subject.images={folder.resolve()}"]


def measure(settings: list[str], steps: int) -> tuple[Point, list[float]]:
    """Return what the run took, and when each step ended, seconds."""
    with tempfile.TemporaryDirectory() as work:
        events = Path(work) / "events.jsonl"
        common = (
            f"run.dir={work} train.batch_size=1 prior.source=stream prior.num_images=4 validate.every_steps=0 "
            f"log.tensorboard=false train.max_steps={steps} train.save_every_steps={steps}"
        ).split()
        command = [str(ROOT / "benchmarks" / "timed.py"), str(events), "train.py", "configs/toyworld.yaml"]
        process = subprocess.Popen(
            [sys.executable, *command, *common, *settings], cwd=ROOT, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"train.py failed with {settings}")
        ends = [json.loads(line)["seconds"] for line in events.read_text().splitlines()]
    times = [later - earlier for earlier, later in pairwise(ends)]
    return Point(statistics.median(times[1:]), ends[0], usage.ru_maxrss / 2**10), times


def table(key: str, points: dict[int, Point]) -> str:
    rows = [f"| {key} | step, ms | first step ends after, s | peak memory, MiB |", "|---|---|---|---|"]
    for value, point in points.items():
        rows.append(f"| {value} | {1000 * point.step:.0f} | {point.first_step:.1f} | {point.memory:.0f} |")
    return "\n".join([*rows, ""])


def long_run(steps: int) -> str:
    """Show whether the last steps of a long run cost what the first ones do."""
    _, times = measure(["data.resolution=32", "prior.source=none", "log.tensorboard=true"], steps)
    tenth = len(times) // 10
    first, last = (1000 * statistics.median(part) for part in (times[2 : 2 + tenth], times[-tenth:]))
    return (
        f"A run of {steps} steps (32 pixels, no prior, TensorBoard): its first tenth takes {first:.1f} ms a step, "
        f"its last {last:.1f} ms.\n"
    )


def draw(curves: dict[str, dict[int, Point]], path: Path) -> None:
    figure, axes = plt.subplots(2, len(curves), figsize=(4 * len(curves), 6), layout="constrained")
    for column, (key, points) in enumerate(curves.items()):
        for row, (name, unit) in enumerate((("step", "seconds a step"), ("memory", "peak memory, MiB"))):
            axis = axes[row][column]
            heights = [getattr(point, name) for point in points.values()]
            axis.plot(list(points), heights, "o-")
            axis.set(xlabel=key, ylabel=unit, ylim=(0, 1.1 * max(heights)))
            axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
