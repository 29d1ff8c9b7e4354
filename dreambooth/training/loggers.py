"""TensorBoard and Weights & Biases: they watch a run, and their failures are logged and end nothing.

Lightning is not given them: where one of its own calls to a logger fails, training ends.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from dreambooth.distributed import is_first
from dreambooth.errors import first_line

GRID = "eval/samples"  # its name in the loggers


@dataclass(frozen=True)
class RunSettings:
    """Hold settings of a run, to be read beside its curves.

    config: all of them, as YAML. deciding: by key, those that decide the result, for tables of several runs.
    """

    config: str
    deciding: Mapping[str, Any]


@dataclass(frozen=True)
class RunResult:
    """Hold what a finished run has come to. step: that is kept; metrics: of its validation, by log name.

    model: the folder of the weights. config: the run's config.yaml. samples: the folder of validation images.
    """

    step: int
    metrics: Mapping[str, float]
    model: Path
    config: Path
    samples: Path

    @property
    def best(self) -> dict[str, float]:
        """Return the kept step and its scores: best/step, best/quality ..."""
        scores = {name.replace("eval/", "best/"): value for name, value in self.metrics.items()}
        return {"best/step": float(self.step), **scores}


class RunLogger(Protocol):
    """Show a run somewhere, once it is open."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Show numbers by their log names."""

    def show(self, grid: Image.Image, prompts: Sequence[str], step: int) -> None:
        """Show a grid with a row for each prompt."""

    def conclude(self, result: RunResult) -> None:
        """Show the scores of the step that is kept, and whatever of the model was asked for."""

    def close(self, is_done: bool) -> None:
        """Close the logger. is_done: whether the run has come to its end."""


class Loggers:
    """Pass metrics and images to the loggers that have not failed yet; metrics.csv has all of it.

    makers: by the key of the setting that asks for each.
    """

    def __init__(self, makers: Mapping[str, Callable[[], RunLogger]]) -> None:
        self._makers = makers
        self._open: dict[str, RunLogger] = {}

    def open(self) -> None:
        """Connect, and make files, in the first process."""
        for key, make in self._makers.items() if is_first() else ():
            self._try(key, partial(self._connect, key, make))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for key, logger in [*self._open.items()]:
            self._try(key, partial(logger.log, metrics, step))

    def show(self, grid: Image.Image, prompts: Sequence[str], step: int) -> None:
        """Pass on a grid with a row for each prompt."""
        for key, logger in [*self._open.items()]:
            self._try(key, partial(logger.show, grid, prompts, step))

    def conclude(self, result: RunResult) -> None:
        """Pass on what a finished run has come to."""
        for key, logger in [*self._open.items()]:
            self._try(key, partial(logger.conclude, result))

    def close(self, is_done: bool) -> None:
        """Close the loggers. is_done: whether the run has come to its end."""
        for key, logger in [*self._open.items()]:
            self._try(key, partial(logger.close, is_done))

    def _connect(self, key: str, make: Callable[[], RunLogger]) -> None:
        self._open[key] = make()

    def _try(self, key: str, act: Callable[[], None]) -> None:
        """Call a logger; if it fails, warn of it and use it no more."""
        try:
            act()
        except failures() as error:
            self._open.pop(key, None)
            logging.getLogger(__name__).warning(
                f"{key}: no more of it ({first_line(error)}); training goes on, metrics.csv has it all"
            )


def failures() -> tuple[type[Exception], ...]:
    """Return the errors that loggers raise; W&B has its own."""
    wandb = sys.modules.get("wandb")
    own = (wandb.errors.Error,) if wandb is not None else ()
    return (OSError, RuntimeError, ValueError, TypeError, ImportError, EOFError, *own)
