"""Plan how much of its device's memory a run will need, before it is started: `python -m dreambooth plan CONFIG`.

Weights are counted. The further memory of a step and a validation is found by running one of each with torch's fake
tensors, which have a shape and no numbers, while every storage is counted from its allocation to its release.
"""

import contextlib
import copy
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreambooth import build
from dreambooth.config import Config
from dreambooth.data.latents import Batch, Sample
from dreambooth.families import Conditioning, evaluation_mode, load_family
from dreambooth.generation.sampler import guided
from dreambooth.methods import find_method
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.randomness import Randomness
from dreambooth.run.savings import SAVINGS, applies, written
from dreambooth.training.objective import Draws, encode_batch, sample_losses

GIB = 2**30
MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2}  # of both moments of a weight


@dataclass(frozen=True)
class Need:
    """Hold the bytes needed, by purpose. Of `step` and `validation` only the larger counts."""

    trained: int
    moments: int
    average: int
    frozen: int
    copy: int
    scores: int
    step: int
    validation: int

    @property
    def total(self) -> int:
        resting = sum(getattr(self, each.name) for each in fields(self)) - self.step - self.validation
        return resting + max(self.step, self.validation)


WORDS = {
    "trained": "weights that train",
    "moments": "the optimizer's moments of them",
    "average": "their average (train.ema_decay)",
    "frozen": "weights that do not train",
    "copy": "the untouched base beside them, for the prior",
    "scores": "encoders of the scores",
    "step": "within a step: gradients, activations",
    "validation": "within a validation: sampling, decoding",
}


