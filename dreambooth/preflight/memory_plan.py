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
from peft.tuners.lycoris_utils import LycorisLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from dreambooth import build
from dreambooth.config import Config
from dreambooth.config.rules import joint_problems
from dreambooth.data.latents import Batch, Sample
from dreambooth.devices import device_name, kind_of, total_bytes
from dreambooth.disk import GIB
from dreambooth.families import Conditioning, Family, ModelSource, evaluation_mode, load_family
from dreambooth.families.flow import warn_of_distilled
from dreambooth.families.known_bases import DISTILLED, built_in_shapes, shapes_folder
from dreambooth.families.offload import blocks_of, frozen_weights
from dreambooth.families.quantization import stored_tensors
from dreambooth.generation.sampler import guided
from dreambooth.methods import find_method
from dreambooth.metrics.encoders import ImageEncoder
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.randomness import Randomness
from dreambooth.run.savings import SAVINGS, applies, written
from dreambooth.training.objective import Draws, encode_batch, sample_losses
from dreambooth.training.optimizers import OPTIMIZERS

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
FLOPS = {  # by operation: torch's own counts of matrix products and convolutions, and of attention on a CPU
    **flop_registry,
    ATTENTION: sdpa_flop,
    ATTENTION_BACKWARD: sdpa_backward_flop,
}


@dataclass(frozen=True)
class Need:
    """Hold the bytes needed, by purpose. Of `step`, `validation` and `prompts` only the largest counts."""

    trained: int
    moments: int
    average: int
    frozen: int
    copy: int
    scores: int
    step: int
    validation: int
    prompts: int = 0

    @property
    def total(self) -> int:
        in_turn = (self.step, self.validation, self.prompts)
        return sum(getattr(self, each.name) for each in fields(self)) - sum(in_turn) + max(in_turn)


WORDS = {
    "trained": "weights that train",
    "moments": "the optimizer's moments of them",
    "average": "their average (train.ema_decay)",
    "frozen": "weights that do not train",
    "copy": "the untouched base beside them, for the prior",
    "scores": "encoders of the scores",
    "step": "within a step: gradients, activations, weights that come for it (train.offload)",
    "validation": "within a validation: sampling, decoding, weights that come for it",
    "prompts": "before the first step: the frozen text encoder, which encodes the prompts",
}


@dataclass(frozen=True)
class Work:
    """Hold what a pass through the networks takes: peak: bytes that it holds at most; flops: its arithmetic.

    decoding_flops: of those the decoding of images.
    """

    peak: int
    flops: int
    decoding_flops: int = 0


