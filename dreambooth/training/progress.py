"""The progress of training for programs that call it, and how they stop it."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import pytorch_lightning as pl

from dreambooth.training.callbacks import SaveState, StepCallback
from dreambooth.training.module import DreamBoothModule


@dataclass(frozen=True)
class TrainProgress:
    """Hold an optimizer step that has ended. metrics: by log name: train/loss, optim/lr ..."""

    step: int
    max_steps: int
    metrics: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        loss = self.metrics.get("train/loss")
        return f"step {self.step}/{self.max_steps}" + ("" if loss is None else f", loss {loss:.4f}")


OnTrainProgress = Callable[[TrainProgress], object]  # False: stop after this step


class ReportProgress(StepCallback):
    """Call a function after each step, and stop with the state saved if it returns False.

    Goes behind `LogMetrics`, whose numbers it reports, and before `saving`, which stops.
    """

    def __init__(self, on_progress: OnTrainProgress, saving: SaveState) -> None:
        self.on_progress = on_progress
        self.saving = saving

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        metrics = {} if module.last_step is None else dict(module.last_step.by_name)
        if self.on_progress(TrainProgress(step, trainer.max_steps, metrics)) is False:
            self.saving.signal_number = signal.SIGINT
