"""Models of a run at other steps than the one that it has kept, made of the weights that still lie in its folder."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dreambooth import build
from dreambooth.checkpointing import AtomicCheckpointIO
from dreambooth.exporting.result import export_model
from dreambooth.families import fingerprint
from dreambooth.generation.models.loading import Model
from dreambooth.generation.models.location import RESULT, source_of_step
from dreambooth.generation.models.reference import ModelRef
from dreambooth.methods import find_method
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.randomness import Randomness
from dreambooth.run.cleaning import opened_run, weights_of
from dreambooth.subject_info import CARD
from dreambooth.training.module import DreamBoothModule

logger = logging.getLogger(__name__)


def load_at_step(load: Callable[[ModelRef], Model], ref: ModelRef, step: int | None) -> Model:
    """Return a model, or a run at an optimizer step, ready to sample. load: loads or finds it."""
    return load(ref if step is None else replace(ref, name=str(model_at_step(Path(ref.name), step))))


def model_at_step(folder: Path, step: int) -> Path:
    """Return the model of a run at an optimizer step, which is made of its weights the first time.

    Raises UserError for a step that the run has no weights of, ModelError for what is no run.
    """
    source = source_of_step(folder, step)
    if source == RESULT:
        return folder
    run, config = opened_run(folder)
    target = run.steps / f"{step:06d}"
    if (target / CARD).is_file():
        return target
    logger.info(f"making the model of step {step} of {folder}, once")
    randomness, family = Randomness(config.run.seed), build.load_base(config)
    base = fingerprint(family)
    trained = find_method(config.method.name).attach(family, build.method_settings(config, family, randomness))
    module = DreamBoothModule(
        family, trained, build.loss_settings(config), None, build.optim_settings(config), randomness
    )
    module.load_trained(weights_of(AtomicCheckpointIO().load_checkpoint(folder / source)))
    entries = ValidationLog(run.scores).entries
    scores = next((entry.metrics() for entry in entries if entry.step == step), None)
    export_model(family, build.subject_card(config, step, step, base, scores), target, config.model.export_dtype)
    return target
