"""One trial: render the subject's photos, train, sample, measure. Samples are kept, so measuring again is quick.

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
from dreambooth.data.image_folder import sort_files
from dreambooth.families import fingerprint, load_family
from dreambooth.files import atomic_file, write_text
from dreambooth.generation.class_prior import GeneratedPrior
from dreambooth.generation.models.loading import Model, load_model
from dreambooth.randomness import Randomness
from dreambooth.run.folder import RunFolder
from toyworld import outcome
from toyworld.editions import edition_of
from toyworld.lab import measure
from toyworld.lab.plan import Trial, Workspace, noun_of, overrides_of
from toyworld.photos import captions, photos

NUM_IMAGES = 24  # of the subject, over the unseen places; and of the class prompt
NUM_PHOTOS = 5  # that similarity is measured to, however many were trained on
COSTS = ("kept_step", "seconds_training", "seconds_prior", "seconds_drawing")


@dataclass(frozen=True)
class Drawn:
    """Hold the samples of a trained model, and what training and sampling cost."""

    subject: list[Image.Image]
    of_class: list[Image.Image]
    costs: dict[str, float]


def run_trial(workspace: Workspace, trial: Trial) -> dict[str, float]:
    """Train, sample and measure a trial. Returns every metric by the names in `metrics.METRICS`."""
    print(f"\n{trial}", flush=True)
    workspace = workspace.of(trial.experiment)
    kept = workspace.work / "pictures" / f"{trial.folder_name}.npz"
    if not kept.is_file():
        save_drawn(kept, train_and_draw(workspace, trial))
    drawn = load_drawn(kept)
    noun, seed = trial.subject.class_noun, trial.subject.seed
    images = measure.Samples(drawn.subject, drawn.of_class, base_images(workspace, noun))
    edition = edition_of(workspace.judge)
    own = photos(noun, seed, NUM_PHOTOS, edition=edition)
    return {**measure.measure(_tools(workspace), edition.subject(noun, seed), own, images), **drawn.costs}


@functools.cache
def _tools(workspace: Workspace) -> measure.Tools:
    return measure.load_tools(workspace.encoders, workspace.judge)


# -------------------------------------------------------------------------------- training and drawing


def train_and_draw(workspace: Workspace, trial: Trial) -> Drawn:
    """Train a trial from the start and sample the result; the run's folder is deleted then."""
    folder = workspace.work / "runs" / trial.folder_name
    shutil.rmtree(folder, ignore_errors=True)
    config = trial_config(workspace, trial, folder)
    seconds_prior = reuse_prior(workspace, config)
    start = time.process_time()
    if code := engine.train(config):
        raise SystemExit(code)  # stopped by a signal
    trained = time.process_time()
    model = load_model(str(RunFolder(config).path), "cpu")
    each = NUM_IMAGES // len(outcome.UNSEEN_PLACES)
    subject = [image for row in outcome.draw_subject(model, each) for image in row]
    of_class = draw_class(model, trial.subject.class_noun)
    drawn = time.process_time()
    kept_step = model.card.step if model.card is not None else config.train.max_steps
    shutil.rmtree(folder)
    costs = (kept_step, trained - start, seconds_prior, drawn - trained)
    return Drawn(subject, of_class, dict(zip(COSTS, costs, strict=True)))


def trial_config(workspace: Workspace, trial: Trial, folder: Path) -> Config:
    """Return the run's config, and write its photos to `folder`, with captions where it reads them."""
    subject = trial.subject
    (folder / "photos").mkdir(parents=True)
    images = photos(subject.class_noun, subject.seed, trial.variant.num_photos, edition=edition_of(workspace.judge))
    for number, image in enumerate(images):
        image.save(folder / "photos" / f"{number:02d}.png")
    own = [
        f"run.dir={folder}",
        "run.name=run",
        f"run.seed={trial.seed}",
        f"subject.images={folder / 'photos'}",
        f"subject.class_noun={noun_of(trial)}",
        f"validate.clip={workspace.encoders / 'clip'}",
        "train.save_every_steps=1000000",
        "log.tensorboard=false",
    ]
    config = load_config(workspace.config, [*overrides_of(trial.variant, workspace), *own])
    for number, caption in enumerate(captions(len(images)) if config.data.captions else []):
        write_text(folder / "photos" / f"{number:02d}.txt", caption)
    return config


def reuse_prior(workspace: Workspace, config: Config) -> float:
    """Let the run use class images that another trial has made, or make them now. Returns their cost in CPU seconds.

    They depend on the class prompts, the seed and the sampler only, and are addressed by those; a run finds them in its
    folder as if it had been stopped after making the last one.
    """
    source, latents = config.prior.source, config.prior.teacher_latents
    if source != "stream" and (source, latents) != ("teacher", "class"):
        return 0.0
    shared = workspace.work / "priors"
    shared.mkdir(parents=True, exist_ok=True)
    link = RunFolder(config).prior
    link.parent.mkdir(parents=True)
    link.symlink_to(shared.resolve(), target_is_directory=True)
    family = load_family(config.model.base)

    def prior_in(folder: Path) -> GeneratedPrior:
        randomness = Randomness(config.run.seed)
        folders = [sort_files(subject.images) for subject in config.subjects]
        prompts = build.prompts_of_class_images(build.captions_of(folders, config), config)
        shapes = [family.latent_shape(config.data.resolution, config.data.resolution)]
        return build.make_generated_prior(
            family, None, prompts, shapes, folder, config, randomness, fingerprint(family)
        )

    seconds_file = prior_in(shared).folder / "seconds"
    if not seconds_file.is_file():
        _make_prior(prior_in(shared / f"making-{os.getpid()}"), seconds_file.parent)
    return float(seconds_file.read_text())


def _make_prior(prior: GeneratedPrior, folder: Path) -> None:
    """Make all class images and move them into place with their cost, unless another process was faster."""
    shutil.rmtree(prior.folder, ignore_errors=True)
    start = time.process_time()
    prior.make_all()
    write_text(prior.folder / "seconds", f"{time.process_time() - start:.3f}")
    with contextlib.suppress(OSError):  # another process has put the same images there
        prior.folder.rename(folder)
    shutil.rmtree(prior.folder.parent)


def draw_class(model: Model, class_noun: str) -> list[Image.Image]:
    """Sample the class prompt, always with the right class noun."""
    return outcome.draw(model, f"a photo of a {class_noun}", NUM_IMAGES)


def base_images(workspace: Workspace, class_noun: str) -> list[Image.Image]:
    """Return the untouched base's images of the class prompt at the same seeds; sampled once."""
    path = workspace.work / "base" / f"{workspace.base_digest}-{class_noun}.npz"
    if not path.is_file():
        images = draw_class(load_model(str(workspace.base), "cpu"), class_noun)
        save_drawn(path, Drawn([], images, {}))
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
