"""The common part of families with a UNet over the latents of an image VAE.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752).
Shapes: B batch, C channels, H/W height and width (pixels or latents).
"""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from dreambooth.devices import AUTO, find_device
from dreambooth.errors import ModelError, first_line
from dreambooth.families.autoencoder import KLCodec
from dreambooth.families.conditioning import Conditioning
from dreambooth.families.guidance import FROM_UNCONDITIONAL, Guidance
from dreambooth.families.inspection import LOADING_ERRORS
from dreambooth.families.ip_adapter import IPAdapter
from dreambooth.families.loading import is_small
from dreambooth.families.prompt_cache import PromptCache
from dreambooth.families.shared_attention import shared_attention
from dreambooth.families.unet_control import ControlledUNet, residual_inputs
from dreambooth.schedules import Schedule
from dreambooth.timesteps import Shift, Size

# Ends of the names of modules: in the UNet, and in CLIP's text encoder.
TARGET_GROUPS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"),
    "feed-forward": ("ff.net.0.proj", "ff.net.2", "fc1", "fc2"),
    "projections": ("proj_in", "proj_out"),
    "convolutions": ("conv1", "conv2", "conv_shortcut", "conv"),
}


@dataclass
class UNetFamily(ControlledUNet, KLCodec, PromptCache):
    """Hold VAE, UNet and schedule; the subclass encodes prompts."""

    even_sigmas: ClassVar[bool] = False
    guidance: ClassVar[Guidance] = FROM_UNCONDITIONAL
    has_idle_weights: ClassVar[bool] = False
    layouts: ClassVar[tuple[str, ...]] = ("single-file", "kohya", "comfyui", "embedding")

    unet: UNet2DConditionModel
    scheduler_config: dict[str, Any]

    def __post_init__(self) -> None:
        check_latents(self.vae, self.unet)
        self.vae.requires_grad_(False).eval()
        self.set_scheduler({})

    def set_scheduler(self, changes: dict[str, Any]) -> None:
        """Change settings of the sampler. Raises ModelError if no schedule can be made of them."""
        self.scheduler_config = {**self.scheduler_config, **changes}
        try:
            ddpm = DDPMScheduler.from_config(self.scheduler_config)
            self.schedule = Schedule.from_alphas_cumprod(ddpm.alphas_cumprod, ddpm.config.prediction_type)
        except LOADING_ERRORS as error:
            raise ModelError(f"scheduler/scheduler_config.json: cannot be used: {first_line(error)}") from error
        if not self.schedule.num_timesteps or not bool(torch.isfinite(self.schedule.alpha_T).all()):
            raise ModelError("scheduler/scheduler_config.json: its betas make no schedule")

    def scheduler(self) -> Any:
        """Make the base's own sampler."""
        return getattr(diffusers, self.scheduler_config["_class_name"]).from_config(self.scheduler_config)

    @property
    def sampler_shift(self) -> Shift:
        return 1.0

    def sampler_config(self, size: Size, num_steps: int) -> dict[str, Any]:
        return {key: value for key, value in self.scheduler_config.items() if not key.startswith("_")}

    @property
    def denoiser(self) -> nn.Module:
        return self.unet

    def components(self) -> dict[str, nn.Module]:
        own = (self.unet, *self.text_encoders)
        return {name: part for name, part in self.pipeline().components.items() if any(part is each for each in own)}

    def pipeline_arguments(self, noise_BCHW: Tensor, guidance_scale: float) -> dict[str, Any]:
        return {"latents": noise_BCHW, "guidance_scale": guidance_scale}

    @property
    @abstractmethod
    def text_encoders(self) -> list[nn.Module]:
        """Return the text encoders that a method may train."""

    @abstractmethod
    def pipeline(self) -> DiffusionPipeline:
        """Return the same live networks as a diffusers pipeline, for export."""

    @property
    def resolution(self) -> int:
        return self.unet.config.sample_size * self.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        """Return 64 pixels for Stable Diffusion, 32 for XL.

        Other sides become odd on the way down; diffusers restores them on the way up by repeating some positions and
        not others, which shifts features against the skip connections.
        """
        return self.vae_scale_factor * 2**self.unet.num_upsamplers

    @property
    def is_inpainting(self) -> bool:
        return reads_mask(self.vae, self.unet)

    def inpainting_conditioning(self, pixels_BCHW: Tensor, redrawn_B1HW: Tensor) -> Conditioning:
        """Return the field `inpainting`, [B, 1 + C, H, W] of latents: the mask, and the image with grey in its place.

        So diffusers' StableDiffusionInpaintPipeline; a latent counts as redrawn if any of its pixels is.
        """
        kept_BCHW = self.encode_images(pixels_BCHW * ~redrawn_B1HW)[0]
        mask_B1HW = F.max_pool2d(redrawn_B1HW.float(), self.vae_scale_factor).to(kept_BCHW)
        return Conditioning({"inpainting": torch.cat([mask_B1HW, kept_BCHW], 1)})

    def text_inputs(self, noisy_BCHW: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Return the UNet's arguments beside noisy latents and timesteps: the texts, and what else the family gives."""
        inputs: dict[str, Any] = {"encoder_hidden_states": conditioning["encoder_hidden_states"]}
        if "image_embeds" in conditioning:
            inputs["added_cond_kwargs"] = {"image_embeds": [conditioning["image_embeds"]]}
        return inputs

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the schedule's target, with what ControlNets add where there are any."""
        inputs = {**self.text_inputs(noisy_BCHW, conditioning), **residual_inputs(conditioning)}
        return self.unet(input_of(noisy_BCHW, conditioning), t_B, **inputs).sample

    def shared_attention(self, weight: float) -> AbstractContextManager[None]:
        return shared_attention(self.unet, weight)

    def image_prompt(self, adapter: IPAdapter, weight: float) -> AbstractContextManager[None]:
        return adapter.applied(self.unet, weight)

    @property
    def target_groups(self) -> Mapping[str, tuple[str, ...]]:
        return TARGET_GROUPS


def optimize_for_device(unet: UNet2DConditionModel) -> None:
    """Make a small UNet on a CPU faster: plain attention, as the fused kernel's bfloat16 backward takes 43 % of a step,
    and weights with their channels last, with which convolutions forward and back take a quarter less time.

    One of Stable Diffusion's size is a tenth slower so, and takes 2.5 GiB more (float32, 256 pixels).
    """
    if find_device(AUTO, to_train=True).type == "cpu" and is_small(unet):
        unet.set_attn_processor(AttnProcessor())
        unet.to(memory_format=torch.channels_last)


# -------------------------------------------------------------------------------- checks


def check_latents(vae: AutoencoderKL, unet: UNet2DConditionModel) -> None:
    """Raise ModelError where VAE and UNet do not match: diffusers loads such a model without an error."""
    if reads_mask(vae, unet) and vae.config.latent_channels == unet.config.out_channels:
        return
    if not vae.config.latent_channels == unet.config.in_channels == unet.config.out_channels:
        raise ModelError(
            f"vae/config.json: latent_channels is {vae.config.latent_channels}, unet/config.json: in_channels is "
            f"{unet.config.in_channels}, out_channels {unet.config.out_channels}: they must agree"
        )


def reads_mask(vae: AutoencoderKL, unet: UNet2DConditionModel) -> bool:
    """Return whether a UNet reads a mask and masked latents beside the noisy ones: 9 channels where latents have 4."""
    return bool(unet.config.in_channels == 2 * vae.config.latent_channels + 1)


def input_of(noisy_BCHW: Tensor, conditioning: Conditioning) -> Tensor:
    """Return what the UNet reads: of an inpainting base noisy latents with `inpainting_conditioning` behind them."""
    if "inpainting" not in conditioning:
        return noisy_BCHW
    return torch.cat([noisy_BCHW, conditioning["inpainting"].to(noisy_BCHW)], 1)


def check_text_width(unet: UNet2DConditionModel, width: int) -> None:
    """Raise ModelError where the UNet attends to texts of another width."""
    if unet.config.cross_attention_dim != width:
        raise ModelError(
            f"unet/config.json: cross_attention_dim is {unet.config.cross_attention_dim}, text_encoder/config.json: "
            f"hidden_size is {width} (of several, their sum): they must agree"
        )
