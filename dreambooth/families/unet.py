"""What families with a UNet over the latents of an image VAE share.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752).
Shapes: B batch, C channels, H/W height and width (pixels or latents).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, ConfigMixin, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel

from dreambooth.errors import ModelError, UserError, first_line
from dreambooth.families.inspection import LOADING_ERRORS, check_sampler, read_json, reason
from dreambooth.families.location import find_variants
from dreambooth.families.protocols import Condition
from dreambooth.families.source import ModelSource
from dreambooth.schedules import Schedule

SMALL = 100e6  # parameters of a UNet: the embedded base has 7 million, Stable Diffusion 1.5 has 860


@dataclass
class UNetFamily(ABC):
    """VAE, UNet and schedule; the text side is the subclass's."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler_config: dict[str, Any]

    def __post_init__(self) -> None:
        check_latents(self.vae, self.unet)
        self.vae.requires_grad_(False).eval()
        self.set_scheduler({})
        self.prompt_cache: dict[str, Condition] = {}  # by prompt, each tensor without its batch axis

    def set_scheduler(self, changes: dict[str, Any]) -> None:
        """Raises ModelError for settings of which no schedule can be made."""
        self.scheduler_config = {**self.scheduler_config, **changes}
        try:
            ddpm = DDPMScheduler.from_config(self.scheduler_config)
            self.schedule = Schedule.from_alphas_cumprod(ddpm.alphas_cumprod, ddpm.config.prediction_type)
        except LOADING_ERRORS as error:
            raise ModelError(f"scheduler/scheduler_config.json: cannot be used: {first_line(error)}") from error
        if not self.schedule.num_timesteps or not bool(torch.isfinite(self.schedule.alpha_T).all()):
            raise ModelError("scheduler/scheduler_config.json: its betas make no schedule")

    def scheduler(self) -> Any:
        """The base's own sampler, afresh."""
        return getattr(diffusers, self.scheduler_config["_class_name"]).from_config(self.scheduler_config)

    @property
    def denoiser(self) -> nn.Module:
        return self.unet

    @abstractmethod
    def encode_texts(self, prompts: list[str]) -> Condition:
        """What the text encoders make of prompts, each tensor [B, ...]."""

    def condition(self, prompts: list[str]) -> Condition:
        """What the text encoders make of prompts, or made of them when they were remembered; each tensor [B, ...]."""
        if not self.prompt_cache:
            return self.encode_texts(prompts)
        known = [self.prompt_cache[prompt] for prompt in prompts]
        dtype = next(self.unet.parameters()).dtype
        return {name: torch.stack([each[name] for each in known]).to(dtype) for name in known[0]}

    @torch.no_grad()
    def cache_prompts(self, prompts: Iterable[str]) -> None:
        """Each prompt by itself: what is made of it does not depend on its neighbours."""
        different = dict.fromkeys(prompts)
        self.prompt_cache = {
            prompt: {name: tensor_1[0] for name, tensor_1 in self.encode_texts([prompt]).items()}
            for prompt in different
        }

    @property
    def resolution(self) -> int:
        return self.unet.config.sample_size * self.vae_scale_factor

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent, along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size_multiple(self) -> int:
        """64 for Stable Diffusion, 32 for XL. From other sides diffusers comes to odd ones, which it reaches on the way
        back by repeating some places and not others: they are shifted against the skip connections."""
        return self.vae_scale_factor * 2**self.unet.num_upsamplers

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The VAE's moments, times its scaling factor as the UNet expects."""
        moments = self.vae.encode(pixels_BCHW.to(self.vae.device, self.vae.dtype)).latent_dist
        scale = self.vae.config.scaling_factor
        return moments.mean * scale, moments.std * scale

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """The inverse of `encode_images`, as far as the VAE goes."""
        latents_BCHW = latents_BCHW.to(self.vae.device, self.vae.dtype)
        return self.vae.decode(latents_BCHW / self.vae.config.scaling_factor).sample

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Latents are smaller by the VAE's factor, 8 for Stable Diffusion."""
        factor = self.vae_scale_factor
        for side in (height, width):
            if side % factor or side <= 0:
                raise UserError(f"a picture side of {side} pixels does not fit this model; use a multiple of {factor}")
        return self.unet.config.in_channels, height // factor, width // factor


# -------------------------------------------------------------------------------- loading


