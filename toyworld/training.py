"""One resumable training loop for everything that is trained here: denoiser, decoder, encoder and judge.

Its budget is minutes, so that it takes as long on any machine, or steps, so that it comes to the same on any machine.
The learning rate warms up, stays, and falls to nearly zero over the last part of the budget. That fall brings the
largest visible gain, so a budget is never just cut.
With several processes (gloo, one thread each: twice as fast on two cores as one process with two threads) gradients are
averaged, and rank 0 measures the time and saves the state.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from dreambooth.devices import keep_freed_memory
from dreambooth.errors import NonFiniteError
from dreambooth.files import atomic_file
from toyworld.muon import Muon

MIN_LR_FACTOR = 0.02  # of the peak, at the very end
LOG_EVERY_STEPS = 100


@dataclass(frozen=True)
class Budget:
    """Hold how long a training lasts: minutes of wall time, or optimizer steps."""

    minutes: float = 0.0
    steps: int = 0  # 0: the minutes decide

    def spent(self, step: int, seconds: float) -> float:
        """Return the fraction that is spent after so many steps and seconds: 1 or more at the end."""
        if self.steps:
            return step / self.steps
        return seconds / (60 * self.minutes) if self.minutes > 0 else 1.0


@dataclass(frozen=True)
class Plan:
    """Hold the settings of one module's training."""

    name: str
    budget: Budget  # over all resumptions together
    peak_lr: float  # of AdamW
    muon_lr: float = 0.0  # of Muon, which takes the hidden layers' matrices; 0: AdamW takes everything
    muon_prefix: str | tuple[str, ...] = ""  # names of the parameters that may go to Muon begin so
    decay_fraction: float = 0.3  # of the budget, at the end, over which the learning rate falls
    warmup_steps: int = 100
    ema_decay: float = 0.999  # of the weights that are kept; half-life some 700 steps
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-3
    max_grad_norm: float = 1.0
    save_every_seconds: float = 120.0


def lr_factor(plan: Plan, step: int, spent: float) -> float:
    """Return the factor on the peak learning rate, at a step and a fraction `spent` of the budget (0 to 1)."""
    warm = min(1.0, (step + 1) / plan.warmup_steps)
    left = min(1.0, (1.0 - spent) / plan.decay_fraction) if plan.decay_fraction > 0 else 1.0
    return warm * max(MIN_LR_FACTOR, left)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Save tensors and plain containers to a file that is whole or not there."""
    with atomic_file(path) as file:
        torch.save(state, file)


def run_in_processes(number: int, work: Callable[..., None], *args: Any) -> None:
    """Call work(*args) in so many processes of one thread each, joined by gloo; in this process if it is one."""
    if number == 1:
        work(*args)
    else:
        spawn(_join, args=(number, _free_port(), work, args), nprocs=number)


def _join(rank: int, number: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["USE_LIBUV"] = "0"
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=number)
    work(*args)
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Average:
    """Average a module's parameters exponentially, with the decay warmed up so that early steps do not linger.

    Not `dreambooth.training.average.WeightAverage`: diffusers' warm-up is one step behind and its rounding another, so
    a training that was begun with this one would not continue with the same bits.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = [parameter.detach().clone() for parameter in module.parameters()]

    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in module.parameters()], 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        with torch.no_grad():
            for parameter, average in zip(module.parameters(), self.shadow, strict=True):
                parameter.copy_(average)


def hidden_matrices(module: nn.Module, prefix: str | tuple[str, ...]) -> list[nn.Parameter]:
    """Return trained weights of at least two dimensions whose names begin with `prefix`, but first and last layers."""
    ends = ("conv_in.", "conv_out.", "time_embedding.", "body.0.", "embedder.", "final_layer.", "pad_token")
    inner = [(n, p) for n, p in module.named_parameters() if n.startswith(prefix) and not any(end in n for end in ends)]
    return [parameter for _, parameter in inner if parameter.requires_grad and parameter.ndim >= 2]


