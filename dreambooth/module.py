"""The training step: DreamBooth's loss on one batch of subject and class latents. It reads like the paper.

Ruiz et al. 2023, arXiv 2208.12242, equation 2. Shapes: B samples of the subject, 2B with those of the class, C
channels, H/W latent height and width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dreambooth.errors import NonFiniteError
from dreambooth.families import Condition, Family
from dreambooth.losses import LossParts, prior_preservation, squared_error
from dreambooth.optim import OptimSettings, make_optimizer
from dreambooth.prior import Prior
from dreambooth.randomness import Randomness


@dataclass(frozen=True)
class Objective:
    """What is learned: the two prompts and how much the class counts (the paper's lambda)."""

    subject_prompt: str
    class_prompt: str
    prior_weight: float = 1.0


class DreamBoothModule(pl.LightningModule):
    """Trains `trained` (parts of `family`) on batches {"place": [B], "latents": [B, C, H, W]} of the subject.

    Only what trains is a submodule, so only that is in a checkpoint; the VAE and a frozen text encoder are not.
    """

    def __init__(
        self,
        family: Family,
        trained: Mapping[str, nn.Module],
        objective: Objective,
        prior: Prior | None,
        optim: OptimSettings,
        randomness: Randomness,
        max_grad_norm: float = 1.0,
    ) -> None:
        super().__init__()
        self.family = family
        self.trained = nn.ModuleDict(trained)
        self.objective = objective
        self.prior = prior
        self.optim = optim
        self.randomness = randomness
        self.max_grad_norm = max_grad_norm
        self.figures: dict[str, Tensor | float] = {}  # of the optimizer step in progress, by log name
        self.last_step: dict[str, float] = {}  # the same of the last whole one
        self._frozen_conditions: Condition | None = None

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        places = batch["place"].tolist()
        torch.manual_seed(self.randomness.torch_seed("module", places[0]))  # for dropout inside the networks

        x0, is_prior = self._with_prior(batch["latents"], places)
        noise, t = self._noise_and_timesteps(places, x0)
        noisy = self.family.schedule.add_noise(x0, noise, t)
        prediction = self.family.predict(noisy, t, self._condition(is_prior))
        loss_2B = squared_error(prediction, self.family.schedule.target(x0, noise, t))
        loss = prior_preservation(loss_2B, is_prior, self.objective.prior_weight)

        self._note(loss)
        return loss.total

    def _with_prior(self, latents_BCHW: Tensor, places: list[int]) -> tuple[Tensor, Tensor]:
        """Subject latents, followed by as many class latents; and which are which, bool [2B]."""
        is_prior_B = torch.zeros(len(places), dtype=torch.bool, device=latents_BCHW.device)
        if self.prior is None:
            return latents_BCHW, is_prior_B
        prior_BCHW = self.prior.latents(places).to(latents_BCHW.device)
        return torch.cat([latents_BCHW, prior_BCHW]), torch.cat([is_prior_B, ~is_prior_B])

    def _noise_and_timesteps(self, places: list[int], x0: Tensor) -> tuple[Tensor, Tensor]:
        """Subject and class samples draw their own, so that the prior changes nothing in the subject's."""
        shape, num_timesteps = tuple(x0.shape[1:]), self.family.schedule.num_timesteps
        choices = ("subject", "prior")[: len(x0) // len(places)]
        noise = torch.cat([self.randomness.normal(f"{choice}/noise", places, shape) for choice in choices])
        t = torch.cat([self.randomness.integers(f"{choice}/timestep", places, num_timesteps) for choice in choices])
        return noise.to(x0.device), t.to(x0.device)

    def _condition(self, is_prior: Tensor) -> Condition:
        """Each of the two prompts goes through the text encoder once a step (once a run where that is frozen)."""
        condition = self._frozen_conditions
        if condition is None:
            prompts = [self.objective.subject_prompt, self.objective.class_prompt]
            condition = self.family.condition(prompts if self.prior is not None else prompts[:1])
            if not any(name.startswith("text_encoder") for name in self.trained):
                self._frozen_conditions = condition = {name: tensor.detach() for name, tensor in condition.items()}
        return {name: tensor[is_prior.long()] for name, tensor in condition.items()}

    def _note(self, loss: LossParts) -> None:
        """Add to the step's figures, averaged over the batches that it accumulates; stop where a loss is not finite."""
        share = 1 / self.trainer.accumulate_grad_batches
        parts = {"train/loss": loss.total, "train/loss_instance": loss.instance, "train/loss_prior": loss.prior}
        for name, value in parts.items():
            if value is not None:
                self.figures[name] = self.figures.get(name, 0.0) + value.detach() * share
        self._check_finite(loss.total, "the loss")

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip to `max_grad_norm`, note the norm, and stop before the optimizer step where it is not finite."""
        parameters = [parameter for part in self.trained.values() for parameter in part.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf"))
        self.figures["optim/grad_norm"] = norm
        for group in optimizer.param_groups:
            self.figures["optim/lr" if group["name"] == "denoiser" else f"optim/lr_{group['name']}"] = group["lr"]
        if self.trainer.precision != "16-mixed":  # there an infinite gradient is normal: the scaler skips the step
            self._check_finite(norm, "the gradient's norm")

    def _check_finite(self, value: Tensor, what: str) -> None:
        if not bool(torch.isfinite(value)):
            raise NonFiniteError(
                f"step {self.trainer.global_step + 1}: {what} is {float(value.detach())}; nothing of it was kept, "
                "the last checkpoint is as it was. Lower optim.lr, or use train.precision=bf16-mixed or 32-true"
            )

    def close_step(self) -> dict[str, float]:
        """The figures of the optimizer step that just ended, by log name; the next step starts with none."""
        self.last_step = {name: float(value) for name, value in self.figures.items()}
        self.figures.clear()
        return self.last_step

    def configure_optimizers(self) -> Any:
        # Lightning leaves a fused optimizer's gradients scaled while they are clipped.
        fused = self.trainer.precision != "16-mixed"
        optimizer, schedule = make_optimizer(dict(self.trained.items()), self.optim, fused)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
