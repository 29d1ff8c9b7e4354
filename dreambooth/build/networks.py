"""The base's networks: their device and precision, and which of them a run keeps."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from dreambooth.config import Config
from dreambooth.devices import check_precision, find_device, kind_of, precision_of_large_models
from dreambooth.distributed import this_process
from dreambooth.errors import ModelError, UserError
from dreambooth.families import Family, ModelSource, evaluation_mode, frozen_copy, is_small, load_family
from dreambooth.families.offload import offload
from dreambooth.families.protocols import InpaintingDenoiser
from dreambooth.families.quantization import check_quantizer
from dreambooth.families.runtimes import Graph
from dreambooth.methods import find_facts
from dreambooth.methods.adapters import frozen_base
from dreambooth.timesteps import TimestepDensity


def pick_device(config: Config) -> torch.device:
    """Return the device to train on. Raises UserError where it, or its precision, is not available."""
    device = find_device(config.train.device, "train.device", to_train=True)
    if device.type == "cuda":
        device = torch.device("cuda", this_process().local_rank)
        if config.train.devices > torch.cuda.device_count():
            raise UserError(
                f"train.devices={config.train.devices}: PyTorch finds {torch.cuda.device_count()} GPU(s); use no more"
            )
    check_precision(device, config.train.precision)
    return device


def pick_precision(config: Config, family: Family) -> str:
    """Return train.precision; for `auto` as the device has it, but float32 for a small model.

    That loses more by casts than it gains.
    """
    if config.train.precision != "auto":
        return config.train.precision
    return "32-true" if is_small(family.denoiser) else precision_of_large_models(pick_device(config))


def model_source(config: Config) -> ModelSource:
    """Return the base that a run starts from, in float32, in which weights train, or quantized."""
    model = config.model
    quantize = None if model.quantize == "none" else model.quantize
    return ModelSource(
        model.base, model.family, model.config, model.revision, model.variant, quantize=quantize, vae=model.vae
    )


def check_quantization(config: Config) -> None:
    """Raise UserError for a quantization whose package is missing, or that the device has not."""
    if config.model.quantize != "none":
        check_quantizer(config.model.quantize, pick_device(config))


def load_base(config: Config) -> Family:
    """Load the base model with the run's noise schedule, on the CPU. Raises ModelError, UserError."""
    family = load_family(model_source(config))
    check_can_train(family, config.model.base)
    apply_schedule(family, config)
    return family


def check_can_train(family: Family, base: str) -> None:
    """Raise ModelError for a base that can be sampled alone: graphs, and a network that reads masks."""
    if isinstance(family.denoiser, Graph):
        raise ModelError(f"model.base={base}: graphs of an export, which can be sampled alone; train on its base")
    if isinstance(family, InpaintingDenoiser) and family.is_inpainting:
        raise ModelError(
            f"model.base={base}: an inpainting model, whose network reads a mask too; such a base can be sampled, to "
            "train use its plain text-to-image sibling"
        )