def build_optimizers(module: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""
    matrices = hidden_matrices(module, plan.muon_prefix) if plan.muon_lr else []
    taken = {id(parameter) for parameter in matrices}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    adamw = torch.optim.AdamW(rest, plan.peak_lr, betas=plan.betas, weight_decay=plan.weight_decay, fused=True)
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if matrices:
        optimizers.append(Muon(matrices, plan.muon_lr))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


class Run:
    """Hold the state of a training: module, optimizers, average, step and seconds spent; saved and restored."""

    def __init__(self, module: nn.Module, plan: Plan, state_path: Path) -> None:
        self.module, self.plan, self.path = module, plan, state_path
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizers = build_optimizers(module, plan)
        self.average = Average(module, plan.ema_decay)
        self.step, self.seconds = 0, 0.0
        self.losses: list[Tensor] = []  # since the last log
        self.norms: list[Tensor] = []  # of the gradients, not yet looked at

    def restore(self) -> None:
        """Go on from the saved state, if there is one."""
        if not self.path.is_file():
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        for optimizer, saved_optimizer in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_optimizer)
        for own, saved in zip(self.average.shadow, state["average"], strict=True):
            own.copy_(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the state to its file, on rank 0 only. Raises NonFiniteError if a gradient was not finite."""
        self.check_gradients()
        if rank_and_world()[0] == 0:
            state = {
                "module": self.module.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "average": self.average.shadow,
                "step": self.step,
                "seconds": self.seconds,
            }
            save_atomically(state, self.path)

    def update(self, loss: Tensor, lr_factor: float) -> None:
        """Take one optimizer step on gradients averaged over the processes.

        On a GPU nothing waits for the result, so that it always has work. On a CPU it raises NonFiniteError before the
        step if the gradient is not finite.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_factor
        loss.backward()
        _average_gradients(self.trained)
        self.losses.append(loss.detach())
        self.norms.append(nn.utils.clip_grad_norm_(self.trained, self.plan.max_grad_norm))
        if loss.device.type == "cpu":
            self.check_gradients()
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.average.update(self.module, self.step)

    def check_gradients(self) -> None:
        """Raise NonFiniteError if a gradient since the last call was not finite; the saved state is from before it."""
        if self.norms and not torch.stack(self.norms).isfinite().all():
            raise NonFiniteError(f"{self.plan.name}: gradient not finite by step {self.step}; lower the learning rate")
        self.norms.clear()

    def log(self) -> None:
        """Print time, step and the mean loss since the last call, on rank 0 only."""
        if rank_and_world()[0] == 0:
            mean = torch.stack(self.losses).mean().item()
            print(f"{self.plan.name}: {self.seconds:.0f} s, step {self.step}, loss {mean:.4f}", flush=True)
        self.losses.clear()


def load_average(module: nn.Module, state_path: Path) -> None:
    """Fill `module` with the averaged weights of a saved training (and its buffers); nothing if there is none yet."""
    if not state_path.is_file():
        return
    state = torch.load(state_path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    with torch.no_grad():
        for parameter, average in zip(module.parameters(), state["average"], strict=True):
            parameter.copy_(average)


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    _, num_processes = rank_and_world()
    if num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= num_processes
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def fit(module: nn.Module, loss_at: Callable[[int], Tensor], plan: Plan, state_path: Path) -> None:
    """Train until the plan's budget is spent, from the saved state if there is one; then `module` holds the average.

    loss_at(step) computes the loss of one batch; whatever it draws at random must follow from the step (and the rank),
    so that a resumed training goes on as it would have.
    """
    keep_freed_memory()
    run = Run(module, plan, state_path)
    run.restore()
    started = time.monotonic() - run.seconds
    saved_at = run.seconds
    module.train()
    while True:
        run.seconds = _time_of_rank_zero(time.monotonic() - started)
        spent = plan.budget.spent(run.step, run.seconds)
        if spent >= 1:
            break
        run.update(loss_at(run.step), lr_factor(plan, run.step, spent))
        if run.step % LOG_EVERY_STEPS == 0:
            run.check_gradients()
            run.log()
        if run.seconds - saved_at > plan.save_every_seconds:
            run.save()
            saved_at = run.seconds
    run.save()
    run.average.copy_to(module)
    module.eval()


def _time_of_rank_zero(seconds: float) -> float:
    """Return rank 0's time on every process, so that all agree on when to stop."""
    if rank_and_world()[1] == 1:
        return seconds
    shared = torch.tensor([seconds], dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return shared.item()
