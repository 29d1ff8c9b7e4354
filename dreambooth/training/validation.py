"""Validation while a run trains: a grid, its scores, the best weights, and when to stop. It changes no weight.

A validation happens after the state of its step has been saved, and its line in the validation log is written last; so
one that a kill left undone is done again, to the same numbers, when the run goes on from that state.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from PIL import Image

from dreambooth.checkpointing import AtomicCheckpointIO
from dreambooth.distributed import whole
from dreambooth.generation.grids.grid import GridRow, cut, draw_grid, write_grid
from dreambooth.metrics import selection
from dreambooth.metrics.log_names import LIKENESS_LOG
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord
from dreambooth.metrics.validation_scores import ImageRows, ValidationScorer
from dreambooth.training.callbacks import MetricsFile, StepCallback
from dreambooth.training.loggers import Loggers
from dreambooth.training.module import DreamBoothModule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationInputs:
    """Make the images and the loss of a validation, always from the same noise.

    prompts: a row each. sample: images of them with the live weights. loss: of the live weights at fixed noise and
    timesteps. score: None where nothing to measure with is at hand. base: images of the untouched base; None where
    that is what step 0 is.
    """

    prompts: Sequence[str]
    sample: Callable[[], ImageRows]
    loss: Callable[[], float]
    score: ValidationScorer | None
    base: Callable[[], ImageRows] | None = None


class Validate(StepCallback):
    """Validate at step 0 (the untouched base) and every so many steps.

    best: where the best weights go; None keeps none. steps: the folder for those of each validation; None keeps none.
    patience: validations without a better one before the run ends. stop_drift: with a drift above it the text encoders
    stay as they are; None: never.
    """

    def __init__(
        self,
        inputs: ValidationInputs,
        every_steps: int,
        samples: Path,
        validation_log: ValidationLog,
        metrics: MetricsFile,
        loggers: Loggers,
        best: Path | None,
        patience: int,
        stop_drift: float | None = None,
        steps: Path | None = None,
    ) -> None:
        self.inputs = inputs
        self.every_steps = every_steps
        self.samples = samples
        self.validation_log = validation_log
        self.metrics = metrics
        self.loggers = loggers
        self.best = best
        self.patience = patience
        self.stop_drift = stop_drift
        self.steps = steps
        self.seconds = 0.0  # that validations have taken in this process

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._catch_up(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._catch_up(trainer, pl_module)  # the last one: a run that goes on from its last step starts no training

    def _catch_up(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Validate if this step is due and not in the log yet; if it is in the log, only empty the restored sums."""
        assert isinstance(module, DreamBoothModule)
        self._stop_text_encoders(trainer, module)
        step = trainer.global_step
        if step % self.every_steps or trainer.should_stop:
            return
        if trainer.strategy.broadcast(self.validation_log.has(step)):
            module.take_deciles()
        else:
            self._validate(trainer, module, step)

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        if step % self.every_steps == 0 and not trainer.should_stop:
            self._validate(trainer, module, step)

    def _validate(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        """Validate, and end the run where that has not helped for too long.

        One process samples and measures, and the others wait. Where each has a part of the weights, all sample.
        """
        started, deciles = time.monotonic(), module.take_deciles()
        with module.average.applied():
            entry = self._sample_and_measure(trainer, module, step)
            self._keep(trainer, module, entry)
        if entry is not None:
            self._record(entry, deciles)
        self.seconds += time.monotonic() - started
        self._stop_text_encoders(trainer, module)
        stop = trainer.is_global_zero and self.validation_log.is_exhausted(self.patience)
        if stop:
            logger.info(f"no better for {self.patience} validation(s): ending (validate.patience)")
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(stop, all=False)

    def _stop_text_encoders(self, trainer: pl.Trainer, module: DreamBoothModule) -> None:
        """Stop training the text encoders where a validation so far found too much drift."""
        has_drifted = self.stop_drift is not None and self.validation_log.has_drifted(self.stop_drift)
        if trainer.strategy.broadcast(has_drifted) and not module.text_is_stopped:
            module.stop_text_encoders()
            logger.info(
                f"drift is above {self.stop_drift}: the text encoder stays as it is (optim.text_encoder_stop_drift)"
            )

    def _sample_and_measure(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> ValidationRecord | None:
        """Sample and measure; None in the processes that do not measure."""
        if not (trainer.is_global_zero or module.is_sharded):
            return None
        rows, loss = self.inputs.sample(), self.inputs.loss()
        if not trainer.is_global_zero:
            return None
        self._write_grid(rows, self._grid_path(step), f"step {step}")
        return self._measure(rows, loss, step)

    def _record(self, entry: ValidationRecord, deciles: dict[str, float]) -> None:
        """Log, and last of all write the line in the validation log."""
        step, metrics = entry.step, {**entry.metrics(), **deciles}
        self.metrics.write(step, metrics)
        with Image.open(self._grid_path(step)) as grid:
            self.loggers.log(metrics, step)
            self.loggers.show(grid, self.inputs.prompts, step)
        self.validation_log.add(entry)
        log_scores(
            entry, self.validation_log, self.inputs.score.means_of_subjects(entry.scores) if self.inputs.score else {}
        )

    def _write_grid(self, rows: ImageRows, path: Path, heading: str) -> None:
        titled = [GridRow(prompt, row) for prompt, row in zip(self.inputs.prompts, rows, strict=True)]
        write_grid(path, draw_grid(titled, heading))

    def _grid_path(self, step: int) -> Path:
        return self.samples / f"step-{step:06d}.png"

    def _measure(self, rows: ImageRows, loss: float, step: int) -> ValidationRecord:
        score = self.inputs.score
        if score is None:
            return ValidationRecord(step, loss, {})
        base = self._base_rows(rows, step)
        scores = score(rows, base)
        anchors = self.validation_log.anchors
        if step == 0:
            anchors = score.anchors(rows, scores) if base is None else score.anchors(base, score(base))
        quality = selection.quality(selection.means_of(scores), anchors) if anchors is not None else None
        if step == 0:
            return ValidationRecord(step, loss, scores, quality, anchors, score.encoders.names)
        return ValidationRecord(step, loss, scores, quality)

    def _base_rows(self, rows: ImageRows, step: int) -> ImageRows | None:
        """Return the untouched base's images, cut out of a lossless grid; None at step 0 if that is the base itself.

        The grid is that of step 0 or, after method.start, one of its own.
        """
        path = self._grid_path(0) if self.inputs.base is None else self.samples / "base.png"
        if step == 0:
            if self.inputs.base is None:
                return None
            self._write_grid(self.inputs.base(), path, "the untouched base")
        if not path.is_file():
            return None
        with Image.open(path) as grid:
            images = cut(grid, rows[0][0].width)
        columns = len(rows[0])
        return [images[first : first + columns] for first in range(0, len(images), columns)]

    def _keep(self, trainer: pl.Trainer, module: DreamBoothModule, entry: ValidationRecord | None) -> None:
        """Save the weights if this is now the step to keep, or if those of every validation are kept."""
        files = trainer.strategy.broadcast([] if entry is None else self._files_for(entry))
        if not files:
            return
        weights = {name: whole(weight) for name, weight in module.trained_state().items()}
        for file in files if entry is not None else ():
            file.parent.mkdir(exist_ok=True)
            AtomicCheckpointIO().save_checkpoint({"global_step": trainer.global_step, "state_dict": weights}, file)

    def _files_for(self, entry: ValidationRecord) -> list[Path]:
        """Return the files that the weights of a validation go to."""
        best = [self.best] if self.best is not None and self._is_best(entry) else []
        return best + ([self.steps / f"{entry.step:06d}.ckpt"] if self.steps is not None and entry.step else [])

    def _is_best(self, entry: ValidationRecord) -> bool:
        entries = [*self.validation_log.entries, entry]
        return selection.choose(entries, entries[0].anchors) == entry.step


def restore_best(module: DreamBoothModule, path: Path) -> int:
    """Put the best weights back; returns their step. Raises UserError for a damaged file."""
    weights = AtomicCheckpointIO().load_checkpoint(path)
    module.load_trained(weights["state_dict"])
    return int(weights["global_step"])


def log_scores(
    entry: ValidationRecord, validation_log: ValidationLog, of_subjects: Mapping[str, Sequence[float]]
) -> None:
    """Log a line: the scores, with each one's of several subjects, and whether this is the best step so far."""
    means = []
    for name, value in entry.metrics().items():
        if LIKENESS_LOG.fullmatch(name):  # too many for a line; the report has their table
            continue
        measure = name.removeprefix("eval/")
        each = " ".join(f"{own:.3f}" for own in of_subjects.get(measure, ()))
        means.append(f"{measure} {value:.3f}" + (f" ({each})" if each else ""))
    logger.info(f"validation at step {entry.step}: {', '.join(means)}{_standing(entry, validation_log)}")


def _standing(entry: ValidationRecord, validation_log: ValidationLog) -> str:
    """Return how a validation stands beside those before it."""
    kept, highest = validation_log.best, validation_log.highest
    if kept is None or highest is None:
        return ""
    if kept.step != entry.step:
        return f" (worse than step {highest.step})"
    return " (best)" if highest.step == entry.step else f" (not clearly worse than step {highest.step})"
