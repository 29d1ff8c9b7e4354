"""Trains a base of the second edition on: what its later stages have in common.

Each begins with the averaged weights of the stage before it, which stay beside it as its reference.

Shapes: B pictures, C latent channels, h/w latent height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from toyworld.ahead import Ahead
from toyworld.base import (
    LATER_STAGES,
    SCHEDULE,
    BaseSettings,
    CaptionedUNet,
    autocast_on,
    build_modules,
    check_has_base,
    later_path,
    load_trained,
)
from toyworld.dataset import load_or_make_codec
from toyworld.editions import SECOND
from toyworld.latents import LinearCodec
from toyworld.training import Plan, fit, rank_and_world, run_in_processes

# (codec, size, rank, world_size, step) -> a NamedTuple of tensors, which follows from these alone
MakeBatch = Callable[[LinearCodec, int, int, int, int], Any]


class LaterTask(ABC):
    """Compute the loss of one training step from what the model predicts, and its reference, which stays frozen."""

    def __init__(
        self, modules: nn.ModuleDict, reference: nn.ModuleDict, device: str, batch_at: Callable[[int], Any]
    ) -> None:
        autocast = autocast_on(device)  # the same for both: they are compared
        self.predict = CaptionedUNet(modules, autocast)
        self.predict_reference = CaptionedUNet(reference.requires_grad_(False).eval(), autocast)
        self.device, self.batch_at = device, batch_at
        self.noise_schedule = DDPMScheduler(**SCHEDULE)

    def __call__(self, step: int) -> Tensor:
        """Return the loss of the step's batch; noise and timesteps follow from the step and the process."""
        batch = self.batch_at(step)
        batch = type(batch)(*(each.to(self.device) for each in batch))
        rank, world_size = rank_and_world()
        return self.loss(batch, torch.Generator().manual_seed(7919 * (step * world_size + rank)))

    @abstractmethod
    def loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch that is on the training's device. generator: a CPU's."""

    def noised(self, latents_BChw: Tensor, t_over_T_B: Tensor, noise_BChw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return noised latents, the timesteps [B] and the v that they ask for, on the training's device.

        t_over_T_B: 0 to 1, of the schedule. It and the noise may lie on a CPU.
        """
        noise_BChw = noise_BChw.to(self.device)
        t_B: Any = (t_over_T_B * self.noise_schedule.config["num_train_timesteps"]).long().to(self.device)
        noisy_BChw = self.noise_schedule.add_noise(latents_BChw, noise_BChw, t_B)
        return noisy_BChw, t_B, self.noise_schedule.get_velocity(latents_BChw, noise_BChw, t_B)


def _nothing(modules: nn.ModuleDict, reference: nn.ModuleDict) -> None:
    pass


@dataclass(frozen=True)
class LaterStage:
    """Hold how a stage trains the base on.

    name: one of LATER_STAGES. plan: of `Plan`, what is not as usual. trained: names of trained parameters begin so.
    begin: what is done to (modules, reference) where there is no state to go on from.
    """

    name: str
    make_batch: MakeBatch
    task: type[LaterTask]
    plan: dict[str, Any] = field(default_factory=dict)
    trained: tuple[str, ...] = ("",)
    begin: Callable[[nn.ModuleDict, nn.ModuleDict], None] = _nothing

    @property
    def before(self) -> tuple[str, ...]:
        """The stages that may have trained the base on already."""
        return LATER_STAGES[: LATER_STAGES.index(self.name)]


def train_later(stage: LaterStage, settings: BaseSettings) -> None:
    """Train the base of `settings.folder` on, or resume. Raises UserError where there is no base.pt."""
    check_has_base(settings.folder)
    load_or_make_codec(settings.folder, SECOND)
    run_in_processes(settings.num_processes if settings.device == "cpu" else 1, _train, stage, settings)


def _train(stage: LaterStage, settings: BaseSettings) -> None:
    modules, reference = (build_modules(settings) for _ in range(2))
    for each in (modules, reference):
        load_trained(each, settings.folder, stage.before)
    path = later_path(settings.folder, stage.name, reference)
    if not path.is_file():
        stage.begin(modules, reference)
    for name, parameter in modules.named_parameters():
        parameter.requires_grad_(name.startswith(stage.trained))
    rank, world_size = rank_and_world()
    codec = load_or_make_codec(settings.folder, SECOND)
    make = partial(stage.make_batch, codec, settings.batch_size // world_size, rank, world_size)
    plan = Plan(stage.name, settings.budget, weight_decay=0.0, **stage.plan)
    with Ahead(make, settings.device) as batch_at:
        task = stage.task(modules.to(settings.device), reference.to(settings.device), settings.device, batch_at)
        fit(modules, task, plan, path)
