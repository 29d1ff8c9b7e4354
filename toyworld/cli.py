"""`python -m dreambooth toyworld ...`: render the toy world, render a subject's photos, train and judge the base."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import UserError
from toyworld.arguments import check_device, check_has, check_image, check_processes, positive, positive_minutes
from toyworld.readers.cli import add_commands as add_readers
from toyworld.readers.cli import run_blip2, run_kosmos2, run_segmenter

if TYPE_CHECKING:
    from dreambooth.generation.models.loading import Model

SHIPPED = Path("checkpoints/toyworld")
SECOND_BASE = Path("checkpoints/toyworld-second")
FLOW_BASE = Path("checkpoints/toyworld-flow")
CONTROLNET = Path("checkpoints/toyworld-controlnet")
DEMO_SEED = 21  # of the robots in data/second-robot and data/robot
STAGES = ("decoder", "encoder", "judge", "base", "sides", "contrast", "details")
MINUTES = 120.0  # of the first edition's training
FLOW_STAGES, FLOW_STEPS = ("decoder", "encoder", "flow"), (1_800, 900, 2_200)
CONTROLNET_STEPS = 520
# Each stage's share of --minutes; the base, which everything waits for, takes most.
MINUTES_SHARE = {
    "decoder": 0.2,
    "encoder": 0.05,
    "judge": 0.08,
    "base": 0.67,
    "sides": 0.1,
    "contrast": 0.2,
    "details": 0.2,
}
EDITIONS = ("first", "second")  # of the world; the demo is of the second
ENCODERS = ("vit", "clip")
SHIPPED_ENCODERS = Path("checkpoints/toyworld-encoders")
SECOND_ENCODERS = Path("checkpoints/toyworld-second-encoders")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the parser of `toyworld` and its subcommands."""
    commands = parser.add_subparsers(dest="toyworld_command", metavar="COMMAND", required=True)
    render = commands.add_parser("render", help="write a contact sheet of the toy world")
    render.add_argument("--seed", type=int, default=0, help="of the first image (default: %(default)s)")
    render.add_argument("--count", type=positive, default=96, help="number of images (default: %(default)s)")
    _add_edition(render, "second")
    render.add_argument("--out", type=Path, default=Path("toyworld.png"), help="file to write (default: %(default)s)")

    _add_subject(commands)

    _add_train(commands)
    _add_flow(commands)
    _add_controlnet(commands)
    add_readers(commands)

    export = commands.add_parser("export", help="write the base with its weights so far; works beside `train`")
    _add_edition(export)
    _add_folders(export)

    evaluate = commands.add_parser("evaluate", help="sample the base and judge the images by the renderer's truth")
    evaluate.add_argument("--model", type=Path, default=SHIPPED, help="pipeline folder (default: %(default)s)")
    evaluate.add_argument(
        "--per-class", type=int, default=30,
        help="images of every class, of the second edition's creatures four times as many (default: %(default)s)",
    )  # fmt: skip
    evaluate.add_argument("--sheet", type=Path, help="write the images as a contact sheet to this file")

    outcome = commands.add_parser("outcome", help="judge a DreamBooth result: subject, place, class prompt")
    outcome.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="run folders, a column each")
    outcome.add_argument("--class", dest="class_noun", default="robot", help="of the subject (default: %(default)s)")
    outcome.add_argument("--seed", type=int, default=DEMO_SEED, help="of the subject (default: %(default)s)")
    outcome.add_argument("--num-images", type=int, default=24, help="images a prompt (default: %(default)s)")
    outcome.add_argument("--judge", type=Path, help="(default: the one in the folder of the first model's base)")
    outcome.add_argument(
        "--photos", type=Path, default=Path("data/second-robot"), help="the subject's (default: %(default)s)"
    )
    outcome.add_argument("--poster", type=Path, help="write photos and samples of the first model to this file")

    _add_attention(commands)
    _add_row(commands)

    _add_encoders(commands)


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train the embedded base from scratch; run again to resume")
    _add_edition(train)
    train.add_argument(
        "--minutes",
        type=positive_minutes,
        help=f"of all stages together (default: {MINUTES:g}; second edition: steps instead)",
    )
    train.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    train.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        help="default: all of the edition's; sides, contrast and details are the second's alone",
    )
    train.add_argument("--init-from", type=Path, help="initialize denoiser and text encoder from this pipeline folder")
    train.add_argument("--batch-size", type=positive, default=64, help="of the denoiser (default: %(default)s)")
    train.add_argument(
        "--processes", type=positive, default=2, help="of denoiser and data set, on a CPU (default: %(default)s)"
    )
    train.add_argument("--num-samples", type=positive, help="in the training set (default: 100000)")
    _add_folders(train)