class Planner:
    """Plan the memory of configs that have base and method in common. Loads the base, on the CPU.

    fake: compute with fake tensors, which have no numbers; else with real ones. With fake ones a well-known base that
    is not here is not downloaded: `shapes` names the built-in config that its networks are made from. has_weights:
    whether a folder's weights are read; else its configs alone.
    Raises UserError and ModelError as a run does.
    """

    def __init__(self, config: Config, fake: bool = True, has_weights: bool = True) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
        source = replace(build.model_source(config), has_weights=has_weights)
        self.shapes = built_in_shapes(source) if fake else None
        self.family = load_family(source) if self.shapes is None else load_shapes(self.shapes, source.quantize)
        if self.shapes is not None and (trained_instead := DISTILLED.get(source.base.lower())):
            warn_of_distilled(source.base, trained_instead)
        self.quantize = config.model.quantize
        self._quantized: dict[str, Planner] = {}
        build.check_can_train(self.family, config.model.base)
        self.method = find_method(config.method.name)
        self.networks: list[Any] = [self.family.denoiser, *self.family.text_encoders, self.family.vae]
        base = [weight for network in self.networks[:-1] for weight in network.parameters()]
        self.num_base_weights = sum(weight.numel() for weight in base)
        trained = self.method.attach(
            self.family, build.method_settings(config, self.family, Randomness(config.run.seed))
        )
        self.family.cache_blank_prompts(["", build.subject_prompt(config, 0)])
        if self.mode is not None and any(weight.is_meta for weight in self.family.denoiser.parameters()):
            with self.mode:
                for network in self.networks:
                    network.to_empty(device="cpu")  # fake tensors, which claim to be there
        self.text_trains = any(name.startswith("text_encoder") for name in trained)
        self.encoders, self.readers = score_encoders(config)
        self._works: dict[tuple[object, ...], Work] = {}

    @property
    def note(self) -> str | None:
        """Return where the shapes of a base that is not here come from, None for one that is loaded."""
        if self.shapes is None:
            return None
        return f"not in the local cache; the shapes are the built-in ones of {self.shapes}"

    def need(self, config: Config) -> Need:
        if config.model.quantize != self.quantize:
            return self._with_quantization(config).need(config)
        weights = [tensor for network in self.networks for tensor in stored_tensors(network)]
        trained = [weight for weight in weights if weight.requires_grad]
        streamed, there = streamed_bytes(self.family.denoiser, config)
        is_copied = not self.method.facts.is_adapter and config.prior.source in ("stream", "teacher")
        return Need(
            trained=num_bytes(trained),
            moments=sum(map(OPTIMIZERS[config.optim.name].state_bytes, trained)),
            average=num_bytes(trained) if config.train.ema_decay else 0,
            frozen=num_bytes(weight for weight in weights if not weight.requires_grad)
            - self._freed_bytes(config)
            - streamed,
            copy=self.num_base_weights * build.compute_dtype(config, self.family).itemsize * is_copied,
            scores=num_bytes(weights_of(self.encoders, self.readers)) if config.validate.every_steps else 0,
            step=self.step(config).peak + there,
            validation=self.validation(config).peak + there + vae_bytes(self.family, config)
            if config.validate.every_steps
            else 0,
            prompts=self.family.num_text_bytes(build.compute_dtype(config, self.family)),
        )

    def _with_quantization(self, config: Config) -> "Planner":
        """Return the planner of the same base, quantized as this config has it; of a folder its configs are enough."""
        name = config.model.quantize
        if name not in self._quantized:
            is_file = os.path.isfile(os.path.expanduser(config.model.base))
            self._quantized[name] = Planner(config, self.mode is not None, has_weights=is_file or self.mode is None)
        return self._quantized[name]

    def step(self, config: Config) -> Work:
        """Return what a step takes, of its micro-batches the first two (`num_micro_batches`)."""
        train = config.train
        settings = (self._num_samples(config), train.micro_batch_size, train.gradient_checkpointing)
        return self._cached(self._work_of_step, config, *settings, config.optim.in_backward)

    def validation(self, config: Config) -> Work:
        """Return what it takes to predict for a batch of images once, with guidance, and to decode them."""
        return self._cached(self._work_of_validation, config, config.prior.batch_size, config.validate.guidance_scale)

    def _cached(self, find: Callable[[Config], Work], config: Config, *settings: object) -> Work:
        """Return what `find` finds; it depends on these settings alone, and is computed once for them."""
        key = (find.__name__, config.data.resolution, build.pick_precision(config, self.family), *settings)
        if key not in self._works:
            self._works[key] = find(config)
        return self._works[key]

    def _num_samples(self, config: Config) -> int:
        """Return the number of samples of a batch, subject and class."""
        return config.train.batch_size * (1 if config.prior.source == "none" else 2)

    def num_micro_batches(self, config: Config) -> int:
        """Return how many times a batch's samples go through the networks, part by part."""
        num_samples = self._num_samples(config)
        return -(-num_samples // min(num_samples, config.train.micro_batch_size or num_samples))

    def autocast(self, config: Config) -> torch.autocast:
        """Return the run's autocast on the CPU, where bfloat16 stands for float16, which is as large."""
        return torch.autocast("cpu", torch.bfloat16, enabled=build.pick_precision(config, self.family) != "32-true")

    def _freed_bytes(self, config: Config) -> int:
        """Return the bytes of networks that the run frees, or moves off the GPU, before its first step."""
        freed = build.unused_networks(self.family, config, self.text_trains)
        if kind_of(build.pick_device(config)).has_own_memory and self.family.vae not in freed:
            freed = [*freed, self.family.vae]
        return num_bytes(tensor for network in freed for tensor in stored_tensors(network))

    def _work_of_step(self, config: Config) -> Work:
        """Return what a step takes; its gradients are among the bytes."""
        with counted(self.networks, self.mode) as count:
            self.take_step(config)
        for network in self.networks:
            network.zero_grad()
        return Work(count.peak, count.flops)

    def take_step(self, config: Config) -> None:
        """Run forward and backward of a batch: of its micro-batches the first two, as the second has gradients too."""
        build.checkpoint_activations(self.family, config.train.gradient_checkpointing)
        skip_module_dropout(self.networks)
        num_samples = self._num_samples(config)
        at_once = min(num_samples, config.train.micro_batch_size or num_samples)
        # A weighting reads values, which fake tensors lack; it takes 4 bytes a sample.
        settings = replace(build.loss_settings(config), weighting="none")
        for _ in range(min(2, self.num_micro_batches(config))):
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

    def _work_of_validation(self, config: Config) -> Work:
        with evaluation_mode(self.family), torch.no_grad():
            conditioning = self.encode_validation(config)
            with counted(self.networks, self.mode) as count, self.autocast(config):
                latents_BCHW = self.predict_once(config, conditioning)
                predicting = count.flops
                self.family.decode_latents(latents_BCHW)
        return Work(count.peak, count.flops, count.flops - predicting)

    def encode_validation(self, config: Config) -> Conditioning:
        """Encode the prompts of a batch of images; with guidance twice as many."""
        return self.family.encode_prompts([""] * self.num_predictions(config))

    def num_predictions(self, config: Config) -> int:
        """Return for how many images at a time a validation asks the denoiser."""
        is_guided = self.family.guidance.is_combined(config.validate.guidance_scale)
        return config.prior.batch_size * (2 if is_guided else 1)

    def predict_once(self, config: Config, conditioning: Conditioning) -> Tensor:
        """Make latents of a batch of images, take one step of a sampler with them, and return them as they were."""
        side = config.data.resolution
        latents_BCHW = torch.randn(config.prior.batch_size, *self.family.latent_shape(side, side))

        def predict(noisy_BCHW: Tensor, conditioning: Conditioning) -> Tensor:
            return self.family.predict(noisy_BCHW, torch.full((len(noisy_BCHW),), 500), conditioning)

        guided(predict, latents_BCHW, conditioning, config.validate.guidance_scale, self.family.guidance)
        return latents_BCHW


def score_encoders(config: Config) -> tuple[list[ImageEncoder], list[nn.Module]]:
    """Return a validation's encoders, and the networks of what reads its images.

    Raises ModelError for one that is named and not to be had.
    """
    found = build.find_encoders(config, ValidationLog(Path(os.devnull))) if config.validate.every_steps else None
    if found is None:
        return [], []
    readers = [] if found.reader is None else [*found.reader.networks.values()]
    return [encoder for encoder in (found.dino, found.clip) if encoder is not None], readers


def weights_of(encoders: Iterable[ImageEncoder], readers: Iterable[nn.Module]) -> list[Tensor]:
    networks = [*(encoder.model for encoder in encoders), *readers]
    return [weight for network in networks for weight in network.parameters()]


def num_bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def streamed_bytes(denoiser: nn.Module, config: Config) -> tuple[int, int]:
    """Return the bytes of frozen weights that wait off the device, and of those that are there while one computes.

    On a CPU they wait in the same memory, and what computes is a copy.
    """
    if config.train.offload == "none":
        return 0, 0
    parts = blocks_of(denoiser) if config.train.offload == "blocks" else [denoiser]
    sizes = sorted(num_bytes(frozen_weights(part)) for part in parts)
    waiting = sum(sizes) if kind_of(build.pick_device(config)).has_own_memory else 0
    return waiting, sum(sizes[-2:])


def vae_bytes(family: Family, config: Config) -> int:
    """Return the bytes of a VAE that comes to a GPU to decode, where the denoiser does not make room for it."""
    comes = kind_of(build.pick_device(config)).has_own_memory and config.train.offload != "parts"
    return num_bytes(family.vae.parameters()) if comes else 0


def load_shapes(name: str, quantize: str | None = None) -> Family:
    """Make a family of a built-in config's shapes, whose weights have no numbers (torch's meta device)."""
    with shapes_folder(name) as folder:
        family = load_family(ModelSource(str(folder), quantize=quantize, has_weights=False))
        family.num_text_weights()  # counted while the folder is there
        return family


@contextlib.contextmanager
def counted(networks: Iterable[nn.Module], mode: FakeTensorMode | None) -> Iterator["Count"]:
    """Count every storage made in this block, but those of weights; with a mode nothing is computed."""
    count = Count()
    weights = [weight for network in networks for weight in (*network.parameters(), *network.buffers())]
    if mode is not None:
        weights = [weight if isinstance(weight, FakeTensor) else mode.from_tensor(weight) for weight in weights]
    count.known.update(weight.untyped_storage()._cdata for weight in weights)
    with mode or contextlib.nullcontext(), count:
        yield count


def skip_module_dropout(networks: Iterable[nn.Module]) -> None:
    """Let every layer of LoHa and LoKr take part: whether one does is drawn, and without numbers nothing can be."""
    for network in networks:
        for module in network.modules():
            if isinstance(module, LycorisLayer):
                module.eval()


class Count(TorchDispatchMode):
    """Count the bytes of live storages, their peak, and the arithmetic (FLOP) so far."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (flops_of := FLOPS.get(func.overloadpacket)) is not None:
            self.flops += flops_of(*args, **(kwargs or {}), out_val=out)
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


def with_savings(
    planner: Planner, config: Config, is_possible: Callable[[Config], bool] = lambda config: True
) -> Iterator[tuple[str, Config, Need]]:
    """Yield a description, the config and its need: as configured, then with one more effective saving at a time.

    is_possible: returns whether a config can be run here. One that the rules of configs refuse is left out.
    """
    need = planner.need(config)
    yield "as configured", config, need
    for changes, cost in (*SAVINGS, *SAVINGS):  # twice: a saving may take effect only after another
        if not applies(next(iter(changes)), config):
            continue
        changed = with_changes(config, changes)
        if any(joint_problems(changed)) or not is_possible(changed):
            continue
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
    device = build.pick_device(config)
    name = device_name(device) if kind_of(device).has_own_memory else "this machine"
    return name, total_bytes(device)
