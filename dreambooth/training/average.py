"""The exponential moving average (EMA) of the weights that train."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor


class WeightAverage:
    """Average weights over the optimizer steps:

        average <- d * average + (1 - d) * weights

    with d = 0 at the first step and min(decay, (1 + n) / (10 + n)) after n more: a young average follows closely
    (Polyak & Juditsky 1992; the warm-up is TensorFlow's). A decay of 0 keeps no average, and no method does anything.

    weights: returns the live weights, always in one order.
    """

    def __init__(self, weights: Callable[[], list[Tensor]], decay: float) -> None:
        self.weights = weights
        self._ema = EMAModel(weights(), decay) if decay else None

    def update(self) -> None:
        """Take in the weights of the optimizer step that just ended."""
        if self._ema is not None:
            self._ema.step(self.weights())

    def replace_weights(self) -> None:
        """Copy the average over the live weights for good."""
        if self._ema is not None:
            self._ema.copy_to(self.weights())

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in place of the live weights, and those back afterwards."""
        if self._ema is None:
            yield
            return
        weights = self.weights()
        self._ema.store(weights)
        self._ema.copy_to(weights)
        try:
            yield
        finally:
            self._ema.restore(weights)

    def save(self, checkpoint: dict[str, Any]) -> None:
        if self._ema is not None:
            checkpoint["average"] = self._ema.state_dict()

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a saved average, on the weights' device: Lightning's module has none of its own as it loads."""
        if self._ema is not None:
            self._ema.load_state_dict(checkpoint["average"])
            self._ema.to(self.weights()[0].device)


class ScheduleFreeAverage(WeightAverage):
    """Put the averaged weights x of a schedule-free optimizer in the place of those y at which it takes gradients:

        x = y + (1 - 1 / beta1) (z - y)     Defazio et al. 2024, arXiv 2405.15682, eq. 1 to 3

    The optimizer itself would go there and back by arithmetic, which rounds: a run with a validation would not be one
    without. Here y is kept, and a checkpoint has it as it is. It has x beside it, for who looks at the weights alone.
    """

    def __init__(self, weights: Callable[[], list[Tensor]], optimizer: torch.optim.Optimizer) -> None:
        super().__init__(weights, 0.0)
        self._optimizer = optimizer

    @torch.no_grad()
    def replace_weights(self) -> None:
        for weight, average in self._averages():
            weight.copy_(average)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        kept = [weight.detach().clone() for weight in weights]
        self.replace_weights()
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, before in zip(weights, kept, strict=True):
                    weight.copy_(before)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Put x into a checkpoint, in main memory: a GPU that trains may have no room for it."""
        by_weight = {id(weight): average.cpu() for weight, average in self._averages()}
        averages = [by_weight.get(id(weight), weight.detach().cpu()) for weight in self.weights()]
        checkpoint["average"] = {"shadow_params": averages}

    @torch.no_grad()
    def _averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each weight that has been trained with its x."""
        for group in self._optimizer.param_groups:
            for weight in group["params"]:
                if "z" in (state := self._optimizer.state[weight]):
                    yield weight, weight.lerp(state["z"], 1 - 1 / group["betas"][0])
