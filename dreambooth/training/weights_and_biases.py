"""Weights & Biases, by Lightning's logger."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning.loggers import WandbLogger

from dreambooth.training.loggers import GRID, RunResult, RunSettings


class WeightsAndBiases:
    """Show a run on Weights & Biases, begun or gone on with. number: W&B's name for it.

    with_model: also upload the model when the run has finished.
    """

    def __init__(
        self, name: str, folder: Path, project: str, number: str, settings: RunSettings, with_model: bool = False
    ) -> None:
        self._with_model = with_model
        self._logger = WandbLogger(name, folder, project=project, id=number, resume="allow")
        self._run.config.update(dict(settings.deciding), allow_val_change=True)  # asking for the run connects

    @property
    def _run(self) -> Any:
        return self._logger.experiment

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._logger.log_metrics(dict(metrics), step=step)

    def show(self, grid: Image.Image, prompts: Sequence[str], step: int) -> None:
        rows = "; ".join(f"{number}. {prompt}" for number, prompt in enumerate(prompts, start=1))
        self._logger.log_image(GRID, [grid], step=step, caption=[f"step {step}, rows from above: {rows}"])

    def conclude(self, result: RunResult) -> None:
        """Put the best scores into the run's summary, and where asked for upload model, config and images."""
        self._run.summary.update(result.best)
        if not self._with_model:
            return
        import wandb

        artifact = wandb.Artifact(f"model-{self._run.id}", type="model", metadata=result.best)
        artifact.add_dir(str(result.model))
        artifact.add_file(str(result.config))
        artifact.add_dir(str(result.samples), name="samples")
        self._run.log_artifact(artifact)

    def close(self, is_done: bool) -> None:
        """End the run, which makes W&B write what it still holds."""
        self._run.finish(exit_code=0 if is_done else 1)