def load_part(
    model_class: Any, base: Path, subfolder: str, source: ModelSource, dtype: torch.dtype | None = None
) -> Any:
    """Load one network straight into `dtype` (None: that of the source): it is never whole in a larger one.

    Takes the source's variant of its weights where there is one, else the plain ones. Raises ModelError that says what
    is wrong with its files.
    """
    own = source.variant if source.variant in find_variants(base / subfolder) else None
    # Weights of another shape are told below, by name; diffusers tells them itself.
    options = {"ignore_mismatched_sizes": True} if issubclass(model_class, PreTrainedModel) else {}
    read_json(base / subfolder / "config.json")
    try:
        model, info = model_class.from_pretrained(
            base, subfolder=subfolder, output_loading_info=True, dtype=dtype or source.dtype, variant=own, **options
        )
    except LOADING_ERRORS as error:
        others = find_variants(base / subfolder) - {own}
        hint = f" (model.variant, --variant: it has {', '.join(sorted(others))})" if others else ""
        raise ModelError(f"{base / subfolder}: cannot be loaded{hint}: {reason(base / subfolder, error)}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, info[problem])):
            raise ModelError(
                f"{base / subfolder}: {len(keys)} {problem.replace('_', ' ')} in the weights, e.g. {keys[0]}: they are "
                "not those of its config.json"
            )
    if isinstance(model, ConfigMixin):  # else a folder of this machine comes into every file that is made of it
        model.register_to_config(_name_or_path="")
    return model


def load_tokenizer(base: Path, subfolder: str) -> CLIPTokenizer:
    """Raises ModelError."""
    try:
        return CLIPTokenizer.from_pretrained(base, subfolder=subfolder)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"{base / subfolder}: tokenizer cannot be loaded: {reason(base / subfolder, error)}"
        ) from error


def load_scheduler_config(base: Path) -> dict[str, Any]:
    """Raises ModelError."""
    path = base / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    check_sampler(path, config.get("_class_name"))
    return config


def scheduler_config_of(scheduler: Any) -> dict[str, Any]:
    """A loaded sampler's config as its file has it: what the file leaves open, another sampler settles for itself.

    diffusers keeps a list of such settings in the config, and would take a later change of them back.
    """
    left_open = scheduler.config.get("_use_default_values", [])
    given = {key: value for key, value in scheduler.config.items() if key not in left_open and not key.startswith("_")}
    return {**given, "_class_name": type(scheduler).__name__}


def optimize_for_device(unet: UNet2DConditionModel) -> None:
    """A small UNet on a CPU: plain attention, as the fused kernel's bfloat16 backward takes 43 % of a step, and
    weights with their channels last, with which convolutions forward and back take a quarter less time.

    One of Stable Diffusion's size is a tenth slower so, and takes 2.5 GiB more (float32, 256 pixels).
    """
    if not torch.cuda.is_available() and unet.num_parameters() < SMALL:
        unet.set_attn_processor(AttnProcessor())
        unet.to(memory_format=torch.channels_last)


# -------------------------------------------------------------------------------- what must fit


def check_latents(vae: AutoencoderKL, unet: UNet2DConditionModel) -> None:
    """Raises ModelError where VAE and UNet do not agree: diffusers loads an ill-matched model without a word."""
    if unet.config.in_channels == 9:
        raise ModelError("the base is an inpainting model (9 input channels); use its plain text-to-image sibling")
    if not vae.config.latent_channels == unet.config.in_channels == unet.config.out_channels:
        raise ModelError(
            f"vae/config.json: latent_channels is {vae.config.latent_channels}, unet/config.json: in_channels is "
            f"{unet.config.in_channels}, out_channels {unet.config.out_channels}: they must agree"
        )


def check_text_width(unet: UNet2DConditionModel, width: int) -> None:
    """Raises ModelError where the UNet attends to texts of another width."""
    if unet.config.cross_attention_dim != width:
        raise ModelError(
            f"unet/config.json: cross_attention_dim is {unet.config.cross_attention_dim}, text_encoder/config.json: "
            f"hidden_size is {width} (of several, their sum): they must agree"
        )


def check_finite(**parts: nn.Module) -> None:
    """Raises ModelError naming the part and the weight.

    A sum takes a twentieth of the time of looking at each number, 1 s for Stable Diffusion 1.5, and is not finite where
    one of them is not; that it overflows is no proof.
    """
    for part, network in parts.items():
        for name, parameter in network.named_parameters():
            if not bool(torch.isfinite(parameter.sum())) and not bool(torch.isfinite(parameter).all()):
                raise ModelError(f"{part}: weight {name} holds numbers that are not finite")
