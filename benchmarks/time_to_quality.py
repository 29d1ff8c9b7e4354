"""Seconds until a subject is learned: our training beside diffusers' own script, on the toy world.

    python benchmarks/time_to_quality.py --diffusers CHECKOUT --pythonpath TORCHVISION --cpus 0

Both learn the laboratory's subjects from five photos on the base of an edition of the toy world with prior
preservation, in float32, each a process of its own on the same cores, in turns. Ours: configs/toyworld.yaml as it is,
but that it keeps its weights every --every steps, and draws and scores one image. diffusers': its defaults, and a
small grid of what its options can be fitted to this base with: the learning rate, with the text encoder, without a
warm-up. Class pictures are made by each as it does by default, and count. Every kept model is judged by the
renderer's truth, which is outside the clock: how much of the way from others of its class to the subject, the place
in the prompt, the class prompt's diversity beside the untouched base's. A model is good from .8, .95 and .9 on.
Seconds are the process's own on its cores, so that other work beside it counts little.

Writes DIR/SUBJECT/SIDE/points.json, DIR/curves.png and two tables; a side that lies in DIR already is not run again.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from side_by_side import KEEP_FREED, script

from dreambooth.generation.models.loading import load_model
from dreambooth.generation.settings import SamplerSettings
from dreambooth.step_models import model_at_step
from toyworld import world
from toyworld.editions import EDITIONS, Edition
from toyworld.lab.experiments import FIRST_BASE, SUBJECTS, Subject
from toyworld.lab.measure import others, renderings
from toyworld.lab.metrics import fraction_of_range
from toyworld.outcome import UNSEEN_PLACES, Judge, draw, judged, load_judge, mean_distance
from toyworld.photos import photos
from toyworld.scenes import PHRASES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CONFIG = ROOT / "configs/toyworld.yaml"
SAMPLER = SamplerSettings(6, 4.0, scheduler="unipc")  # draws what 20 steps of DDIM draw
GOOD = {"way": 0.8, "place": 0.95, "diversity": 0.9}
GRID: dict[str, dict[str, Any]] = {  # the script's sides, by the options that are not its defaults
    "diffusers' defaults": {},
    **{
        f"diffusers', lr {rate:g}": {"learning_rate": rate, "lr_warmup_steps": 0, "train_text_encoder": None}
        for rate in (1e-4, 4e-4, 1.6e-3)
    },
}


@dataclass(frozen=True, eq=False)
class World:
    """Hold what both sides learn on, and who judges them. overrides: what differs from the config on this base."""

    edition: Edition
    base: Path
    judge: Judge
    overrides: tuple[str, ...]


def world_of(name: str) -> World:
    """Return the world of an edition: "first" or "second"."""
    base = ROOT / ("checkpoints/toyworld" if name == "first" else "checkpoints/toyworld-second")
    return World(EDITIONS[name], base, load_judge(base / "judge"), FIRST_BASE if name == "first" else ())


@dataclass(frozen=True)
class Point:
    """Hold what a model is worth after so many steps, which took so many CPU seconds from the process's start."""

    step: int
    seconds: float
    way: float
    place: float
    diversity: float


def main() -> None:
    args = parse()
    torch.set_num_threads(1)  # for so small networks faster than two
    one = world_of(args.edition)
    found = {str(subject): sides_of(subject, one, args) for subject in chosen(args.subjects)}
    draw_curves(found, args.out / "curves.png")
    for subject, sides in found.items():
        print(f"\n{subject}\n\n{table(sides)}")
    print(f"\n{summary(found)}")


def chosen(class_nouns: str) -> list[Subject]:
    """Return the laboratory's subjects of these classes."""
    by_noun = {subject.class_noun: subject for subject in SUBJECTS}
    unknown = [noun for noun in class_nouns.split(",") if noun not in by_noun]
    if unknown:
        sys.exit(f"--subjects: {', '.join(unknown)} is not among {', '.join(by_noun)}")
    return [by_noun[noun] for noun in class_nouns.split(",")]


