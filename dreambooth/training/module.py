"""The training step: DreamBooth's loss on one batch of subject and class latents. It reads like the paper.

Ruiz et al. 2023, arXiv 2208.12242, equation 2. Pictures may differ in shape: those of one shape go through the networks
together. Shapes: B samples of one shape (in `training_step` of the subject, 2B with those of the class), C channels,
H/W latent height and width.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import pytorch_lightning as pl
import torch
from diffusers.training_utils import EMAModel
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn

from dreambooth.data.latents import Sample, by_shape
from dreambooth.distributed import of_this_process, shard, whole
from dreambooth.errors import NonFiniteError, UserError
from dreambooth.families import Condition, Family
from dreambooth.generation.class_prior import Predict, Prior
from dreambooth.losses import (
    LossParts,
    mean_over_picture,
    prior_preservation,
    pseudo_huber,
    sample_weights,
    squared_error,
    timestep_weight,
)
from dreambooth.randomness import Randomness, seed_device
from dreambooth.training.optimizer import OptimSettings, StepInBackward, is_of_text, make_optimizer

NUM_DECILES = 10


@dataclass(frozen=True)
class LossSettings:
    """How an error is counted, and how much the class counts (the paper's lambda).

    huber_c: None for the squared error. weighting, gamma: `losses.timestep_weight`. noise_offset: how much of the noise
    is one number a channel, so that brightness can be learned (N. Guttenberg 2023, "Diffusion with Offset Noise";
    0.05 to 0.1). input_perturbation: how much noise the network sees beside what it is asked for (Ning et al. 2023,
    arXiv 2301.11706; 0.1). unmasked_weight: how much places count that a mask leaves out.
    """

    prior_weight: float = 1.0
    huber_c: float | None = None
    weighting: str = "none"
    gamma: float = 5.0
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    unmasked_weight: float = 0.0


class StepMetrics:
    """What was measured in an optimizer step, still on its device: reading it waits until it is there.

    names, values: of the figures, [F]. finite: which of them have to be. known: those that need no reading. seen: what
    it learned from.
    """

    def __init__(
        self,
        step: int,
        names: Sequence[str],
        values_F: Tensor,
        finite: Sequence[str],
        known: Mapping[str, float],
        seen: Sequence["BatchRecord"] = (),
    ) -> None:
        self.step, self._names, self._values_F, self._finite, self._known = step, names, values_F, finite, known
        self._seen = seen

    @functools.cached_property
    def by_name(self) -> dict[str, float]:
        """Raises NonFiniteError."""
        values = dict(zip(self._names, self._values_F.tolist(), strict=True))
        for name in self._finite:
            check_finite(self.step, name, values[name], self._seen)
        return {**values, **self._known}


@dataclass(frozen=True)
class BatchRecord:
    """A batch: its samples, their timesteps [B], drawn when asked for, and losses [B], still on their device."""

    samples: Sequence[Sample]
    timesteps: Callable[[], Tensor]
    loss_B: Tensor


def check_finite(step: int, name: str, value: float, seen: Sequence[BatchRecord] = ()) -> None:
    """Raises NonFiniteError, which names the samples of this process that are to blame."""
    if not math.isfinite(value):
        raise NonFiniteError(
            f"step {step}: {name} is {value}; nothing of it was kept, the last checkpoint is as it was. "
            f"Lower optim.lr, or use train.precision=bf16-mixed or 32-true\n{_describe(seen)}"
        )


def _describe(seen: Sequence[BatchRecord], most: int = 16) -> str:
    """The samples whose loss is not finite, or all where each one's is, with their timesteps."""
    samples = [
        (f"{sample.name or sample.place} (timestep {t})", math.isfinite(loss))
        for batch in seen
        for sample, t, loss in zip(batch.samples, batch.timesteps().tolist(), batch.loss_B.tolist(), strict=True)
    ]
    wrong = [text for text, is_finite in samples if not is_finite]
    listed = wrong or [text for text, _ in samples]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    kind = "whose loss is not finite" if wrong else "of this step, each of finite loss"
    return f"samples{of_this_process()} {kind}: {', '.join(listed[:most])}{more}"


class DreamBoothModule(pl.LightningModule):
    """Trains `trained` (parts of `family`) on batches of the subject: lists of samples.

    Only networks that train are submodules, and only their trained weights are in a checkpoint.
    """

    strict_loading = False  # what is frozen is not in a checkpoint; that all the rest is, `load_trained` checks

    def __init__(
        self,
        family: Family,
        trained: Mapping[str, nn.Module],
        objective: LossSettings,
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
        self.objective = objective
        self.prior = prior
        self.optim = optim
        self.randomness = randomness
        self.max_grad_norm = max_grad_norm
        self.teacher = teacher
        self.micro_batch_size = micro_batch_size  # samples that go through the networks at a time; None: all
        self.average = EMAModel(list(self.trained_state().values()), ema_decay) if ema_decay else None
        self.in_backward: StepInBackward | None = None  # with optim.in_backward
        self.figures: dict[str, Tensor | float] = {}  # of the optimizer step in progress, by log name
        self.seen: list[BatchRecord] = []  # in the optimizer step in progress
        self.last_step: StepMetrics | None = None  # the same of the last whole one
        self.text_is_stopped = False  # whether the text encoders stay as they are from now on
        self.last_scores = ""  # of the last validation, for the bar
        # Sums and counts of the training loss by tenth of the timesteps. No buffer: DDP would make all processes' the
        # first one's.
        self.decile_losses = torch.zeros(2, NUM_DECILES)

    @property
    def is_sharded(self) -> bool:
        """Whether each process has only a part of every trained weight."""
        return isinstance(self.trainer.strategy, ModelParallelStrategy)

    def configure_model(self) -> None:
        if self.is_sharded:
            for network in self.trained.values():
                shard(network, cast(Any, self.device_mesh)["data_parallel"])

    def on_train_start(self) -> None:
        if self.optim.in_backward:
            optimizer = self.trainer.optimizers[0]
            self.in_backward = StepInBackward(optimizer, functools.partial(self._guard, optimizer))

    def training_step(self, batch: Sequence[Sample], batch_idx: int) -> Tensor:
        seed_device(self.device, self.randomness.torch_seed("module", batch[0].place))  # for dropout within networks
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.trainer.optimizers[0].zero_grad()

        groups = by_shape([*batch, *self._class_samples(batch)], self.micro_batch_size)
        is_prior = torch.cat([self._is_prior(samples) for samples in groups])
        losses = self._losses_in_turn(groups, is_prior) if self.micro_batch_size else map(self._losses, groups)
        loss_2B = torch.cat(list(losses))
        loss = prior_preservation(loss_2B, is_prior, self.objective.prior_weight)
        samples = [*chain(*groups)]
        self.seen.append(BatchRecord(samples, functools.partial(self._drawn_timesteps, samples), loss_2B.detach()))
        self._note(loss)
        return loss.total

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """And let go of what the loss was computed by, which Lightning else holds until the step is over."""
        super().backward(loss, *args, **kwargs)
        loss.detach_()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Not here, behind the forward pass: `training_step` has done it before, and a step's peak memory is lower."""

    def _losses_in_turn(self, groups: Sequence[list[Sample]], is_prior_2B: Tensor) -> Iterator[Tensor]:
        """Of each group, [B]; all but the last have been led back through the networks before the next begins."""
        share_2B = (
            self._put(sample_weights(is_prior_2B, self.objective.prior_weight)) / self.trainer.accumulate_grad_batches
        )
        share_of_groups = share_2B.split([len(samples) for samples in groups])
        for samples, share_B in zip(groups[:-1], share_of_groups, strict=False):
            loss_B = self._losses(samples)
            with torch.autocast(self.device.type, enabled=False):
                self.trainer.strategy.backward((share_B * loss_B).sum(), self.trainer.optimizers[0])
            yield loss_B.detach()
        yield self._losses(groups[-1])

    def _class_samples(self, batch: Sequence[Sample]) -> list[Sample]:
        """As many as there are of the subject."""
        with self._timed("class samples"):
            return [] if self.prior is None else self.prior.samples([sample.place for sample in batch])

    def _timed(self, part: str) -> contextlib.AbstractContextManager[Any]:
        """As a part of its own in the profile (`profiling`), where there is one."""
        return cast(Any, self.trainer).profiler.profile(part)

    def _losses(self, samples: Sequence[Sample]) -> Tensor:
        """The loss of each of some samples of one shape, [B]."""
        x0 = self._put(torch.stack([sample.latents_CHW for sample in samples]))
        noise, t = self._noise(samples), self._timesteps(samples)
        noisy = self.family.schedule.add_noise(x0, self._perturbed(noise, samples), t)
        with self._timed("texts"):
            condition = self._condition([sample.prompt for sample in samples]) | self._frame_condition(samples)
        prediction = self.family.predict(noisy, t, condition)
        target = self.family.schedule.target(x0, noise, t)
        class_prompts = [sample.prompt for sample in samples if sample.is_prior]
        if self.teacher is not None and class_prompts:
            is_prior = self._is_prior(samples)
            target[is_prior] = self.teacher(noisy[is_prior], t[is_prior], class_prompts)
        loss_B = self._error(prediction, target, self._mask(samples)) * self._weight(t)
        self._note_deciles(loss_B.detach(), t)
        return loss_B

    def _put(self, tensor: Tensor) -> Tensor:
        """On the device, without waiting for what it still has to do."""
        return tensor.to(self.device, non_blocking=True)

    def _is_prior(self, samples: Sequence[Sample]) -> Tensor:
        """On the CPU, where what is picked by it can be known without waiting for the device."""
        return torch.tensor([sample.is_prior for sample in samples])

    def _timesteps(self, samples: Sequence[Sample]) -> Tensor:
        return self._put(self._drawn_timesteps(samples))

    def _drawn_timesteps(self, samples: Sequence[Sample]) -> Tensor:
        num_timesteps = self.family.schedule.num_timesteps
        draws = [self.randomness.integers(f"{one.source}/timestep", [one.place], num_timesteps) for one in samples]
        return torch.cat(draws)

    def _noise(self, samples: Sequence[Sample]) -> Tensor:
        shape = samples[0].latents_CHW.shape
        noise = self._normal("noise", samples, shape)
        if self.objective.noise_offset:
            noise = noise + self.objective.noise_offset * self._normal("offset", samples, (shape[0], 1, 1))
        return noise

    def _perturbed(self, noise: Tensor, samples: Sequence[Sample]) -> Tensor:
        """The noise that the network sees; the target is made of that which was drawn."""
        if not self.objective.input_perturbation:
            return noise
        return noise + self.objective.input_perturbation * self._normal("perturbation", samples, noise.shape[1:])

    def _normal(self, name: str, samples: Sequence[Sample], shape: tuple[int, ...]) -> Tensor:
        """A draw a sample, [B, *shape]. The class draws its own: a prior changes nothing in what the subject draws."""
        draws = [self.randomness.normal(f"{one.source}/{name}", [one.place], tuple(shape)) for one in samples]
        return self._put(torch.cat(draws))

    def _mask(self, samples: Sequence[Sample]) -> Tensor | None:
        """How much each place counts, [B, 1, H, W]; None: all the same."""
        masks = [sample.mask_1HW for sample in samples]
        if all(mask is None for mask in masks):
            return None
        whole, outside = torch.ones_like(samples[0].latents_CHW[:1]), self.objective.unmasked_weight
        counts = [whole if mask is None else outside + (1 - outside) * mask for mask in masks]
        return self._put(torch.stack(counts))

    def _error(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        if self.objective.huber_c is None:
            return mean_over_picture(squared_error(prediction, target), mask)
        return mean_over_picture(pseudo_huber(prediction, target, self.objective.huber_c), mask)

    def _weight(self, t: Tensor) -> Tensor:
        schedule = self.family.schedule
        return timestep_weight(schedule.snr(t), self.objective.weighting, schedule.prediction, self.objective.gamma)

    def _condition(self, prompts: Sequence[str]) -> Condition:
        """Each different prompt goes through the text encoder once."""
        different = list(dict.fromkeys(prompts))
        rows = [different.index(prompt) for prompt in prompts]
        return {name: tensor[rows] for name, tensor in self.family.condition(different).items()}

    def _frame_condition(self, samples: Sequence[Sample]) -> Condition:
        """How pictures were cut; those that do not say are taken for whole ones."""
        height, width = (side * self.family.vae_scale_factor for side in samples[0].latents_CHW.shape[1:])
        whole_6 = torch.tensor([height, width, 0, 0, height, width])
        frames = [whole_6 if sample.size_crop_6 is None else sample.size_crop_6 for sample in samples]
        return self.family.size_conditioning(self._put(torch.stack(frames)))

    def _note(self, loss: LossParts) -> None:
        """Add to the step's figures, averaged over the batches that it accumulates."""
        share = 1 / self.trainer.accumulate_grad_batches
        parts = {"train/loss": loss.total, "train/loss_instance": loss.instance, "train/loss_prior": loss.prior}
        for name, value in parts.items():
            if value is not None:
                self.figures[name] = self.figures.get(name, 0.0) + value.detach() * share

    def _note_deciles(self, loss_2B: Tensor, t_2B: Tensor) -> None:
        decile_2B = t_2B * NUM_DECILES // self.family.schedule.num_timesteps
        self.decile_losses = self.decile_losses.to(loss_2B.device)
        self.decile_losses.index_add_(1, decile_2B, torch.stack([loss_2B, torch.ones_like(loss_2B)]))

    def take_deciles(self) -> dict[str, float]:
        """Mean training loss per tenth of the timesteps since last asked: train/loss_t0 (least noise) to t9.

        All processes must ask.
        """
        total = self.trainer.strategy.reduce(self.decile_losses.to(self.device), reduce_op="sum")
        sums, counts = total.tolist()
        self.decile_losses.zero_()
        return {f"train/loss_t{i}": sums[i] / counts[i] for i in range(NUM_DECILES) if counts[i]}

    @torch.no_grad()
    def fixed_loss(self, samples: Sequence[Sample]) -> float:
        """The loss on samples of places from 0 on, at noise and timesteps that are always the same, spread evenly."""
        num_timesteps, losses = self.family.schedule.num_timesteps, []
        for part in by_shape(samples, largest=4):
            x0 = self._put(torch.stack([sample.latents_CHW for sample in part]))
            noise = self._normal("noise", part, x0.shape[1:])
            t = self._put(torch.tensor([(2 * each.place + 1) * num_timesteps // (2 * len(samples)) for each in part]))
            noisy = self.family.schedule.add_noise(x0, noise, t)
            prediction = self.family.predict(noisy, t, self._condition([sample.prompt for sample in part]))
            target = self.family.schedule.target(x0, noise, t)
            losses.append(mean_over_picture(squared_error(prediction, target)))
        return float(torch.cat(losses).mean())

    def trained_state(self) -> dict[str, Tensor]:
        """The weights that train, by name; the tensors themselves, not copies."""
        return {name: weight for name, weight in self.trained.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Put weights of `trained_state` back. Raises UserError where they are not exactly those that train."""
        own = self.trained_state()
        check_names(own, state)
        for name, weight in own.items():
            weight.copy_(state[name])

    def update_average(self) -> None:
        """Take the weights of the optimizer step that just ended into their average, where there is one.

            average <- d * average + (1 - d) * weights

        with d = 0 at the first step and min(decay, (1 + n) / (10 + n)) after n more: a young average follows closely
        (Polyak & Juditsky 1992; the warm-up is TensorFlow's).
        """
        if self.average is not None:
            self.average.step(list(self.trained_state().values()))

    def take_average(self) -> None:
        """Put the average in the place of the weights for good, where there is one."""
        if self.average is not None:
            self.average.copy_to(list(self.trained_state().values()))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in place of the weights that train, where there is one."""
        if self.average is None:
            yield
            return
        weights = list(self.trained_state().values())
        self.average.store(weights)
        self.average.copy_to(weights)
        try:
            yield
        finally:
            self.average.restore(weights)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            checkpoint["average"] = self.average.state_dict()
        of_all = torch.zeros(self.trainer.world_size, 2, NUM_DECILES, device=self.device)
        of_all[self.trainer.global_rank] = self.decile_losses
        checkpoint["decile_losses"] = self.trainer.strategy.reduce(of_all, reduce_op="sum")
        kept = {f"trained.{name}" for name in self.trained_state()}
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            self.average.load_state_dict(checkpoint["average"])
            self.average.to(self.device)
        self.decile_losses = checkpoint["decile_losses"][self.trainer.global_rank].clone()
        if "state_dict" in checkpoint:  # divided weights are in their place already
            check_names(self.trained_state(), {name.removeprefix("trained.") for name in checkpoint["state_dict"]})

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip to `max_grad_norm` and note the norm; where it is not finite the step leaves weights and moments alone.

        It does so on the device, nobody waits for it: `StepMetrics` stops the run when it is read.
        """
        norm = self.in_backward.take_norm() if self.in_backward is not None else self._clip(optimizer)
        self.figures["optim/grad_norm"] = norm
        for number, group in enumerate(optimizer.param_groups):  # the denoiser's is the first where it trains
            self.figures[f"optim/lr_{group['name']}" if number else "optim/lr"] = group["lr"]

    def _clip(self, optimizer: Any) -> Tensor:
        """The norm of all gradients, which are divided by what it is too large by.

        A fused optimizer does that while it reads them, and spares a pass through memory of its own.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
        if self._is_fused:
            norm = whole(torch.nn.utils.get_total_norm([weight.grad for weight in weights]))
            optimizer.grad_scale = (norm / self.max_grad_norm).clamp(min=1) if self.max_grad_norm else None
        else:
            norm = whole(torch.nn.utils.clip_grad_norm_(weights, self.max_grad_norm or float("inf")))
        self._guard(optimizer, norm)
        return norm

    def _guard(self, optimizer: Any, norm: Tensor) -> None:
        """Against gradients that are not finite, of which `norm` is."""
        if self._is_fused:
            optimizer.found_inf = (~torch.isfinite(norm)).float()
        elif self.trainer.precision != "16-mixed":
            check_finite(self.trainer.global_step + 1, "optim/grad_norm", float(norm), self.seen)

    def close_step(self) -> StepMetrics:
        """The figures of the optimizer step that just ended; the next step starts with none.

        They are means over all processes, which must all ask.
        """
        measured = {name: value.double() for name, value in self.figures.items() if isinstance(value, Tensor)}
        means = self.trainer.strategy.reduce(torch.stack(list(measured.values())), reduce_op="mean")
        rates = {name: value for name, value in self.figures.items() if not isinstance(value, Tensor)}
        # In 16-mixed an infinite gradient is normal: the scaler skips the step.
        finite = ("train/loss",) if self.trainer.precision == "16-mixed" else ("train/loss", "optim/grad_norm")
        seen, self.seen = self.seen, []
        self.last_step = StepMetrics(self.trainer.global_step, tuple(measured), means, finite, rates, seen)
        self.figures.clear()
        return self.last_step

    @property
    def _is_fused(self) -> bool:
        """Of 16-mixed Lightning leaves a fused optimizer's gradients scaled while they are clipped."""
        return self.optim.name == "adamw" and self.trainer.precision != "16-mixed"

    def configure_optimizers(self) -> Any:
        trained = dict(self.trained.items())
        optimizer, schedule = make_optimizer(trained, self.optim, self._is_fused, lambda: self.text_is_stopped)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def stop_text_encoders(self) -> None:
        """They stay as they are from now on; the next step's learning rate is set already."""
        self.text_is_stopped = True
        for group in self.trainer.optimizers[0].param_groups:
            if is_of_text(group):
                group["lr"] = 0.0


def check_names(own: Iterable[str], loaded: Iterable[str]) -> None:
    """Raises UserError where the weights of a checkpoint are not exactly those that train."""
    if odd := sorted(set(own) ^ set(loaded)):
        raise UserError(
            f"the saved state is of another model or method: {len(odd)} weights differ in name, e.g. {odd[0]}"
        )