class Planner:
    """Plan the memory of configs that have base and method in common. Loads the base, on the CPU.

    fake: compute with fake tensors, which have no numbers; else with real ones.
    Raises UserError and ModelError as a run does.
    """

    def __init__(self, config: Config, fake: bool = True) -> None:
        self.fake = fake
        self.family = load_family(build.model_source(config))
        self.method = find_method(config.method.name)
        self.networks: list[Any] = [self.family.denoiser, *self.family.text_encoders, self.family.vae]
        base = [weight for network in self.networks[:-1] for weight in network.parameters()]
        self.num_base_weights = sum(weight.numel() for weight in base)
        trained = self.method.attach(
            self.family, build.method_settings(config, self.family, Randomness(config.run.seed))
        )
        self.text_trains = any(name.startswith("text_encoder") for name in trained)
        self.score_weights = score_weights(config)
        self._peaks: dict[tuple[object, ...], int] = {}

    def need(self, config: Config) -> Need:
        weights = [weight for network in self.networks for weight in network.parameters()]
        trained = [weight for weight in weights if weight.requires_grad]
        num_trained = sum(weight.numel() for weight in trained)
        is_copied = not self.method.facts.is_adapter and config.prior.source in ("stream", "teacher")
        train, side, precision = config.train, config.data.resolution, build.pick_precision(config, self.family)
        of_step = (self._num_samples(config), train.micro_batch_size, train.gradient_checkpointing)
        of_images = (config.prior.batch_size, config.validate.guidance_scale)
        build.checkpoint_activations(self.family, train.gradient_checkpointing)
        return Need(
            trained=num_bytes(trained),
            moments=num_trained * MOMENT_BYTES[config.optim.name],
            average=num_bytes(trained) if config.train.ema_decay else 0,
            frozen=num_bytes(weight for weight in weights if not weight.requires_grad) - self._freed_bytes(config),
            copy=self.num_base_weights * build.compute_dtype(config, self.family).itemsize * is_copied,
            scores=num_bytes(self.score_weights) if config.validate.every_steps else 0,
            step=self._cached(self.peak_of_step, config, side, precision, *of_step, config.optim.in_backward),
            validation=self._cached(self.peak_of_validation, config, side, precision, *of_images)
            if config.validate.every_steps
            else 0,
        )

    def _cached(self, peak: Callable[[Config], int], config: Config, *settings: object) -> int:
        """Return what `peak` finds; it depends on these settings alone, and is computed once for them."""
        key = (peak.__name__, *settings)
        if key not in self._peaks:
            self._peaks[key] = peak(config)
        return self._peaks[key]

    def _num_samples(self, config: Config) -> int:
        """Return the number of samples of a batch, subject and class."""
        return config.train.batch_size * (1 if config.prior.source == "none" else 2)

    def autocast(self, config: Config) -> torch.autocast:
        """Return the run's autocast on the CPU, where bfloat16 stands for float16, which is as large."""
        return torch.autocast("cpu", torch.bfloat16, enabled=build.pick_precision(config, self.family) != "32-true")

    def _freed_bytes(self, config: Config) -> int:
        """Return the bytes of networks that the run frees, or moves off the GPU, before its first step."""
        freed = build.unused_networks(self.family, config, self.text_trains)
        if build.pick_device(config).type == "cuda" and self.family.vae not in freed:
            freed = [*freed, self.family.vae]
        return num_bytes(weight for network in freed for weight in network.parameters())

    def peak_of_step(self, config: Config) -> int:
        """Return the most bytes that a step holds at a time, gradients among them."""
        with counted(self.networks, self.fake) as count:
            self.take_step(config)
        for network in self.networks:
            network.zero_grad()
        return count.peak

    def take_step(self, config: Config) -> None:
        """Run forward and backward of a batch: of its micro-batches the first two, as the second has gradients too."""
        num_samples = self._num_samples(config)
        at_once = min(num_samples, config.train.micro_batch_size or num_samples)
        # A weighting reads values, which fake tensors lack; it takes 4 bytes a sample.
        settings = replace(build.loss_settings(config), weighting="none")
        for _ in range(min(2, -(-num_samples // at_once))):
            batch, draws = self._random_batch(config, at_once)
            with self.autocast(config), torch.set_grad_enabled(self.text_trains):
                conditioning = encode_batch(self.family, batch)
            with self.autocast(config):
                loss = sample_losses(self.family, batch, draws, conditioning, settings).mean()
            with self._freeing_gradients(config):
                loss.backward()

    def _random_batch(self, config: Config, num_samples: int) -> tuple[Batch, Draws]:
        """Make samples of one prompt, without masks, and a step's random draws for them."""
        side = config.data.resolution
        shape = self.family.latent_shape(side, side)
        samples = [
            Sample("subject", index, torch.randn(shape), build.subject_prompt(config, 0))
            for index in range(num_samples)
        ]
        noise_BCHW = torch.randn(num_samples, *shape)
        middle_B = torch.full((num_samples,), self.family.schedule.num_timesteps // 2)
        return Batch.stack(samples, self.family.vae_scale_factor), Draws(middle_B, noise_BCHW, noise_BCHW)

    @contextlib.contextmanager
    def _freeing_gradients(self, config: Config) -> Iterator[None]:
        """Free each gradient as soon as it is computed, with optim.in_backward."""
        weights = [weight for network in self.networks for weight in network.parameters() if weight.requires_grad]
        hooks = [
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
            for weight in weights
            if config.optim.in_backward
        ]
        yield
        for hook in hooks:
            hook.remove()

    def peak_of_validation(self, config: Config) -> int:
        """Return the most bytes that a batch of images holds at a time while it is sampled and decoded."""
        size, batch = config.data.resolution, config.prior.batch_size
        guidance = config.validate.guidance_scale
        with evaluation_mode(self.family), torch.no_grad():
            conditioning = self.family.encode_prompts([""] * (2 * batch if guidance != 1 else batch))
            with counted(self.networks, self.fake) as count, self.autocast(config):
                latents = torch.randn(batch, *self.family.latent_shape(size, size))

                def predict(noisy_BCHW: Tensor, conditioning: Conditioning) -> Tensor:
                    return self.family.predict(noisy_BCHW, torch.full((len(noisy_BCHW),), 500), conditioning)

                guided(predict, latents, conditioning, guidance)
                self.family.decode_latents(latents)
        return count.peak


def score_weights(config: Config) -> list[Tensor]:
    """Return the weights of a validation's encoders. Raises ModelError for one that is named and not to be had."""
    found = build.find_encoders(config, ValidationLog(Path(os.devnull))) if config.validate.every_steps else None
    used = [] if found is None else [encoder for encoder in (found.dino, found.clip) if encoder is not None]
    return [weight for encoder in used for weight in encoder.model.parameters()]


def num_bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


@contextlib.contextmanager
def counted(networks: Iterable[nn.Module], fake: bool) -> Iterator["Count"]:
    """Count every storage made in this block, but those of weights; with `fake` nothing is computed."""
    count, mode = Count(), FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext()
    weights = [weight for network in networks for weight in (*network.parameters(), *network.buffers())]
    if isinstance(mode, FakeTensorMode):
        weights = [mode.from_tensor(weight) for weight in weights]
    count.known.update(weight.untyped_storage()._cdata for weight in weights)
    with mode, count:
        yield count


class Count(TorchDispatchMode):
    """Count the bytes of live storages, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, key, storage.nbytes())
        return out

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def with_savings(planner: Planner, config: Config) -> Iterator[tuple[str, Config, Need]]:
    """Yield a description, the config and its need: as configured, then with one more effective saving at a time."""
    need = planner.need(config)
    yield "as configured", config, need
    for changes, cost in (*SAVINGS, *SAVINGS):  # twice: a saving may take effect only after another
        if not applies(next(iter(changes)), config):
            continue
        changed = with_changes(config, changes)
        need_then = planner.need(changed)
        if need_then.total < need.total:
            config, need = changed, need_then
            settings = " ".join(f"{key}={written(value)}" for key, value in changes.items())
            yield f"+ {settings}: {cost}", config, need


def with_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a copy with other values of some `section.key`."""
    changed = copy.deepcopy(config)
    for key, value in changes.items():
        section, name = key.split(".")
        setattr(getattr(changed, section), name, value)
    return changed


def is_enough(need: int, memory: int) -> bool:
    """Return whether so many bytes fit, with a tenth to spare and 1 GiB for the libraries."""
    return need < 0.9 * memory - GIB


def device_memory(config: Config) -> tuple[str, int]:
    """Return the device's name, and all the memory that it has, bytes."""
    if build.pick_device(config).type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return properties.name, properties.total_memory
    return "this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
