"""Write a run for TensorBoard: numbers with a sentence on each, grids with their prompts, the run's settings.

torch's SummaryWriter takes no descriptions, and its `add_hparams` begins a second run in a folder below. So the
summaries are made here by torch's own functions, get their descriptions, and go to the run's own file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import DataClass
from torch.utils.tensorboard import SummaryWriter, summary

from dreambooth.metrics.log_names import describe
from dreambooth.training.loggers import GRID, RunResult, RunSettings

HPARAM_METRICS = (
    "best/quality",
    "eval/quality",
    "eval/loss",
    "train/loss",
)  # columns of results


class TensorBoard:
    """Write a run's event file. step: that the run goes on from; what an earlier file has of later steps is hidden."""

    def __init__(self, folder: Path, step: int | None, settings: RunSettings) -> None:
        self._writer = SummaryWriter(folder, purge_step=0 if step is None else step + 1)
        self._step = step or 0  # the last one that was logged
        indented = "\n".join(f"    {line}" for line in settings.config.splitlines())  # Markdown: as it is
        self._write(summary.text("config", indented), self._step)
        values = {key: _hparam(value) for key, value in settings.deciding.items()}
        experiment, start, self._end = summary.hparams(values, dict.fromkeys(HPARAM_METRICS, 0.0))
        self._write(experiment, self._step)
        self._write(start, self._step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._step = step
        for name, value in metrics.items():
            found = summary.scalar(name, value)
            _describe(found, "scalars", DataClass.DATA_CLASS_SCALAR, describe(name))
            self._write(found, step)

    def show(self, grid: Image.Image, prompts: Sequence[str], step: int) -> None:
        found = summary.image(GRID, np.asarray(grid), dataformats="HWC")
        rows = "\n".join(f"{number}. {prompt}" for number, prompt in enumerate(prompts, start=1))
        caption = f"Always from the same noise. Rows, from above:\n\n{rows}"
        _describe(found, "images", DataClass.DATA_CLASS_BLOB_SEQUENCE, caption)
        self._write(found, step)

    def conclude(self, result: RunResult) -> None:
        self.log(result.best, self._step)

    def close(self, is_done: bool) -> None:
        """Mark the run in the HParams table as finished, if it is."""
        if is_done:
            self._write(self._end, self._step)
        self._writer.close()

    def _write(self, found: Any, step: int) -> None:
        file_writer: Any = self._writer.file_writer
        file_writer.add_summary(found, step)


def _hparam(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _describe(found: Any, plugin: str, data_class: Any, description: str) -> None:
    """Give a summary a description. Without plugin and class TensorBoard's fast loader would drop it."""
    metadata = found.value[0].metadata
    metadata.plugin_data.plugin_name = plugin
    metadata.data_class = data_class
    metadata.summary_description = description
