"""An optimizer with a learning rate for each network, the learning rate's schedule, and gradient clipping."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dreambooth.distributed import whole
from dreambooth.training.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class OptimSettings:
    """Hold the settings of an optimizer and its learning rate's schedule, in optimizer steps."""

    lr: float
    text_encoder_lr: float
    name: str = "adamw"  # of `optimizers.OPTIMIZERS`
    in_backward: bool = False  # whether a weight takes its step as soon as its gradient is there
    identifier_lr: float | None = None  # of the token embedding; None: text_encoder_lr
    text_encoder_stop_step: int | None = None  # from here on the text encoders stay as they are; None: never
    schedule: str = "constant"
    warmup_steps: int = 0
    max_steps: int = 1
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)


# Fraction of the run after the warm-up, 0 to 1 -> factor of the learning rate.
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
}


def lr_factor(step: int, settings: OptimSettings, is_text_encoder: bool = False) -> float:
    """Return the factor of the learning rate at optimizer step `step` (from 0).

    Rises linearly over the warm-up (step 0 takes 1 / warmup_steps of it, so no step is wasted), then follows the shape;
    cosine and linear would reach 0 at `max_steps`, one past the last step.
    """
    if is_text_encoder and settings.text_encoder_stop_step is not None and step >= settings.text_encoder_stop_step:
        return 0.0
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
    return SHAPES[settings.schedule](min(1.0, done))


def make_optimizer(
    trained: dict[str, nn.Module], settings: OptimSettings, fused: bool, text_is_stopped: Callable[[], bool]
) -> tuple[Optimizer, LambdaLR]:
    """Make a parameter group for each trained network, named after it; text encoders take `text_encoder_lr`.

    fused: update all weights in one kernel. text_is_stopped: called before each step; returns whether the text
    encoders' learning rate is 0 whatever the settings say.
    With `identifier_lr` their token embeddings are groups of their own that do not decay: rows without a gradient stay.
    """
    groups = [group for name, part in trained.items() for group in _groups_of(name, part, settings)]
    optimizer = OPTIMIZERS[settings.name].make(groups, settings.betas, settings.weight_decay, fused)

    def factor(step: int, is_text_encoder: bool) -> float:
        return 0.0 if is_text_encoder and text_is_stopped() else lr_factor(step, settings, is_text_encoder)

    return optimizer, LambdaLR(optimizer, [partial(factor, is_text_encoder=is_of_text(group)) for group in groups])


def clip_gradients(optimizer: Any, max_norm: float, is_fused: bool) -> Tensor:
    """Scale all gradients down to `max_norm` (0: never) and return the norm that they had, as one vector.

    A fused optimizer scales them while it reads them, which spares a pass through memory of its own.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    if not is_fused:
        return whole(torch.nn.utils.clip_grad_norm_(weights, max_norm or float("inf")))
    norm = whole(torch.nn.utils.get_total_norm([weight.grad for weight in weights]))
    optimizer.grad_scale = (norm / max_norm).clamp(min=1) if max_norm else None
    return norm


def skip_unless_finite(optimizer: Any, norm: Tensor) -> None:
    """Let a fused optimizer leave weights and moments alone where the gradients' norm is not finite."""
    optimizer.found_inf = (~torch.isfinite(norm)).float()


class StepInBackward:
    """Update each weight as soon as backward has its gradient, and free that at once.

    So only a few gradients exist at a time; the result is that of one step after backward without clipping. The idea:
    Lv et al. 2023, arXiv 2306.09782. guard: called with the norm of each gradient before its step.
    """

    def __init__(self, optimizer: Optimizer, guard: Callable[[Tensor], None]) -> None:
        self.optimizer = optimizer
        self.guard = guard
        self._norms: list[Tensor] = []
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.register_post_accumulate_grad_hook(partial(self._step, group))

    def _step(self, group: dict[str, Any], weight: Tensor) -> None:
        assert weight.grad is not None
        norm = torch.linalg.vector_norm(weight.grad)
        self._norms.append(norm)
        self.guard(norm)
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [{**group, "params": [weight]}]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
        weight.grad = None

    def take_norm(self) -> Tensor:
        """Return the norm of all gradients since last asked, as one vector."""
        norms, self._norms = self._norms, []
        return torch.linalg.vector_norm(torch.stack(norms))


def take_settings(
    optimizer: Optimizer, schedule: LambdaLR, trained: dict[str, nn.Module], settings: OptimSettings
) -> None:
    """Re-apply the configured rates, betas and decay to an optimizer of `make_optimizer` that was restored since."""
    groups = [group for name, part in trained.items() for group in _groups_of(name, part, settings)]
    schedule.base_lrs = [group["lr"] for group in groups]
    for own, group, factor in zip(optimizer.param_groups, groups, schedule.lr_lambdas, strict=True):
        own["initial_lr"], own["lr"] = group["lr"], group["lr"] * factor(schedule.last_epoch)
        own["weight_decay"] = group.get("weight_decay", settings.weight_decay)
        if "betas" in own:
            own["betas"] = settings.betas


def is_of_text(group: dict[str, Any]) -> bool:
    """Return whether a parameter group is a text encoder's, or its embedding's."""
    return group["name"].startswith("text_encoder")


def _groups_of(name: str, part: nn.Module, settings: OptimSettings) -> Iterator[dict[str, Any]]:
    """Yield the groups of one network that are not empty."""
    lr = settings.text_encoder_lr if name.startswith("text_encoder") else settings.lr
    rows: list[nn.Parameter] = []
    if name.startswith("text_encoder") and settings.identifier_lr is not None:
        rows = [row for row in cast(Any, part).get_input_embeddings().parameters() if row.requires_grad]
    others = [each for each in part.parameters() if each.requires_grad and all(each is not row for row in rows)]
    if others:
        yield {"params": others, "lr": lr, "name": name}
    if rows:
        yield {"params": rows, "lr": settings.identifier_lr, "weight_decay": 0.0, "name": f"{name}_embedding"}


def rate_note(before: OptimSettings, now: OptimSettings, step: int) -> str | None:
    """Return a warning if another train.max_steps makes a falling learning rate jump at `step`, else None.

    Linear and cosine schedules fall to 0 at max_steps: made longer, the whole curve is stretched, so the rate jumps up
    from where it had come to. It is what a longer run would have there; it is not what this run would have done.
    """
    last, next_rate = before.lr * lr_factor(step - 1, before), now.lr * lr_factor(step, now)
    is_not_stretched = before.max_steps == now.max_steps or before.schedule != now.schedule
    if is_not_stretched or step <= now.warmup_steps or math.isclose(lr_factor(step, before), lr_factor(step, now)):
        return None
    changes = {"optim.schedule": "constant", "optim.lr": f"{last:.3g}"}
    if now.text_encoder_lr != now.lr:
        changes["optim.text_encoder_lr"] = f"{before.text_encoder_lr * lr_factor(step - 1, before):.3g}"
    settings = " ".join(f"{key}={value}" for key, value in changes.items())
    offer = f"; to go on at the last rate: {settings} {' '.join(f'--override {key}' for key in changes)}"
    return (
        f"optim.schedule={now.schedule}: train.max_steps {before.max_steps} -> {now.max_steps} stretches the curve; "
        f"the learning rate of step {step + 1} is {next_rate:.3g}, after {last:.3g} of step {step}"
        f"{offer if last > 0 and now.identifier_lr is None else ''}"
    )
