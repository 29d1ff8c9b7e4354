"""What happens around the steps: saving, stopping, logging, progress, sample grids. None of it changes the training.

All of it happens between two optimizer steps, never between the batches that one step accumulates.
"""

import csv
import io
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL.Image import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from tqdm import tqdm

from dreambooth.files import atomic_file, write_text
from dreambooth.module import DreamBoothModule


class StepCallback(pl.Callback):
    """A callback that is told when an optimizer step has ended."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step_end(trainer, pl_module, trainer.global_step)

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        """step: how many optimizer steps have been taken."""


class SaveState(StepCallback):
    """Saves the full state every so many steps and at the end; on SIGINT or SIGTERM saves after the step and stops.

    `signal_number` tells afterwards what stopped the run, 0 for nothing.
    """

    def __init__(self, path: Path, every_steps: int) -> None:
        self.path = path
        self.every_steps = every_steps
        self.signal_number = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        print(f"\n{signal.Signals(number).name}: saving after this step; once more to stop at once", file=sys.stderr)
        signal.signal(number, signal.SIG_DFL)

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        stop = trainer.strategy.reduce_boolean_decision(self.signal_number > 0, all=False)
        if stop or step % self.every_steps == 0 or step >= trainer.max_steps:
            trainer.save_checkpoint(self.path)
        trainer.should_stop = trainer.should_stop or stop

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())


def ignore_interrupts(worker: int) -> None:
    """For loader workers: a terminal or a cluster signals them too, but the step under way still needs their batches.

    They end when the main process closes the loader, or notice by themselves that it is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class LogFigures(StepCallback):
    """Loss, learning rate and gradient norm of every step to metrics.csv and the loggers, under the same names.

    A resumed run first drops the lines after the step it goes on from, so the file has neither gaps nor doubles.
    """

    def __init__(self, path: Path, every_steps: int) -> None:
        self.path = path
        self.every_steps = every_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            write_text(self.path, keep_lines(self.path, trainer.global_step))

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        figures = module.close_step()
        if step % self.every_steps:
            return
        if trainer.is_global_zero:
            append_line(self.path, {"step": step, **figures})
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)


def keep_lines(path: Path, step: int) -> str:
    """The text of a metrics file up to and with `step`; a last line torn by a kill goes too."""
    if not path.is_file():
        return ""
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split(",")[0]) <= step]
    return "".join([*lines[:1], *kept]) if kept else ""


def append_line(path: Path, figures: Mapping[str, float]) -> None:
    """Add one line to a metrics file; the first line makes the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(figures), lineterminator="\n")
    with open(path, "a", encoding="utf-8") as file:
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(figures)
        file.write(text.getvalue())


class Progress(StepCallback):
    """A bar with loss, learning rate, steps/s and time left; plain lines where there is no terminal.

    Goes behind `LogFigures` in the list of callbacks: it shows the figures that one closes.
    """

    def __init__(self, num_lines: int = 20) -> None:
        self.num_lines = num_lines
        self._bar: Any = None
        self._since: tuple[int, float] | None = None  # the first step that ended here, and when

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if sys.stderr.isatty():
            self._bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        self._since = self._since or (step, time.monotonic())
        loss, lr = module.last_step["train/loss"], module.last_step["optim/lr"]
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.1e}", refresh=False)
            self._bar.update()
        elif step % max(1, trainer.max_steps // self.num_lines) == 0 or step == trainer.max_steps:
            line = f"step {step}/{trainer.max_steps}  loss {loss:.4f}  lr {lr:.1e}"
            if step > self._since[0]:
                rate = (step - self._since[0]) / (time.monotonic() - self._since[1])
                left = time.strftime("%H:%M:%S", time.gmtime((trainer.max_steps - step) / rate))
                line += f"  {rate:.2f} steps/s  {left} left"
            print(line, file=sys.stderr, flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()


class SampleGrids(StepCallback):
    """A grid of pictures every so many steps (and of the untouched base at step 0) into `folder` and the loggers.

    sample: makes the grid with the live weights, always from the same noise. A grid that a kill left undone is made
    when the run goes on from that step.
    """

    def __init__(self, sample: Callable[[], Image], every_steps: int, folder: Path) -> None:
        self.sample = sample
        self.every_steps = every_steps
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write_missing(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write_missing(trainer)  # the last one: a run that goes on from its last step starts no training

    def _write_missing(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        due = step % self.every_steps == 0 and not trainer.should_stop
        if due and (step == 0 or not self._path(step).is_file()):
            self._write(trainer, step)

    def on_step_end(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        if step % self.every_steps == 0 and not trainer.should_stop:
            self._write(trainer, step)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.png"

    def _write(self, trainer: pl.Trainer, step: int) -> None:
        if not trainer.is_global_zero:
            return
        grid = self.sample()
        with atomic_file(self._path(step)) as file:
            grid.save(file, format="PNG")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("eval/samples", np.asarray(grid), step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image("eval/samples", [grid], step=step)
