"""The base's networks: on which device and how precisely they compute, and which of them a run keeps."""

import contextlib
import os
from collections.abc import Iterator

import torch

from dreambooth.config import Config
from dreambooth.distributed import local_rank
from dreambooth.errors import UserError
from dreambooth.families import Family, ModelSource, evaluation_mode, frozen_copy, is_small, load_family
from dreambooth.methods import find_method
from dreambooth.methods.adapters import frozen_base


def pick_device(config: Config) -> torch.device:
    """Raises UserError where the wished device, or the precision on it, is not there."""
    has_cuda = torch.cuda.is_available()
    if config.train.device == "cuda" and not has_cuda:
        raise UserError("train.device: 'cuda' is wished, but torch sees no GPU; use cpu or auto")
    device = torch.device("cuda", local_rank()) if has_cuda and config.train.device != "cpu" else torch.device("cpu")
    check_num_processes(config, device)
    if config.train.precision == "16-mixed" and device.type == "cpu":
        raise UserError("train.precision: '16-mixed' needs a GPU; on a CPU use bf16-mixed or 32-true")
    return device


def pick_precision(config: Config, family: Family) -> str:
    """train.precision; for `auto` 16 bits for a large model on a GPU, bfloat16 where that computes with it.

    Else float32: a small model loses more with casts than it wins, and so do most CPUs (not those with AMX).
    """
    if config.train.precision != "auto":
        return config.train.precision
    if pick_device(config).type == "cpu" or is_small(family.denoiser):
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def check_num_processes(config: Config, device: torch.device) -> None:
    """Raises UserError where there are fewer GPUs than wished, or torchrun has started another number of processes."""
    devices, wished = config.train.devices, config.train.devices * config.train.num_nodes
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise UserError(f"train.devices: {devices} are wished, but torch sees {torch.cuda.device_count()} GPU(s)")
    started = int(os.environ.get("WORLD_SIZE", wished))
    if started != wished:
        raise UserError(
            f"train.devices, train.num_nodes: {devices} x {config.train.num_nodes} processes are wished, but {started} "
            "were started; make both the same"
        )


def model_source(config: Config) -> ModelSource:
    """Return the base that a run starts from; what trains, trains in float32."""
    model = config.model
    return ModelSource(model.base, model.family, model.config, model.revision, model.variant)


def load_base(config: Config) -> Family:
    """The base model with the run's noise schedule, on the CPU. Raises ModelError, UserError."""
    family = load_family(model_source(config))
    apply_schedule(family, config)
    return family


def apply_schedule(family: Family, config: Config) -> None:
    """Zero terminal SNR (Lin et al. 2023, arXiv 2305.08891, algorithm 1), and sampling that starts from there.

    Raises UserError for a base that predicts the noise, which says nothing of x0 where all is noise.
    """
    if not config.loss.zero_terminal_snr:
        return
    if family.schedule.prediction == "epsilon":
        raise UserError(
            "loss.zero_terminal_snr: this base predicts the noise, and where all is noise nothing can be learned from "
            "it; use a base that predicts v, or loss.noise_offset"
        )
    family.set_scheduler({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})


def untouched_base(family: Family, config: Config) -> Family:
    """The frozen base beside what trains: beneath an adapter, or a copy where every weight may change."""
    if find_method(config.method.name).is_adapter:
        return frozen_base(family)
    return frozen_copy(family, compute_dtype(config, family))


def save_memory(family: Family, config: Config, text_trains: bool) -> None:
    """Let go of networks that the run has no more use for, and apply the settings that trade time for memory.

    On a GPU the VAE waits beside it.
    """
    if pick_device(config).type == "cuda":
        family.vae.to("cpu")
    for network in unused_networks(family, config, text_trains):
        network.to("meta")
    checkpoint_activations(family, config.train.gradient_checkpointing)
    if config.train.compile:
        family.denoiser.compile()


def unused_networks(family: Family, config: Config, text_trains: bool) -> list[torch.nn.Module]:
    """What is used no more once pictures and prompts are encoded.

    An adapter's result holds none of the base, so the text encoders are done when all prompts are known by heart, and
    the VAE when no picture is to be decoded.
    """
    if not find_method(config.method.name).is_adapter:
        return []
    knows_texts = not (text_trains or config.data.shuffle_captions)
    text_encoders = family.text_encoders if knows_texts else []
    return text_encoders if config.validate.every_steps else [*text_encoders, family.vae]


def checkpoint_activations(family: Family, is_wanted: bool) -> None:
    """Whether backward computes activations again instead of finding them kept (Chen et al. 2016, arXiv 1604.06174)."""
    verb, networks = ("enable" if is_wanted else "disable"), [each for each in family.text_encoders if each.training]
    getattr(family.denoiser, f"{verb}_gradient_checkpointing")()
    for text_encoder in networks:  # transformers renamed the method within its version 5
        kind = "activation" if hasattr(text_encoder, "activation_checkpointing_enable") else "gradient"
        getattr(text_encoder, f"{kind}_checkpointing_{verb}")()


def compute_dtype(config: Config, family: Family) -> torch.dtype:
    """Of networks that do not train."""
    dtypes = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return dtypes[pick_precision(config, family)]


@contextlib.contextmanager
def on_device(network: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """A network on the device, and afterwards back where it waits."""
    home = next(network.parameters()).device
    network.to(device)
    try:
        yield
    finally:
        network.to(home)


@contextlib.contextmanager
def inference(family: Family, config: Config) -> Iterator[None]:
    """Evaluation mode, no gradients, and the training's number format."""
    dtype = compute_dtype(config, family)
    autocast = torch.autocast(pick_device(config).type, dtype, enabled=dtype != torch.float32)
    with evaluation_mode(family), torch.no_grad(), autocast:
        yield
