"""The Lightning module: hooks around a training step, whose arithmetic is in `objective`.

Images may differ in shape: samples of one shape go through the networks together. Shapes: B samples of one shape, S all
samples of a batch, of the subject and then as many of the class.
"""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn

from dreambooth.data.latents import Batch, Sample, by_shape
from dreambooth.distributed import shard
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.generation.class_prior import Predict, Prior
from dreambooth.losses import prior_preservation, sample_weights
from dreambooth.randomness import Randomness, seed_device
from dreambooth.training.average import ScheduleFreeAverage, WeightAverage
from dreambooth.training.objective import LossSettings, draw, encode_batch, sample_losses
from dreambooth.training.optimizer import (
    OptimSettings,
    StepInBackward,
    clip_gradients,
    is_of_text,
    make_optimizer,
    skip_unless_finite,
)
from dreambooth.training.step_metrics import (
    NUM_DECILES,
    BatchRecord,
    DecileLosses,
    StepMetrics,
    StepRecorder,
    check_finite,
)


class DreamBoothModule(pl.LightningModule):
    """Train `trained` (networks of `family`) on batches of the subject: lists of samples.

    Only networks that train are submodules, and only their trained weights are in a checkpoint.
    teacher: `objective.sample_losses`. micro_batch_size: samples that go through the networks at a time; None: all.
    """

    strict_loading = False  # frozen weights are not in a checkpoint; `load_trained` checks that all others are

    def __init__(
        self,
        family: Family,
        trained: Mapping[str, nn.Module],
        loss_settings: LossSettings,
        prior: Prior | None,
        optim: OptimSettings,
        randomness: Randomness,
        max_grad_norm: float = 1.0,
        teacher: Predict | None = None,
        ema_decay: float = 0.0,
        micro_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.family = family
        self.trained = nn.ModuleDict(trained)
        self.loss_settings = loss_settings
        self.prior = prior
        self.optim = optim
        self.randomness = randomness
        self.max_grad_norm = max_grad_norm
        self.teacher = teacher
        self.micro_batch_size = micro_batch_size
        self.average = WeightAverage(lambda: list(self.trained_state().values()), ema_decay)
        self.deciles = DecileLosses()
        self.recorder = StepRecorder()
        self.last_step: StepMetrics | None = None  # of the last whole optimizer step
        self.in_backward: StepInBackward | None = None  # with optim.in_backward
        self.text_is_stopped = False  # whether the text encoders stay as they are from now on

    @property
    def is_sharded(self) -> bool:
        """Return whether each process has only a part of every trained weight."""
        return isinstance(self.trainer.strategy, ModelParallelStrategy)

    @property
    def is_fused(self) -> bool:
        """Return whether the optimizer is fused: AdamW, but not in 16-mixed.

        There Lightning would clip a fused one's gradients while they are scaled.
        """
        return self.optim.name == "adamw" and self.trainer.precision != "16-mixed"

    def configure_model(self) -> None:
        if self.is_sharded:
            for network in self.trained.values():
                shard(network, cast(Any, self.device_mesh)["data_parallel"])

    def configure_optimizers(self) -> Any:
        trained = dict(self.trained.items())
        optimizer, schedule = make_optimizer(trained, self.optim, self.is_fused, lambda: self.text_is_stopped)
        if self.optim.name == "schedulefree":
            self.average = ScheduleFreeAverage(self.average.weights, optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        if self.optim.in_backward:
            optimizer = self.trainer.optimizers[0]
            self.in_backward = StepInBackward(optimizer, functools.partial(self._guard, optimizer))

    # ---------------------------------------------------------------------------- the step

    def training_step(self, batch: Sequence[Sample], batch_idx: int) -> Tensor:
        """Return eq. 2's loss of the subject's samples and as many of the class."""
        seed_device(self.device, self.randomness.torch_seed("module", batch[0].sample_index))  # dropout in networks
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.trainer.optimizers[0].zero_grad()

        with timed(self.trainer, "class samples"):
            indices = [sample.sample_index for sample in batch]
            class_samples = [] if self.prior is None else self.prior.samples(indices)
        groups = by_shape([*batch, *class_samples], self.micro_batch_size)
        is_prior_S = torch.tensor([sample.is_prior for group in groups for sample in group])
        if self.micro_batch_size is None:
            loss_S = torch.cat([self._losses(group) for group in groups])
        else:
            loss_S = self._losses_in_turn(groups, is_prior_S)
        loss = prior_preservation(loss_S, is_prior_S, self.loss_settings.prior_weight)
        self.recorder.add_loss(loss, weight=1 / self.trainer.accumulate_grad_batches)
        return loss.total

    def _losses_in_turn(self, groups: Sequence[list[Sample]], is_prior_S: Tensor) -> Tensor:
        """Run forward and backward group by group, so that only one group's activations are in memory.

        Returns the losses of all samples, [S]. Lightning runs backward for the last group.
        """
        weight_S = sample_weights(is_prior_S, self.loss_settings.prior_weight).to(self.device, non_blocking=True)
        weight_S = weight_S / self.trainer.accumulate_grad_batches
        weights = weight_S.split([len(group) for group in groups])
        losses = []
        for group, weight_B in zip(groups[:-1], weights[:-1], strict=True):
            loss_B = self._losses(group)
            with torch.autocast(self.device.type, enabled=False):
                self.trainer.strategy.backward((weight_B * loss_B).sum(), self.trainer.optimizers[0])
            losses.append(loss_B.detach())
        losses.append(self._losses(groups[-1]))
        return torch.cat(losses)

    def _losses(self, samples: Sequence[Sample]) -> Tensor:
        """Return the loss of each of some samples of one shape, [B], and record them."""
        batch = Batch.stack(samples, self.family.vae_scale_factor, self.loss_settings.unmasked_weight)
        drawn = draw(batch, self.family.schedule, self.randomness, self.loss_settings)
        batch, draws = batch.to(self.device), drawn.to(self.device)
        with timed(self.trainer, "texts"):
            conditioning = encode_batch(self.family, batch)
        loss_B = sample_losses(self.family, batch, draws, conditioning, self.loss_settings, self.teacher)
        self.deciles.add(loss_B.detach(), draws.t_B, self.family.schedule.num_timesteps)
        self.recorder.add_batch(BatchRecord(samples, drawn.t_B, loss_B.detach()))
        return loss_B

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Free the autograd graph now; Lightning would keep it until the step ends."""
        super().backward(loss, *args, **kwargs)
        loss.detach_()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Do nothing: `training_step` frees gradients before its forward pass, which lowers the step's peak memory."""

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients to `max_grad_norm`, and record their norm and the learning rates."""
        if self.in_backward is not None:
            norm = self.in_backward.take_norm()
        else:
            norm = clip_gradients(optimizer, self.max_grad_norm, self.is_fused)
            self._guard(optimizer, norm)
        self.recorder.set("optim/grad_norm", norm)
        for number, group in enumerate(optimizer.param_groups):  # the denoiser's is the first where it trains
            self.recorder.set(f"optim/lr_{group['name']}" if number else "optim/lr", group["lr"])

    def _guard(self, optimizer: Any, norm: Tensor) -> None:
        """Protect weights and moments from gradients that are not finite; 16-mixed's scaler does that already.

        A fused optimizer skips the step without waiting for the device; `StepMetrics` stops the run when it is read.
        """
        if self.is_fused:
            skip_unless_finite(optimizer, norm)
        elif self.trainer.precision != "16-mixed":
            check_finite(self.trainer.global_step + 1, "optim/grad_norm", float(norm), self.recorder.batches)

    def close_step(self) -> StepMetrics:
        """Return the metrics of the optimizer step that just ended, averaged over processes (collective)."""
        # In 16-mixed an infinite gradient is normal: the scaler skips the step.
        finite = ("train/loss",) if self.trainer.precision == "16-mixed" else ("train/loss", "optim/grad_norm")
        mean = functools.partial(self.trainer.strategy.reduce, reduce_op="mean")
        self.last_step = self.recorder.close(self.trainer.global_step, mean, finite)
        return self.last_step

    def take_deciles(self) -> dict[str, float]:
        """Return the mean training loss by tenth of the timesteps since the last call (collective)."""
        return self.deciles.take(lambda sums: self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum"))

    def stop_text_encoders(self) -> None:
        """Stop training the text encoders from now on, the next step included, whose learning rate is set already."""
        self.text_is_stopped = True
        for group in self.trainer.optimizers[0].param_groups:
            if is_of_text(group):
                group["lr"] = 0.0

    # ---------------------------------------------------------------------------- the state

    def trained_state(self) -> dict[str, Tensor]:
        """Return the weights that train, by name; the tensors themselves, not copies."""
        return {name: weight for name, weight in self.trained.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Copy weights of `trained_state` back. Raises UserError where they are not exactly those that train."""
        own = self.trained_state()
        check_names(own, state)
        for name, weight in own.items():
            weight.copy_(state[name])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.average.save(checkpoint)
        sums_of_all = torch.zeros(self.trainer.world_size, 2, NUM_DECILES, device=self.device)
        sums_of_all[self.trainer.global_rank] = self.deciles.sums
        checkpoint["decile_losses"] = self.trainer.strategy.reduce(sums_of_all, reduce_op="sum")
        kept = {f"trained.{name}" for name in self.trained_state()}
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.average.load(checkpoint)
        saved_R2N = checkpoint["decile_losses"].to(self.device)
        self.deciles.load(saved_R2N, self.trainer.global_rank, self.trainer.world_size)
        if "state_dict" in checkpoint:  # sharded weights are in their place already
            check_names(self.trained_state(), {name.removeprefix("trained.") for name in checkpoint["state_dict"]})


def timed(trainer: pl.Trainer, part: str) -> contextlib.AbstractContextManager[Any]:
    """Time a block as a part of its own, if the run is profiled (`profiling`)."""
    return cast(Any, trainer).profiler.profile(part)


def check_names(own: Iterable[str], loaded: Iterable[str]) -> None:
    """Raise UserError where the weights of a checkpoint are not exactly those that train."""
    if odd := sorted(set(own) ^ set(loaded)):
        raise UserError(
            f"the saved state is of another model or method: {len(odd)} weights differ in name, e.g. {odd[0]}; choose "
            "another run.name, or start again with run.resume=never"
        )
