"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, a VAE.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752).
Shapes: B batch, C channels, H/W height and width (pixels or latents), N tokens, D width of the text encoder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.models.attention_processor import AttnProcessor
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth.errors import ModelError, UserError, first_line
from dreambooth.families import clip
from dreambooth.families.base import Condition
from dreambooth.schedules import Schedule


@dataclass
class StableDiffusion:
    """The networks of a Stable Diffusion model behind the `Family` protocol."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler_config: dict[str, Any]

    def __post_init__(self) -> None:
        check_parts(self)
        self.vae.requires_grad_(False).eval()
        self.set_scheduler({})

    def set_scheduler(self, changes: dict[str, Any]) -> None:
        self.scheduler_config = {**self.scheduler_config, **changes}
        ddpm = DDPMScheduler.from_config(self.scheduler_config)
        self.schedule = Schedule.from_alphas_cumprod(ddpm.alphas_cumprod, ddpm.config.prediction_type)

    @property
    def denoiser(self) -> nn.Module:
        return self.unet

    @property
    def text_encoders(self) -> list[nn.Module]:
        return [self.text_encoder]

    @property
    def resolution(self) -> int:
        return self.unet.config.sample_size * self._vae_factor

    @property
    def _vae_factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

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
        factor = self._vae_factor
        for side in (height, width):
            if side % factor or side <= 0:
                raise UserError(f"a picture side of {side} pixels does not fit this model; use a multiple of {factor}")
        return self.unet.config.in_channels, height // factor, width // factor

    def condition(self, prompts: list[str]) -> Condition:
        """Hidden states of the text encoder, [B, N, D], for prompts padded to the tokenizer's length."""
        ids_BN = clip.tokenize(self.tokenizer, prompts).to(self.text_encoder.device)
        return {"encoder_hidden_states": self.text_encoder(ids_BN).last_hidden_state}

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        return self.unet(noisy_BCHW, t_B, **condition).sample

    def add_word(self, word: str, num_vectors: int, start_word: str) -> list[list[int]]:
        return [clip.add_word(self.tokenizer, self.text_encoder, word, num_vectors, start_word)]

    def token_ids(self, text: str) -> list[int]:
        return clip.token_ids(self.tokenizer, text)

    def pipeline(self) -> StableDiffusionPipeline:
        """Without a safety checker, which the base's folder may or may not hold."""
        scheduler_class = getattr(diffusers, self.scheduler_config["_class_name"])
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=scheduler_class.from_config(self.scheduler_config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def load(base: Path) -> StableDiffusion:
    """Load a pipeline folder in float32. Raises ModelError for missing, incomplete or non-finite weights."""
    parts = {
        "vae": _load_part(AutoencoderKL, base, "vae"),
        "unet": _load_part(UNet2DConditionModel, base, "unet"),
        "text_encoder": _load_part(CLIPTextModel, base, "text_encoder"),
    }
    try:
        tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
        scheduler_config = dict(DDPMScheduler.load_config(base, subfolder="scheduler"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{base}: tokenizer or scheduler cannot be loaded: {first_line(error)}") from error
    return _assemble(parts, tokenizer, scheduler_config)


def load_single_file(path: Path, config: str | None) -> StableDiffusion:
    """Load an original-layout `.safetensors`. config: folder or hub id with configs and tokenizer; None: the hub."""
    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            str(path), config=config, dtype=torch.float32, safety_checker=None
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, SingleFileComponentError) as error:
        raise ModelError(
            f"{path}: cannot be read as a Stable Diffusion file ({first_line(error)}); "
            "without the network, name a local folder with its configs and tokenizer (model.config, --config)"
        ) from error
    parts = {"vae": pipeline.vae, "unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    scheduler_config = {**pipeline.scheduler.config, "_class_name": type(pipeline.scheduler).__name__}
    return _assemble(parts, pipeline.tokenizer, scheduler_config)


def _assemble(parts: dict[str, Any], tokenizer: CLIPTokenizer, scheduler_config: dict[str, Any]) -> StableDiffusion:
    if not torch.cuda.is_available():
        # Plain matmul attention: on a CPU the fused kernel's bfloat16 backward takes 43 % of a training step.
        parts["unet"].set_attn_processor(AttnProcessor())
        parts["unet"].to(memory_format=torch.channels_last)  # convolutions forward and back take a quarter less time
    return StableDiffusion(**parts, tokenizer=tokenizer, scheduler_config=scheduler_config)


def _load_part(model_class: Any, base: Path, subfolder: str) -> Any:
    """One network in float32, or a ModelError that says what is wrong with its files."""
    try:
        model, info = model_class.from_pretrained(
            base, subfolder=subfolder, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{base / subfolder}: cannot be loaded: {first_line(error)}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, info[problem])):
            raise ModelError(
                f"{base / subfolder}: {len(keys)} {problem.replace('_', ' ')} in the weights, e.g. {keys[0]}"
            )
    return model


def check_parts(family: StableDiffusion) -> None:
    """The parts must fit each other: diffusers and transformers load an ill-matched model without a word.

    Raises ModelError naming the part.
    """
    unet, text_encoder, vae = family.unet.config, family.text_encoder.config, family.vae.config
    clip.check_tokenizer(len(family.tokenizer), text_encoder.vocab_size)
    if unet.in_channels == 9:
        raise ModelError("the base is an inpainting model (9 input channels); use its plain text-to-image sibling")
    if not vae.latent_channels == unet.in_channels == unet.out_channels:
        raise ModelError(
            f"the VAE makes {vae.latent_channels} latent channels, the UNet reads {unet.in_channels} and "
            f"writes {unet.out_channels}: they must agree"
        )
    if unet.cross_attention_dim != text_encoder.hidden_size:
        raise ModelError(
            f"the UNet attends to texts of width {unet.cross_attention_dim}, "
            f"the text encoder's width is {text_encoder.hidden_size}: they must agree"
        )
    for part in ("unet", "text_encoder", "vae"):
        for name, parameter in getattr(family, part).named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise ModelError(f"{part}: weight {name} holds numbers that are not finite")
