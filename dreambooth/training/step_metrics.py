"""The metrics of an optimizer step: collected over its batches, read late, and refused where it is not finite.

Shapes: B samples, M metrics.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth.data.latents import Sample
from dreambooth.distributed import of_this_process
from dreambooth.errors import NonFiniteError
from dreambooth.losses import LossParts

NUM_DECILES = 10


@dataclass(frozen=True)
class BatchRecord:
    """Hold a batch's samples and timesteps, on the CPU, and losses, still on their device, for an error report."""

    samples: Sequence[Sample]
    t_B: Tensor
    loss_B: Tensor


class StepMetrics:
    """Hold the metrics of one optimizer step, still on their device: reading them waits until they are computed.

    names, values_M: what was computed. must_be_finite: names among them. known: metrics that need no reading.
    """

    def __init__(
        self,
        step: int,
        names: Sequence[str],
        values_M: Tensor,
        must_be_finite: Sequence[str],
        known: Mapping[str, float],
        batches: Sequence[BatchRecord] = (),
    ) -> None:
        self.step, self._names, self._values_M = step, names, values_M
        self._must_be_finite, self._known, self._batches = must_be_finite, known, batches

    @functools.cached_property
    def by_name(self) -> dict[str, float]:
        """Read the metrics. Raises NonFiniteError."""
        values = dict(zip(self._names, self._values_M.tolist(), strict=True))
        for name in self._must_be_finite:
            check_finite(self.step, name, values[name], self._batches)
        return {**values, **self._known}

    def read(self) -> None:
        """Wait for the metrics. Raises NonFiniteError."""
        _ = self.by_name


class StepRecorder:
    """Collect the metrics and samples of the optimizer step in progress, over the batches that it accumulates."""

    def __init__(self) -> None:
        self.batches: list[BatchRecord] = []
        self._values: dict[str, Tensor | float] = {}

    def add_loss(self, loss: LossParts, weight: float) -> None:
        """Add a batch's losses to the means of the step. weight: 1 / number of its batches."""
        parts = {"train/loss": loss.total, "train/loss_instance": loss.instance, "train/loss_prior": loss.prior}
        for name, value in parts.items():
            if value is not None:
                self._values[name] = self._values.get(name, 0.0) + value.detach() * weight

    def add_batch(self, record: BatchRecord) -> None:
        self.batches.append(record)

    def set(self, name: str, value: Tensor | float) -> None:
        self._values[name] = value

    def close(self, step: int, mean: Callable[[Tensor], Tensor], must_be_finite: Sequence[str]) -> StepMetrics:
        """Return the step's metrics and begin the next step with none. mean: of a tensor over all processes."""
        measured = {name: value.double() for name, value in self._values.items() if isinstance(value, Tensor)}
        known = {name: value for name, value in self._values.items() if not isinstance(value, Tensor)}
        values_M = mean(torch.stack(list(measured.values())))
        metrics = StepMetrics(step, tuple(measured), values_M, must_be_finite, known, self.batches)
        self.batches, self._values = [], {}
        return metrics


class DecileLosses:
    """Hold sums and counts of this process's training losses by tenth of the timesteps, [2, 10].

    Not a buffer of the module: DDP would overwrite every process's by the first one's.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(2, NUM_DECILES)

    def add(self, loss_B: Tensor, t_B: Tensor, num_timesteps: int) -> None:
        self.sums = self.sums.to(loss_B.device)
        decile_B = t_B * NUM_DECILES // num_timesteps
        self.sums.index_add_(1, decile_B, torch.stack([loss_B, torch.ones_like(loss_B)]))

    def load(self, saved_R2N: Tensor, rank: int, num_processes: int) -> None:
        """Go on from the sums of all processes; where another number of them saved, the first one takes all."""
        if len(saved_R2N) == num_processes:
            self.sums = saved_R2N[rank].clone()
        else:
            self.sums = saved_R2N.sum(0) * (rank == 0)

    def take(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means since last asked as train/loss_t0 (least noise) to t9. total: of a tensor over processes."""
        sums, counts = total(self.sums).tolist()
        self.sums.zero_()
        return {f"train/loss_t{i}": sums[i] / counts[i] for i in range(NUM_DECILES) if counts[i]}


def check_finite(step: int, name: str, value: float, batches: Sequence[BatchRecord] = ()) -> None:
    """Raise NonFiniteError for a value that is not finite, naming this process's samples that are to blame."""
    if not math.isfinite(value):
        raise NonFiniteError(
            f"step {step}: {name} is {value}; nothing of it was kept, the last checkpoint is as it was. "
            f"Lower optim.lr, or use train.precision=bf16-mixed or 32-true\n{_describe(batches)}"
        )


def _describe(batches: Sequence[BatchRecord], max_listed: int = 16) -> str:
    """List samples with their timesteps: those whose loss is not finite or, where every loss is, all."""
    everything, wrong = [], []
    for batch in batches:
        for sample, t, loss in zip(batch.samples, batch.t_B.tolist(), batch.loss_B.tolist(), strict=True):
            everything.append(f"{sample.name or sample.sample_index} (timestep {t})")
            if not math.isfinite(loss):
                wrong.append(everything[-1])
    listed = wrong or everything
    more = f" and {len(listed) - max_listed} more" if len(listed) > max_listed else ""
    kind = "whose loss is not finite" if wrong else "of this step, each of finite loss"
    return f"samples{of_this_process()} {kind}: {', '.join(listed[:max_listed])}{more}"
