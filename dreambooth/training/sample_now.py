"""Images of a run between its validations, when somebody asks for them while it trains."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytorch_lightning as pl

from dreambooth.generation.grids.grid import GridRow, draw_grid, write_grid
from dreambooth.metrics.validation_scores import ImageRows
from dreambooth.training.callbacks import StepCallback
from dreambooth.training.module import DreamBoothModule

logger = logging.getLogger(__name__)


class SampleNow(StepCallback):
    """Draw the images of a validation after the step at which `request`, a file in the run's folder, is there.

    They are not measured, and the validation log does not mention them. prompts: a row each. sample: images of them
    with the live weights, from the noise of the validations. samples: the folder of the grids.
    """

    def __init__(self, request: Path, samples: Path, prompts: Sequence[str], sample: Callable[[], ImageRows]) -> None:
        self.request = request
        self.samples = samples
        self.prompts = prompts
        self.sample = sample

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        if not self._is_asked(trainer):
            return
        path = self.samples / f"step-{step:06d}.png"
        if not trainer.strategy.broadcast(path.is_file()):  # a validation has just drawn them
            with module.average.applied():
                rows = self.sample() if trainer.is_global_zero or module.is_sharded else []
            if trainer.is_global_zero:
                titled = [GridRow(prompt, row) for prompt, row in zip(self.prompts, rows, strict=True)]
                write_grid(path, draw_grid(titled, f"step {step}"))
        if trainer.is_global_zero:
            logger.info(f"images of step {step}, as asked for: {path}")
            self.request.unlink(missing_ok=True)

    def _is_asked(self, trainer: pl.Trainer) -> bool:
        """Return whether images are asked for; the first process looks for all of them."""
        asked = trainer.is_global_zero and self.request.exists()
        return asked if trainer.world_size == 1 else bool(trainer.strategy.broadcast(asked))