def _add_subject(commands: Any) -> None:
    subject = commands.add_parser("subject", help="write photos of one subject that no training image shows")
    subject.add_argument("--class", dest="class_noun", required=True, help="class noun, e.g. robot or dog")
    subject.add_argument("--seed", type=int, default=0, help="each number is another subject (default: %(default)s)")
    _add_edition(subject, "second")
    subject.add_argument("--count", type=positive, default=5, help="number of photos (default: %(default)s)")
    subject.add_argument(
        "--places", nargs="+", default=["grass", "studio", "city", "snow", "forest"], help="scenes, used in turn"
    )
    subject.add_argument(
        "--captions", action="store_true", help="also write 00.txt, ..., which name the photos' places"
    )
    subject.add_argument("--out", type=Path, required=True, help="folder for 00.png, 01.png, ...")


def _add_row(commands: Any) -> None:
    row = commands.add_parser("row", help="draw a result put into a photo, held in a pose, in a style: README's row")
    row.add_argument("model", type=Path, metavar="MODEL", help="run folder")
    row.add_argument("--class", dest="class_noun", default="robot", help="of the subject (default: %(default)s)")
    row.add_argument("--controlnet", type=Path, default=CONTROLNET, help="what reads edges (default: %(default)s)")
    row.add_argument("--seed", type=int, default=5, help="of images and of what they are made from (%(default)s)")
    row.add_argument("--out", type=Path, default=Path("outputs/row.png"), help="file to write (default: %(default)s)")


def _add_encoders(commands: Any) -> None:
    encoders = commands.add_parser("encoders", help="train the metric encoders and measure them; run again to resume")
    encoders.add_argument(
        "--minutes", type=positive_minutes, default=40.0, help="of both in equal parts (default: %(default)s)"
    )
    encoders.add_argument("--only", choices=ENCODERS, help="train this one, for its part of the minutes")
    _add_edition(encoders)
    encoders.add_argument("--work", type=Path, help="states (default: the folder --out with .work behind its name)")
    encoders.add_argument(
        "--out", type=Path, help=f"folder to write (default: {SHIPPED_ENCODERS} or {SECOND_ENCODERS}, by edition)"
    )
    encoders.add_argument("--measure-only", action="store_true", help="measure the encoders in the --out folder")


def _add_edition(parser: argparse.ArgumentParser, default: str = "first") -> None:
    parser.add_argument("--edition", choices=EDITIONS, default=default, help="of the world (default: %(default)s)")


def _add_flow(commands: Any) -> None:
    flow = commands.add_parser(
        "flow", help="train the embedded flow base, a tiny Z-Image, from scratch; run again to resume"
    )
    flow.add_argument(
        "--steps", type=positive, nargs=3, default=FLOW_STEPS, metavar=("DECODER", "ENCODER", "FLOW"),
        help="optimizer steps of the VAE's halves, and of text encoder and transformer "
        f"(default: {' '.join(map(str, FLOW_STEPS))})",
    )  # fmt: skip
    flow.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    flow.add_argument("--batch-size", type=positive, default=64, help="(default: %(default)s)")
    flow.add_argument("--processes", type=positive, default=2, help="on a CPU (default: %(default)s)")
    flow.add_argument(
        "--num-samples", type=positive, default=100_000, help="in the training set (default: %(default)s)"
    )
    flow.add_argument("--base", type=Path, default=SHIPPED, help="whose judge it takes (default: %(default)s)")
    flow.add_argument("--work", type=Path, default=Path(f"{FLOW_BASE}.work"), help="states, data set (%(default)s)")
    flow.add_argument("--out", type=Path, default=FLOW_BASE, help="folder to write (default: %(default)s)")


