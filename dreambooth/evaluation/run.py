"""An evaluation from its arguments to its table. What can be wrong is told before the first picture is made."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from dreambooth.errors import UserError
from dreambooth.evaluation import protocol, rows, tables
from dreambooth.evaluation.models import (
    Cards,
    Loader,
    class_noun_of,
    common_resolution,
    learned_by,
    model_of,
    read_cards,
    reference_card,
)
from dreambooth.evaluation.prompts import AUTO, load_prompts
from dreambooth.evaluation.protocol import Shot, Task, Way
from dreambooth.evaluation.scoring import Scored, real_scores, score_subject
from dreambooth.evaluation.subjects import Subject, subject_of_folder, subjects_of_dataset
from dreambooth.generation.settings import sampler_settings
from dreambooth.metrics.subject import Encoders, load_encoders

NONE = "none"


def evaluate(args: argparse.Namespace, size: tuple[int, int] | None) -> int:
    """Sample what is not there yet, score everything, write and print the table. size: (height, width), if given."""
    out = Path(args.out or Path("outputs") / f"evaluate-{(args.dataset or args.images).resolve().name}")
    load = Loader(args.config, args.device, args.dtype)
    protocol.check_rows(args.models)
    asked = [(subject, load_prompts(args.prompts, subject.is_live)) for subject in _subjects(args)]
    cards = read_cards(_models(args, [subject for subject, _ in asked]), load)
    tasks = [_task(args, subject, prompts, cards) for subject, prompts in asked]
    encoders = _encoders(args)
    way = _way(args, size, cards, load)
    shots, base = _plan(args, tasks, cards, way, out)
    _make(list({shot.path: shot for shot in [*shots, *base]}.values()), load, way)  # the base may be a row as well

    scored, real = _score(encoders, tasks, shots, base)
    every_row = [*rows.our_rows(scored, real), *rows.paper_rows()]
    plain_bases = [row for row in args.models if all(cards[model_of(row, task.subject.name)] is None for task in tasks)]
    report = tables.Report(every_row, tasks, way, encoders.names, plain_bases, args.base)
    files = tables.write(report, scored, out)
    print(tables.markdown(report))
    print("\n".join(map(str, files)))
    return 0


def _subjects(args: argparse.Namespace) -> list[Subject]:
    if args.dataset is not None:
        return subjects_of_dataset(args.dataset, args.subjects, args.class_noun)
    return [subject_of_folder(args.images, args.class_noun)]


def _models(args: argparse.Namespace, subjects: Iterable[Subject]) -> list[str]:
    """Every model that is asked anything: each row's for each subject, and the base."""
    asked = [*args.models, *([args.base] if args.base is not None else [])]
    return list(dict.fromkeys(model_of(row, subject.name) for row in asked for subject in subjects))


def _task(args: argparse.Namespace, subject: Subject, prompts: tuple[str, ...], cards: Cards) -> Task:
    """What is asked about one subject, with a note for what was assumed."""
    own = {model: cards[model] for model in _models(args, [subject])}
    noun = class_noun_of(subject, own)
    for model, card in own.items():
        if card is not None and (learned := learned_by(card, noun)).class_noun != noun:
            _say(f"note: {model} has learned a {learned.class_noun}, {subject.name} is a {noun}")
    if args.prompts == AUTO and subject.is_live is None:
        _say(f"note: whether {subject.name} lives is not known; it gets the prompts for objects (--prompts live)")
    return Task(subject, noun, prompts)


def _encoders(args: argparse.Namespace) -> Encoders:
    dino, clip = (None if name == NONE else name for name in (args.dino, args.clip))
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    encoders = load_encoders(dino, clip, device, args.lpips)
    if args.lpips and encoders.lpips is None:
        raise UserError(
            "--lpips: the package lpips (and torchvision, which it needs) is not installed; or leave it out"
        )
    return encoders


def _way(args: argparse.Namespace, size: tuple[int, int] | None, cards: Cards, load: Loader) -> Way:
    """One way to sample all rows: what was asked for, else what the runs' cards agree on, else the usual."""
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale, "scheduler": args.scheduler}
    given = [name for name, value in {**options, "resolution": size}.items() if value is not None]
    card = reference_card(cards, given)
    if size is None:
        side = card.resolution if card is not None else common_resolution(cards, load)
        size = (side, side)
    settings = sampler_settings(card, args.steps, args.guidance_scale, args.scheduler, args.negative_prompt)
    return Way(settings, size, args.seed, args.num_images, args.class_prompt_images, args.batch_size)


def _plan(
    args: argparse.Namespace, tasks: Sequence[Task], cards: Cards, way: Way, out: Path
) -> tuple[list[Shot], list[Shot]]:
    """The pictures of the rows, and those of the base that drift is measured from."""

    def shots(row: str, task: Task, class_only: bool) -> Iterable[Shot]:
        return protocol.plan(row, task, cards[model_of(row, task.subject.name)], way, out, class_only)

    own = [shot for row in args.models for task in tasks for shot in shots(row, task, class_only=False)]
    base = [shot for task in tasks for shot in shots(args.base, task, class_only=True)] if args.base else []
    return own, base


def _make(shots: Sequence[Shot], load: Loader, way: Way) -> None:
    """Make the pictures that are not there yet; everything that can be wrong with any is told before the first."""
    recipes = protocol.recipes(shots, load, way)
    todo = protocol.missing(shots, recipes)
    num_there = len(shots) - len(todo)
    _say(f"{len(shots)} pictures, {num_there} of them were there already")
    protocol.sample(todo, recipes, load, way, num_there)


def _score(
    encoders: Encoders, tasks: Sequence[Task], shots: Sequence[Shot], base: Sequence[Shot]
) -> tuple[list[Scored], dict[str, dict[str, float]]]:
    """One number per picture and measure, and by subject what its photos score among themselves."""
    scored: list[Scored] = []
    real = {}
    for task in tasks:
        own, own_base = ([shot for shot in some if shot.subject == task.subject.name] for some in (shots, base))
        scores = score_subject(encoders, task.subject, own, {shot.seed: shot.path for shot in own_base})
        bar = tqdm(scores, task.subject.name, len(own), unit="score", disable=not sys.stderr.isatty())
        scored += bar
        real[task.subject.name] = real_scores(encoders, task.subject)
    return scored, real


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