def sides_of(subject: Subject, one: World, args: argparse.Namespace) -> dict[str, list[Point]]:
    """Return what each side's models of a subject are worth; trains and judges those that do not lie there yet."""
    folder = args.out.absolute() / f"{subject.class_noun}-{args.seed}"
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(photos(subject.class_noun, subject.seed, edition=one.edition)):
        image.save(folder / "photos" / f"{number:02d}.png")
    found = {}
    for name, own in {"ours": None, **GRID}.items():
        work = folder / "".join(letter if letter.isalnum() or letter == "." else "-" for letter in name)
        points = work / "points.json"
        if not points.is_file():
            command = (
                our_command(subject, work, one, args) if own is None else peer_command(subject, work, own, one, args)
            )
            seconds = run(command, work, args)
            models = ours_by_step(work, args) if own is None else peers_by_step(work, one, args)
            measured = [asdict(measure(subject, n, seconds[n], model, one)) for n, model in models.items()]
            points.write_text(json.dumps(measured, indent=1))
        found[name] = [Point(**each) for each in json.loads(points.read_text())]
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers", type=Path, required=True, help="a checkout of huggingface/diffusers")
    parser.add_argument("--pythonpath", default="", help="where torchvision lies, which the script needs")
    parser.add_argument(
        "--subjects", default="robot,dog,backpack", help="class nouns of the laboratory's subjects, with commas between"
    )
    parser.add_argument("--edition", choices=("first", "second"), default="second", help="of the toy world")
    parser.add_argument("--seed", type=int, default=0, help="of both sides' trainings")
    parser.add_argument("--steps", type=int, default=480, help="of diffusers' script; ours takes its config's")
    parser.add_argument(
        "--every", type=int, default=40, help="steps from one judged model to the next; must divide both"
    )
    parser.add_argument("--cpus", default="0", help='pin both to these cores, e.g. "0"')
    parser.add_argument("--out", type=Path, default=Path("outputs/time-to-quality"))
    return parser.parse_args()


def our_command(subject: Subject, work: Path, one: World, args: argparse.Namespace) -> list[str]:
    settings = {
        "run.name": "run",
        "run.dir": work,
        "run.seed": args.seed,
        "subject.images": work.parent / "photos",
        "subject.class_noun": subject.class_noun,
        "validate.every_steps": args.every,
        "validate.keep_weights": "true",
        "validate.prompts": f'["a photo of {{subject}} {PHRASES[UNSEEN_PLACES[0]][0]}"]',
        "validate.num_images": 1,
        "validate.dino": "null",
    }
    own = (f"{key}={value}" for key, value in settings.items())
    return [str(ROOT / "train.py"), str(CONFIG), *one.overrides, *own]


def peer_command(subject: Subject, work: Path, own: dict[str, Any], one: World, args: argparse.Namespace) -> list[str]:
    """Return the script's command line. An option without a value is a flag."""
    options = {
        "pretrained_model_name_or_path": one.base,
        "instance_data_dir": work.parent / "photos",
        "instance_prompt": f"a photo of sks {subject.class_noun}",
        "with_prior_preservation": None,
        "class_data_dir": work / "class",
        "class_prompt": f"a photo of a {subject.class_noun}",
        "output_dir": work / "out",
        "resolution": world.SIZE,
        "max_train_steps": args.steps,
        "checkpointing_steps": args.every,
        "seed": args.seed,
        **own,
    }
    words = [f"--{key}" if value is None else f"--{key}={value}" for key, value in options.items()]
    return [str(script(args.diffusers, "train_dreambooth.py")), *words]


def run(command: list[str], work: Path, args: argparse.Namespace) -> dict[int, float]:
    """Run a script to its end, unless it has, and return its CPU seconds at the end of each optimizer step."""
    if (work / "ended").is_file():
        return seconds_of(work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    cpus = {int(number) for number in args.cpus.split(",")}
    threads = {"OMP_NUM_THREADS": str(len(cpus)), "MKL_NUM_THREADS": str(len(cpus))}
    is_ours = command[0].startswith(str(ROOT))
    env = {**os.environ, **threads, **KEEP_FREED, "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = str(ROOT) if is_ours else args.pythonpath
    events = work / "events.jsonl"
    with open(work / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "timed.py"), str(events), *command], env=env, cwd=ROOT, stdout=log, stderr=log
        )
        os.sched_setaffinity(process.pid, cpus)
        if process.wait():
            sys.exit(f"{command[0]} failed: see {work / 'log.txt'}")
    (work / "ended").touch()
    return seconds_of(work)


def seconds_of(work: Path) -> dict[int, float]:
    ends = [json.loads(line)["cpu_seconds"] for line in (work / "events.jsonl").read_text().splitlines()]
    return dict(enumerate(ends, start=1))


def ours_by_step(work: Path, args: argparse.Namespace) -> dict[int, Path]:
    """Return a pipeline for each step whose weights our run has kept."""
    folders = sorted((work / "run" / "steps").iterdir())
    steps = sorted({int(folder.name.split(".")[0]) for folder in folders})
    return {step: model_at_step(work / "run", step) for step in steps if step % args.every == 0 and step}