def apply_schedule(family: Family, config: Config) -> None:
    """Apply loss.timesteps and, to sampling too, loss.zero_terminal_snr (Lin et al. 2023, arXiv 2305.08891).

    Raises UserError for a base that predicts the noise, which says nothing about x0 where all is noise, and for flow
    matching, whose last timestep is pure noise already.
    """
    if config.loss.zero_terminal_snr:
        check_terminal_snr(family.schedule.prediction)
        family.set_scheduler({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
    as_the_base = family.schedule.density if config.prior.timesteps == "base" else None
    family.schedule = replace(family.schedule, density=timestep_density(family, config), prior_density=as_the_base)


def check_terminal_snr(prediction: str) -> None:
    if prediction == "epsilon":
        raise UserError(
            "loss.zero_terminal_snr=true: this base predicts the noise, from which nothing can be learned where all "
            "is noise; use a base that predicts v, or loss.noise_offset"
        )
    if prediction == "flow":
        raise UserError(
            "loss.zero_terminal_snr=true: this base is of flow matching, whose last timestep is pure noise already; "
            "set it to false"
        )


def timestep_density(family: Family, config: Config) -> TimestepDensity:
    """Return how often each timestep is trained on. Raises UserError for a shift that the base does not have."""
    loss, shift = config.loss, config.loss.timestep_shift
    if loss.timesteps == "base":
        return family.schedule.density
    if loss.timesteps == "shifted":
        if shift is None and family.sampler_shift == 1:
            raise UserError(
                "loss.timesteps=shifted: this base's sampler shifts no timesteps; set loss.timestep_shift to a number"
            )
        return TimestepDensity(shift=family.sampler_shift if shift is None else shift)
    mean = 0.0 if loss.timestep_mean is None else loss.timestep_mean
    std = 1.0 if loss.timestep_std is None else loss.timestep_std
    return TimestepDensity(loss.timesteps, mean, std, 1.0 if shift is None else shift)


def untouched_base(family: Family, config: Config) -> Family:
    """Return the frozen base: the same networks with their adapters off or, where every weight may change, a copy."""
    if find_facts(config.method.name).is_adapter:
        return frozen_base(family)
    return frozen_copy(family, compute_dtype(config, family))


def save_memory(family: Family, config: Config, text_trains: bool) -> None:
    """Free networks that the run no longer needs, and apply the settings that trade time for memory.

    Where the device has memory of its own, the VAE stays on the CPU.
    """
    if kind_of(pick_device(config)).has_own_memory:
        family.vae.to("cpu")
    for network in unused_networks(family, config, text_trains):
        network.to("meta")
    checkpoint_activations(family, config.train.gradient_checkpointing)
    if config.train.compile:
        family.denoiser.compile()


def keep_off_device(family: Family, config: Config) -> None:
    """Apply train.offload, once it is known which weights train, and before anything moves to the device."""
    if config.train.offload != "none":
        offload(family, config.train.offload, pick_device(config))


def unused_networks(family: Family, config: Config, text_trains: bool) -> list[torch.nn.Module]:
    """Return the networks not needed once latents and prompt embeddings are cached.

    An adapter's result holds none of the base: the text encoders are not needed once all prompts are cached, nor the
    VAE where no image is to be decoded.
    """
    if not find_facts(config.method.name).is_adapter:
        return []
    prompts_are_cached = not (text_trains or config.data.shuffle_captions)
    text_encoders = family.text_encoders if prompts_are_cached else []
    return text_encoders if config.validate.every_steps else [*text_encoders, family.vae]


def checkpoint_activations(family: Family, is_enabled: bool) -> None:
    """Set whether backward recomputes activations instead of keeping them (Chen et al. 2016, arXiv 1604.06174)."""
    verb = "enable" if is_enabled else "disable"
    getattr(family.denoiser, f"{verb}_gradient_checkpointing")()
    for text_encoder in family.text_encoders:
        if not text_encoder.training:
            continue
        # transformers renamed the method within its version 5.
        kind = "activation" if hasattr(text_encoder, "activation_checkpointing_enable") else "gradient"
        getattr(text_encoder, f"{kind}_checkpointing_{verb}")()


def compute_dtype(config: Config, family: Family) -> torch.dtype:
    """Return the dtype of networks that do not train."""
    dtypes = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return dtypes[pick_precision(config, family)]


@contextlib.contextmanager
def on_device(network: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Move a network to a device for this block, and then back."""
    before = next(network.parameters()).device
    network.to(device)
    try:
        yield
    finally:
        network.to(before)


@contextlib.contextmanager
def inference(family: Family, config: Config) -> Iterator[None]:
    """Set evaluation mode, no gradients, and the training's autocast."""
    dtype = compute_dtype(config, family)
    autocast = torch.autocast(pick_device(config).type, dtype, enabled=dtype != torch.float32)
    with evaluation_mode(family), torch.no_grad(), autocast:
        yield
