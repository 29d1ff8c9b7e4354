"""TensorBoard and Weights & Biases: they watch a run, and what befalls them is told and no more.

Lightning is not given them: where one of its own calls to a logger fails, training ends.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from dreambooth.distributed import is_first
from dreambooth.errors import first_line


class Loggers:
    """Pass metrics and images to the loggers that have not failed yet; metrics.csv has all of it.

    makers: by the key of the setting that asks for each.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Logger]]) -> None:
        self._makers = makers
        self._open: dict[str, Logger] = {}

    def open(self) -> None:
        """Connect, and make files, in the first process."""
        for key, make in self._makers.items() if is_first() else ():
            self._try(key, partial(self._connect, key, make))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for key, logger in [*self._open.items()]:
            self._try(key, partial(logger.log_metrics, dict(figures), step=step))

    def show(self, sheet: Image.Image, step: int) -> None:
        """Pass a grid of images to the loggers that can show one."""
        for key, logger in [*self._open.items()]:
            self._try(key, partial(show_picture, logger, sheet, step))

    def close(self, is_done: bool) -> None:
        """Close the loggers. W&B writes what it still holds only when it gets to know that the run is over."""
        for key, logger in [*self._open.items()]:
            self._try(key, partial(close_logger, logger, is_done))

    def _connect(self, key: str, make: Callable[[], Logger]) -> None:
        logger = make()
        assert logger.experiment is not None  # type: ignore[attr-defined]  # made by asking for it
        self._open[key] = logger

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


def show_picture(logger: Logger, sheet: Image.Image, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image("eval/samples", np.asarray(sheet), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image("eval/samples", [sheet], step=step)


def close_logger(logger: Logger, is_done: bool) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.close()
    elif isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=0 if is_done else 1)