def _add_controlnet(commands: Any) -> None:
    controlnet = commands.add_parser(
        "controlnet", help="train the base's ControlNet, which reads edges, and measure it; run again to resume"
    )
    controlnet.add_argument(
        "--steps", type=positive, default=CONTROLNET_STEPS, help="optimizer steps in all (default: %(default)s)"
    )
    controlnet.add_argument(
        "--base", type=Path, default=SECOND_BASE, help="what it is held beside (default: %(default)s)"
    )
    controlnet.add_argument(
        "--work", type=Path, default=Path(f"{CONTROLNET}.work"), help="states (default: %(default)s)"
    )
    controlnet.add_argument("--out", type=Path, default=CONTROLNET, help="folder to write (default: %(default)s)")
    controlnet.add_argument("--num-images", type=int, default=100, help="to measure it on (default: %(default)s)")
    controlnet.add_argument("--measure-only", action="store_true", help="measure the ControlNet in the --out folder")


def _add_attention(commands: Any) -> None:
    attention = commands.add_parser("attention", help="measure where a result's words act, against the truth mask")
    attention.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="run folders")
    attention.add_argument("--class", dest="class_noun", default="robot", help="of the subject (default: %(default)s)")
    attention.add_argument("--seed", type=int, default=DEMO_SEED, help="of the subject (default: %(default)s)")
    attention.add_argument("--num-images", type=int, default=24, help="renderings of it (default: %(default)s)")


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", type=Path, help=f"states (default: {SHIPPED}.work or {SECOND_BASE}.work, by edition)")
    parser.add_argument("--out", type=Path, help=f"pipeline to write (default: {SHIPPED} or {SECOND_BASE}, by edition)")


def _folders(args: argparse.Namespace) -> tuple[Path, Path]:
    """Return the folder of the states and that of the pipeline."""
    out = SHIPPED if args.edition == "first" else SECOND_BASE
    return args.work or Path(f"{out}.work"), args.out or out


