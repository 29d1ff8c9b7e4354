"""Plug-ins beside TensorBoard and W&B: they see a run's metrics, validations and result, and change nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from dreambooth.plugins import Plugins
from dreambooth.training.loggers import RunResult

HOOKS = ("after_step", "after_validation", "after_training")


class PluginLogger:
    """Pass a run on to the plug-ins that look at it; it is a `RunLogger`. run: the run's folder."""

    def __init__(self, plugins: Plugins, run: Path) -> None:
        self._plugins = plugins
        self._run = run
        self._scores: Mapping[str, float] = {}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Pass on a step's metrics; those of a validation wait for its images."""
        if any(name.startswith("eval/") for name in metrics):
            self._scores = metrics
        else:
            self._plugins.tell("after_step", run=self._run, step=step, metrics=metrics)

    def show(self, grid: Image.Image, prompts: Sequence[str], step: int) -> None:
        seen = {"run": self._run, "step": step, "metrics": self._scores, "grid": grid, "prompts": prompts}
        self._plugins.tell("after_validation", **seen)

    def conclude(self, result: RunResult) -> None:
        seen = {"run": self._run, "step": result.step, "metrics": result.metrics, "model": result.model}
        self._plugins.tell("after_training", **seen)

    def close(self, is_done: bool) -> None:
        """Do nothing: there is nothing to close."""