def peers_by_step(work: Path, one: World, args: argparse.Namespace) -> dict[int, Path]:
    """Return a pipeline for each of the script's checkpoints: the base with the networks that it has trained."""
    found = {}
    for step in range(args.every, args.steps + 1, args.every):
        pipeline, trained = work / "pipelines" / str(step), work / "out" / f"checkpoint-{step}"
        shutil.copytree(one.base, pipeline, ignore=shutil.ignore_patterns("judge"))
        for part in ("unet", "text_encoder"):
            if (trained / part).is_dir():
                shutil.rmtree(pipeline / part)
                shutil.copytree(trained / part, pipeline / part)
        found[step] = pipeline
    return found


@torch.no_grad()
def measure(subject: Subject, step: int, seconds: float, folder: Path, one: World, num_images: int = 6) -> Point:
    """Judge a model by images of the subject in each unseen place, and by as many of the class prompt."""
    noun, judge, edition = subject.class_noun, one.judge, one.edition
    model, spec = load_model(str(folder), "cpu"), edition.subject(noun, subject.seed)
    prompts = [f"a photo of sks {noun} {PHRASES[place][0]}" for place in UNSEEN_PLACES]
    images = [image for prompt in prompts for image in draw(model, prompt, num_images, settings=SAMPLER)]
    of_class = draw(model, f"a photo of a {noun}", len(images), settings=SAMPLER)
    outcome = judged(images, of_class, spec, judge, edition)
    own_ND, other_ND = (judge(drawn(edition, spec)).embedding(noun) for drawn in (renderings, others))
    start, end = float((other_ND @ own_ND.T).mean()), 1 - mean_distance(own_ND)
    return Point(
        step=step,
        seconds=seconds,
        way=fraction_of_range(outcome.subject_similarity, start, end),
        place=outcome.place_right,
        diversity=outcome.class_prompt_diversity / base_diversity(one, noun, len(images)),
    )


@cache
def base_diversity(one: World, noun: str, num_images: int) -> float:
    images = draw(load_model(str(one.base), "cpu"), f"a photo of a {noun}", num_images, settings=SAMPLER)
    return mean_distance(one.judge(images).embedding(noun))


def seconds_until(points: Sequence[Point], names: Sequence[str]) -> float:
    """Return the seconds of the first model that is good in these; infinity if none is."""
    good = (point.seconds for point in points if all(getattr(point, name) >= GOOD[name] for name in names))
    return next(good, math.inf)


def seconds_text(seconds: float) -> str:
    """Return whole seconds, "never" for infinity."""
    return "never" if math.isinf(seconds) else f"{seconds:.0f}"


def table(found: dict[str, list[Point]]) -> str:
    """Return for each side when it is good, and its best model by likeness among those that keep place and class."""
    lines = [
        "| | good after, s | like the subject after, s | way | place | diversity | of step, after s |",
        "|---" * 7 + "|",
    ]
    for name, points in found.items():
        kept = [each for each in points if each.place >= GOOD["place"] and each.diversity >= GOOD["diversity"]]
        best = max(kept or points, key=lambda each: each.way)
        both = " | ".join(seconds_text(seconds_until(points, names)) for names in ([*GOOD], ["way"]))
        values = f"{best.way:.2f} | {best.place:.2f} | {best.diversity:.2f} | {best.step}, {best.seconds:.0f}"
        lines.append(f"| {name} | {both} | {values} |")
    return "\n".join(lines)


def summary(found: dict[str, dict[str, list[Point]]]) -> str:
    """Return how much sooner ours is like each subject, also in its place, and good in all three, than the script."""
    lines = [
        "| ours, the script at its best, ratio | like the subject | and in its place | and the class as diverse |",
        "|---" * 4 + "|",
    ]
    for subject, sides in found.items():
        cells = []
        for names in (["way"], ["way", "place"], [*GOOD]):
            ours, *theirs = (seconds_until(points, names) for points in sides.values())
            best = min(theirs)
            ratio = f"{best / ours:.1f}" if math.isfinite(best) and math.isfinite(ours) else "none"
            cells.append(f"{seconds_text(ours)}, {seconds_text(best)}, {ratio}")
        lines.append(f"| {subject} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_curves(found: dict[str, dict[str, list[Point]]], path: Path) -> None:
    figure, rows = plt.subplots(
        len(found), len(GOOD), figsize=(12, 0.6 + 3 * len(found)), layout="constrained", squeeze=False
    )
    titles = ("of the way to the subject", "place right", "diversity of the class, base's = 1")
    for axes, (subject, sides) in zip(rows, found.items(), strict=True):
        for axis, (name, least), title in zip(axes, GOOD.items(), titles, strict=True):
            for side, points in sides.items():
                axis.plot(
                    [each.seconds for each in points], [getattr(each, name) for each in points], "o-", label=side, ms=3
                )
            axis.axhline(least, color="0.6", lw=1, ls="--")
            axis.set(xlabel="CPU seconds", title=f"{subject}: {title}", ylim=(-0.05, 1.15))
    labels = rows[0][0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=len(labels[1]), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