def run(args: argparse.Namespace) -> int:
    """Run the chosen subcommand. Returns the exit code."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # no notes on torchvision; read when they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    actions = {
        "render": _render,
        "subject": _subject,
        "train": _train,
        "flow": _flow,
        "controlnet": _controlnet,
        "export": _export,
        "evaluate": _evaluate,
        "outcome": _outcome,
        "attention": _attention,
        "row": _row,
        "encoders": _encoders,
        "segmenter": run_segmenter,
        "blip2": run_blip2,
        "kosmos2": run_kosmos2,
    }
    actions[args.toyworld_command](args)
    return 0


def _render(args: argparse.Namespace) -> None:
    check_image("--out", args.out)
    from toyworld import world
    from toyworld.editions import EDITIONS as BY_NAME

    args.out.parent.mkdir(parents=True, exist_ok=True)
    images = [BY_NAME[args.edition].image(seed) for seed in range(args.seed, args.seed + args.count)]
    world.contact_sheet(images, columns=12).save(args.out)
    print(args.out)


def _subject(args: argparse.Namespace) -> None:
    from toyworld.editions import EDITIONS as BY_NAME
    from toyworld.photos import captions, photos

    args.out.mkdir(parents=True, exist_ok=True)
    images = photos(args.class_noun, args.seed, args.count, args.places, BY_NAME[args.edition])
    for i, (image, caption) in enumerate(zip(images, captions(args.count, args.places), strict=True)):
        path = args.out / f"{i:02d}.png"
        image.save(path)
        if args.captions:
            path.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")
        print(path)


def _train(args: argparse.Namespace) -> None:
    check_device(args.device)
    check_processes(args.processes, args.batch_size, args.device)
    if args.init_from is not None:
        check_has("--init-from", args.init_from, "unet/config.json", "text_encoder/config.json")
    from toyworld.base import BaseSettings
    from toyworld.editions import EDITIONS as BY_NAME
    from toyworld.stages import train_stages
    from toyworld.training import Budget

    edition = BY_NAME[args.edition]
    for stage in args.stages or ():
        if stage not in edition.stages:
            raise UserError(f"--stages {stage}: the {edition.name} edition has {', '.join(edition.stages)}")
    if edition.steps is not None and args.minutes is None:
        budgets = {stage: Budget(steps=edition.steps[stage]) for stage in edition.stages}
    else:
        minutes = MINUTES if args.minutes is None else args.minutes
        whole = sum(MINUTES_SHARE[stage] for stage in edition.stages)
        budgets = {stage: Budget(minutes * MINUTES_SHARE[stage] / whole) for stage in edition.stages}
    work = _folders(args)[0]
    settings = BaseSettings(
        work,
        edition,
        num_samples=args.num_samples or edition.num_samples,
        batch_size=args.batch_size,
        device=args.device,
        num_processes=args.processes,
        init_from=args.init_from,
    )
    wanted = args.stages or edition.stages
    train_stages({stage: budget for stage, budget in budgets.items() if stage in wanted}, settings)
    if (work / "base.pt").is_file():
        _export(args)
    else:
        print(f"no pipeline is written yet: the stage base has not been trained in {work}")


def _flow(args: argparse.Namespace) -> None:
    check_device(args.device)
    check_processes(args.processes, args.batch_size, args.device)
    from toyworld.base import BaseSettings
    from toyworld.editions import FLOW
    from toyworld.flow_base import export_flow, train_flow_base
    from toyworld.outcome import load_judge
    from toyworld.training import Budget

    load_judge(args.base / "judge")  # fails before training where there is none to copy
    settings = BaseSettings(
        args.work,
        FLOW,
        num_samples=args.num_samples,
        batch_size=args.batch_size,
        device=args.device,
        num_processes=args.processes,
    )
    train_flow_base(settings, {stage: Budget(steps=n) for stage, n in zip(FLOW_STAGES, args.steps, strict=True)})
    export_flow(args.work, args.out, args.base)
    print(args.out)


def _controlnet(args: argparse.Namespace) -> None:
    from toyworld import controlnet
    from toyworld.editions import edition_of
    from toyworld.evaluate import refresh_model_card
    from toyworld.outcome import load_judge
    from toyworld.readers.figures import table

    if args.num_images < 1:
        raise UserError(f"--num-images {args.num_images}: must be at least 1")
    judge, edition = load_judge(args.base / "judge"), edition_of(args.base / "judge")
    base = controlnet.load_base(args.base)
    if not args.measure_only:
        controlnet.train(base, edition, args.steps, args.work)
        controlnet.save(controlnet.trained(base, args.work), args.out)
    network = controlnet.load(args.out)
    text = table(controlnet.measure(base, edition, network, judge, args.num_images))
    refresh_model_card(args.out / "README.md", text)
    print(text)


def _export(args: argparse.Namespace) -> None:
    from toyworld.editions import EDITIONS as BY_NAME
    from toyworld.export import export

    work, out = _folders(args)
    export(work, out, BY_NAME[args.edition])
    print(out)


def _evaluate(args: argparse.Namespace) -> None:
    if args.per_class < 3:
        raise UserError(f"--per-class {args.per_class}: at least 3; only then do prompts name colour and pattern")
    check_has("--model", args.model, "model_index.json")
    check_image("--sheet", args.sheet)
    from toyworld.editions import FIRST, edition_of
    from toyworld.evaluate import measure, refresh_model_card, table
    from toyworld.outcome import load_judge
    from toyworld.second.evaluate import measure as measure_second

    load_judge(args.model / "judge")  # fails before sampling where there is none
    measure_edition = measure if edition_of(args.model / "judge") is FIRST else measure_second
    text = table(measure_edition(args.model, args.per_class, args.sheet))
    refresh_model_card(args.model / "README.md", text)
    print(text)


def _outcome(args: argparse.Namespace) -> None:
    check_image("--poster", args.poster)
    from dreambooth.data.image_files import load_image
    from dreambooth.data.image_folder import list_images
    from dreambooth.generation.models.loading import load_model
    from toyworld import outcome
    from toyworld.editions import edition_of

    if args.num_images < len(outcome.UNSEEN_PLACES):
        least = len(outcome.UNSEEN_PLACES)
        raise UserError(f"--num-images {args.num_images}: at least {least}, one for each unseen place")
    photos = [] if args.poster is None else [load_image(path) for path in list_images(args.photos)]
    models = {str(folder): load_model(str(folder), "cpu") for folder in args.models}
    folder = args.judge or _judge_of(next(iter(models.values())))
    judge, edition = outcome.load_judge(folder), edition_of(folder)
    spec = edition.subject(args.class_noun, args.seed)
    columns = {name: outcome.measure(model, spec, judge, edition, args.num_images) for name, model in models.items()}
    print(outcome.table(columns))
    if args.poster is not None:
        first = next(iter(models.values()))
        args.poster.parent.mkdir(parents=True, exist_ok=True)
        outcome.poster(photos, first, outcome.number_of(first, args.class_noun)).save(args.poster)
        print(args.poster)


def _judge_of(model: Model) -> Path:
    """Return the judge of the base that a model was made from; that of the demo's, where it has none."""
    base = model.card.base if model.card is not None else model.ref.name
    own = Path(base or "") / "judge"
    return own if own.is_dir() else SECOND_BASE / "judge"


