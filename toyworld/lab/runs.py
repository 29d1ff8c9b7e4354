"""One cell: make the subject's photos, train, draw, measure. What was drawn is kept, so measuring again is quick.

Costs are CPU seconds of this process, which other work on the same cores does not change as it changes the clock's.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreambooth import build, engine
from dreambooth.config import Config, load_config
from dreambooth.families import fingerprint, load_family
from dreambooth.files import atomic_file, write_text
from dreambooth.generation.class_prior import GeneratedPrior
from dreambooth.generation.loading import Model, load_model
from dreambooth.randomness import Randomness
from dreambooth.run.folder import RunFolder
from toyworld import outcome, world
from toyworld.lab import measure
from toyworld.lab.plan import Trial, Workspace, noun_of, overrides_of
from toyworld.photos import photos

NUM_PICTURES = 24  # of the subject, over the unseen places; and of the class prompt
NUM_PHOTOS = 5  # that likeness is measured to, however many were trained on
COSTS = ("kept_step", "seconds_training", "seconds_prior", "seconds_drawing")


@dataclass(frozen=True)
class Drawn:
    """Hold what a trained model draws, and what it cost to get there."""

    subject: list[Image.Image]
    of_class: list[Image.Image]
    costs: dict[str, float]


def run_cell(bench: Workspace, cell: Trial) -> dict[str, float]:
    """Every figure of a cell, by the names in `figures.FIGURES`."""
    print(f"\n{cell}", flush=True)
    kept = bench.work / "pictures" / f"{cell.folder_name}.npz"
    if not kept.is_file():
        save_drawn(kept, train_and_draw(bench, cell))
    drawn = load_drawn(kept)
    spec = world.subject(cell.subject.class_noun, cell.subject.seed)
    pictures = measure.Pictures(drawn.subject, drawn.of_class, base_pictures(bench, spec.class_noun))
    own = photos(cell.subject.class_noun, cell.subject.seed, NUM_PHOTOS)
    return {**measure.measure(_tools(bench), spec, own, pictures), **drawn.costs}


@functools.cache
def _tools(bench: Workspace) -> measure.Tools:
    return measure.load_tools(bench.encoders, bench.judge)


# -------------------------------------------------------------------------------- training and drawing


def train_and_draw(bench: Workspace, cell: Trial) -> Drawn:
    """Train a cell from the start and draw with what came out; the run's folder is deleted then."""
    folder = bench.work / "runs" / cell.folder_name
    shutil.rmtree(folder, ignore_errors=True)
    config = cell_config(bench, cell, folder)
    seconds_prior = share_prior(bench, config)
    start = time.process_time()
    if code := engine.train(config):
        raise SystemExit(code)  # told to stop
    trained = time.process_time()
    model = load_model(str(RunFolder(config).path), "cpu")
    each = NUM_PICTURES // len(outcome.UNSEEN_PLACES)
    subject = [picture for row in outcome.draw_subject(model, each) for picture in row]
    of_class = draw_class(model, cell.subject.class_noun)
    drawn = time.process_time()
    kept_step = model.card.step if model.card is not None else config.train.max_steps
    shutil.rmtree(folder)
    costs = (kept_step, trained - start, seconds_prior, drawn - trained)
    return Drawn(subject, of_class, dict(zip(COSTS, costs, strict=True)))


def cell_config(bench: Workspace, cell: Trial, folder: Path) -> Config:
    """The run's config; its photos are written to `folder`."""
    subject = cell.subject
    (folder / "photos").mkdir(parents=True)
    for number, picture in enumerate(photos(subject.class_noun, subject.seed, cell.row.num_photos)):
        picture.save(folder / "photos" / f"{number:02d}.png")
    own = [
        f"run.dir={folder}",
        "run.name=run",
        f"run.seed={cell.seed}",
        f"subject.images={folder / 'photos'}",
        f"subject.class_noun={noun_of(cell)}",
        "train.save_every_steps=1000000",
        "log.tensorboard=false",
    ]
    return load_config(bench.config, [*overrides_of(cell.row, bench), *own])


def share_prior(bench: Workspace, config: Config) -> float:
    """Let the run use the class pictures that another cell has made, or make them now. Returns what making them cost.

    They depend on the class, the seed and the sampler only, and are addressed by those; a run finds them in its folder
    as if it had been stopped after making the last one.
    """
    source, latents = config.prior.source, config.prior.teacher_latents
    if source != "stream" and (source, latents) != ("teacher", "class"):
        return 0.0
    shared = bench.work / "priors"
    shared.mkdir(parents=True, exist_ok=True)
    link = RunFolder(config).prior
    link.parent.mkdir(parents=True)
    link.symlink_to(shared.resolve(), target_is_directory=True)
    family = load_family(config.model.base)

    def prior_in(folder: Path) -> GeneratedPrior:
        randomness = Randomness(config.run.seed)
        prompts = build.in_turn(build.class_prompts_of([[""]], config))
        shapes = [family.latent_shape(config.data.resolution, config.data.resolution)]
        return build.make_generated_prior(
            family, None, prompts, shapes, folder, config, randomness, fingerprint(family)
        )

    told = prior_in(shared).folder / "seconds"
    if not told.is_file():
        _make_prior(prior_in(shared / f"making-{os.getpid()}"), told.parent)
    return float(told.read_text())


def _make_prior(prior: GeneratedPrior, folder: Path) -> None:
    """Make all of it and put it into place whole, with what it cost, unless another process has been faster."""
    shutil.rmtree(prior.folder, ignore_errors=True)
    start = time.process_time()
    prior.make_all()
    write_text(prior.folder / "seconds", f"{time.process_time() - start:.3f}")
    with contextlib.suppress(OSError):  # the other one's lies there: the same pictures
        prior.folder.rename(folder)
    shutil.rmtree(prior.folder.parent)


def draw_class(model: Model, class_noun: str) -> list[Image.Image]:
    """The class prompt, always of the right class."""
    return outcome.draw(model, f"a photo of a {class_noun}", NUM_PICTURES)


def base_pictures(bench: Workspace, class_noun: str) -> list[Image.Image]:
    """The untouched base for the class prompt, at the same seeds; drawn once."""
    path = bench.work / "base" / f"{bench.base_digest}-{class_noun}.npz"
    if not path.is_file():
        pictures = draw_class(load_model(str(bench.base), "cpu"), class_noun)
        save_drawn(path, Drawn([], pictures, {}))
    return load_drawn(path).of_class


# -------------------------------------------------------------------------------- what was drawn


def save_drawn(path: Path, drawn: Drawn) -> None:
    pixels = {"subject": drawn.subject, "of_class": drawn.of_class}
    arrays: dict[str, Any] = {name: np.array([np.asarray(one) for one in some]) for name, some in pixels.items()}
    arrays |= drawn.costs
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def load_drawn(path: Path) -> Drawn:
    with np.load(path) as arrays:
        subject, of_class = ([Image.fromarray(one) for one in arrays[name]] for name in ("subject", "of_class"))
        return Drawn(subject, of_class, {name: float(arrays[name]) for name in COSTS if name in arrays})
