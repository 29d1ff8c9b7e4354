"""Callbacks around the steps: saving, stopping, logging, progress. None of them changes the training.

They run between two optimizer steps, never between the batches that one step accumulates.
"""

import csv
import io
import logging
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytorch_lightning as pl
import torch

from dreambooth.data.loader import INTERRUPTS
from dreambooth.distributed import WorkShare, this_process
from dreambooth.files import whole_lines, write_text
from dreambooth.generation.class_prior import GeneratedPrior
from dreambooth.status_line import STATUS_LINE, ProgressDisplay
from dreambooth.training.loggers import Loggers
from dreambooth.training.module import DreamBoothModule
from dreambooth.training.optimizer import take_settings
from dreambooth.training.step_metrics import StepMetrics

logger = logging.getLogger(__name__)


class StepCallback(pl.Callback):
    """Call `on_step_end` after each optimizer step."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step_end(trainer, pl_module, trainer.global_step)

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        """Do something after an optimizer step. step: how many have been taken."""


class DivideClassImages(pl.Callback):
    """Divide the making of class images among the processes, as soon as all have started.

    ahead: make all of them then, before there are gradients and an optimizer's moments.
    """

    def __init__(self, ahead: bool) -> None:
        self.ahead = ahead

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        prior = pl_module.prior
        if not isinstance(prior, GeneratedPrior):
            return
        prior.divide(WorkShare(trainer.global_rank, trainer.world_size, trainer.strategy.barrier))
        if self.ahead and not prior.is_complete:
            display = ProgressDisplay("class images", logger.info)

            def report(block: int, num_blocks: int) -> None:
                fraction = block / num_blocks
                if trainer.is_global_zero and display.is_due(fraction):
                    display.show(fraction, [f"batch {block}/{num_blocks}", display.time_left(fraction)])

            with STATUS_LINE:
                prior.make_all(report)


class AverageWeights(StepCallback):
    """Keep the average of the weights up to date; goes before the callbacks that save or use it."""

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        module.average.update()


class TakeSettings(pl.Callback):
    """Re-apply configured learning rates and betas after Lightning restores the saved ones.

    They are the same, but for changes that were accepted.
    """

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Convert Lightning's count of batches to this run's accumulation, as it derives steps from batches."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for count in (progress["total"], progress["current"]):
            more = checkpoint["global_step"] * trainer.accumulate_grad_batches - count["ready"]
            count.update({event: number + more for event, number in count.items()})

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        schedule = cast(Any, trainer.lr_scheduler_configs[0].scheduler)
        take_settings(trainer.optimizers[0], schedule, dict(pl_module.trained.items()), pl_module.optim)


class SaveState(StepCallback):
    """Save the full state periodically and at the end; on SIGINT, SIGTERM or SIGUSR1 save after the step and stop.

    every_steps: periods in steps, one of them of validations, which need a saved state (0: none).
    `signal_number` is afterwards the signal that stopped the run, 0 for none; a signal to one process stops all.
    Signals reach the main thread only: training in another leaves them to the program.
    """

    def __init__(self, path: Path, every_steps: Sequence[int]) -> None:
        self.path = path
        self.every_steps = [period for period in every_steps if period]
        self.signal_number = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        for number in INTERRUPTS if is_main else ():
            self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        name = signal.Signals(number).name
        if this_process().launcher == "torchrun":  # which passes on a signal that came to all processes alike
            logger.info(f"\n{name}: saving after this step")
            return
        logger.info(f"\n{name}: saving after this step; once more to stop at once")
        signal.signal(number, signal.SIG_DFL)

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        of_all = self.signal_number
        if trainer.world_size > 1:
            number = torch.tensor(self.signal_number, device=module.device)
            of_all = int(trainer.strategy.reduce(number, reduce_op="max"))
        self.signal_number = max(self.signal_number, of_all)  # a signal may have come meanwhile: the next step sees it
        stop = of_all > 0
        if stop or step >= trainer.max_steps or any(step % period == 0 for period in self.every_steps):
            trainer.save_checkpoint(self.path)
        trainer.should_stop = trainer.should_stop or stop

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())


class MetricsFile:
    """Write metrics.csv: a line for each step, a column for each metric, made when first needed; empty: no value."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._last_step = -1

    def go_on_from(self, step: int) -> None:
        """Drop the lines after `step` (a last one torn by a kill too), so the file has neither gaps nor doubles."""
        self._replace([row for row in self._rows() if int(row["step"]) <= step])

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics to the line of this step, the last one or a new one."""
        row = {"step": str(step), **{name: str(value) for name, value in metrics.items()}}
        if step > self._last_step and row.keys() <= set(self._columns):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_csv(self._columns, [row]))
            self._last_step = step
        else:
            rows = self._rows()
            last = rows.pop() if rows and rows[-1]["step"] == str(step) else {}
            self._replace([*rows, {**last, **row}])

    def _rows(self) -> list[dict[str, str]]:
        rows = csv.DictReader(whole_lines(self.path))
        return [{name: value for name, value in row.items() if value} for row in rows]

    def _replace(self, rows: list[dict[str, str]]) -> None:
        """Rewrite the file, its columns in an order that does not depend on when they came."""
        order = ("step", "train", "optim", "eval")
        names = {name for row in rows for name in row}
        self._columns = sorted(names, key=lambda name: (order.index(name.split("/")[0]), name))
        self._last_step = int(rows[-1]["step"]) if rows else -1
        header = {name: name for name in self._columns}
        write_text(self.path, _csv(self._columns, [header, *rows]) if rows else "")


def _csv(columns: list[str], rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()


class LogMetrics(StepCallback):
    """Log loss, learning rate and gradient norm of every step to metrics.csv and the loggers, under the same names.

    They are read when the next step has been handed to the device, so that it never runs out of work, and before a
    state is saved, which thereby holds finite numbers only.
    """

    def __init__(self, metrics: MetricsFile, loggers: Loggers, every_steps: int) -> None:
        self.metrics = metrics
        self.loggers = loggers
        self.every_steps = every_steps
        self._under_way: StepMetrics | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.metrics.go_on_from(trainer.global_step)

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        ended = module.close_step()
        self._log(trainer)
        self._under_way = ended

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        self._log(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        ended, self._under_way = self._under_way, None
        if ended is None:
            return
        metrics = ended.by_name
        if ended.step % self.every_steps:
            return
        if trainer.is_global_zero:
            self.metrics.write(ended.step, metrics)
        self.loggers.log(metrics, ended.step)


class Progress(StepCallback):
    """Show a bar with step, time left, loss and learning rate; plain lines where there is no terminal.

    Goes behind `LogMetrics` in the list of callbacks: it shows the metrics that one closes.
    """

    SECONDS = 0.5  # between two bars; reading the metrics for one waits for the device

    def __init__(self) -> None:
        self._display: ProgressDisplay | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._display = ProgressDisplay("training", logger.info, self.SECONDS)

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        if self._display is None:
            return
        fraction = step / trainer.max_steps
        is_first = not self._display.is_shown
        if self._display.is_due(fraction) or is_first or step == trainer.max_steps:
            self._display.show(fraction, self._parts(module, step, trainer.max_steps))

    def _parts(self, module: DreamBoothModule, step: int, max_steps: int) -> list[str | None]:
        assert self._display is not None
        assert module.last_step is not None
        metrics = module.last_step.by_name
        return [
            f"step {step}/{max_steps}",
            self._display.time_left(step / max_steps),
            f"loss {metrics['train/loss']:.4f}",
            f"lr {metrics['optim/lr']:.1e}",
            self._display.rate(step / max_steps, max_steps, "steps/s"),
        ]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        STATUS_LINE.clear()