def _row(args: argparse.Namespace) -> None:
    check_image("--out", args.out)
    import dreambooth
    from toyworld.from_images import row

    args.out.parent.mkdir(parents=True, exist_ok=True)
    row(dreambooth.load(args.model, device="cpu"), args.class_noun, args.controlnet, args.seed).save(args.out)
    print(args.out)


def _attention(args: argparse.Namespace) -> None:
    from dreambooth.generation.models.loading import load_model
    from toyworld import attention
    from toyworld.editions import edition_of

    if args.num_images < 1:
        raise UserError(f"--num-images {args.num_images}: must be at least 1")
    for folder in args.models:
        model = load_model(str(folder), "cpu")
        edition = edition_of(_judge_of(model))
        found = attention.measure(model, edition.subject(args.class_noun, args.seed), edition, args.num_images)
        words = ", ".join(f"{word!r} {value:.2f}" for word, value in found.by_word.items())
        print(f"{folder}: mean IoU with the object's mask: {words}; of the whole image {found.whole_image:.2f}")


def _encoders(args: argparse.Namespace) -> None:
    if args.measure_only and args.only is not None:
        raise UserError(f"--only {args.only}: --measure-only measures both encoders; leave one of the two out")
    from toyworld import encoder_metrics, encoders
    from toyworld.evaluate import refresh_model_card

    base, default_out = (SHIPPED, SHIPPED_ENCODERS) if args.edition == "first" else (SECOND_BASE, SECOND_ENCODERS)
    out = args.out or default_out
    work = args.work or Path(f"{out}.work")
    lessons, vae = encoders.LESSONS[args.edition], encoders.load_vae(base)
    for name in () if args.measure_only else ENCODERS:
        if args.only in (None, name):
            encoders.train(name, lessons, args.minutes / len(ENCODERS), vae, work)
            encoders.save(encoders.trained(name, lessons, work), out / name, lessons.edition)
    if args.only is None:
        text = encoder_metrics.table(encoder_metrics.measure(out, lessons, vae))
        refresh_model_card(out / "README.md", text)
        print(text)
