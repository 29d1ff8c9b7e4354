"""Stable Diffusion 3 and 3.5: a transformer of joint blocks, two CLIP text encoders and T5.

Esser et al. 2024, arXiv 2403.03206. The prompt is what both CLIPs make of it, side by side, followed by what T5 does.
Shapes: B batch, C channels, H/W latent height and width, N tokens, D width of T5, P of both pooled states together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import SD3ControlNetModel, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from dreambooth.errors import ModelError, UserError
from dreambooth.families import clip, clip_t5
from dreambooth.families.autoencoder import KLCodec
from dreambooth.families.conditioning import Conditioning, DenoiserInputs
from dreambooth.families.control import MAP, fields_of, in_proportion, residuals_of
from dreambooth.families.flow import FlowProcess, OneTransformer, warn_of_distilled
from dreambooth.families.frozen_text import FrozenText, LazyTextEncoder, lazy_text_encoder
from dreambooth.families.guidance import FROM_UNCONDITIONAL, Guidance
from dreambooth.families.loading import check_finite, load_scheduler_config, load_tokenizer
from dreambooth.families.offload import bring
from dreambooth.families.source import ModelSource
from dreambooth.families.transformer_file import load_transformer
from dreambooth.families.vae import load_vae
from dreambooth.timesteps import TimestepDensity

BLOCK = "transformer_blocks.*"
BLOCKS = "blocks"  # what ControlNets add to
TARGET_GROUPS = {
    "attention": (
        *(f"{BLOCK}.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"{BLOCK}.attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
        *(f"{BLOCK}.attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),  # of 3.5 medium: images alone
    ),
    "feed-forward": tuple(f"{BLOCK}.{part}.net.{layer}" for part in ("ff", "ff_context") for layer in ("0.proj", "2")),
    "modulation": (f"{BLOCK}.norm1.linear", f"{BLOCK}.norm1_context.linear"),
}


@dataclass
class StableDiffusion3(OneTransformer, FlowProcess, KLCodec, FrozenText, clip_t5.ClipT5Tokens):
    """The networks of a Stable Diffusion 3 or 3.5 base behind the `Family` protocol."""

    MAX_TOKENS: ClassVar[int] = 256  # of T5, the pipeline's default
    even_sigmas: ClassVar[bool] = False
    guidance: ClassVar[Guidance] = FROM_UNCONDITIONAL
    architecture: ClassVar[str] = "stable-diffusion-3"  # as sd-scripts writes it
    layouts: ClassVar[tuple[str, ...]] = ("kohya", "comfyui")
    unread_by_diffusers: ClassVar[tuple[str, ...]] = ("kohya",)
    comfyui_prefix: ClassVar[str] = "transformer."  # ComfyUI maps diffusers' names (`model_lora_keys_unet`)
    control_class: ClassVar[type[Any]] = SD3ControlNetModel
    controls_read_prompts: ClassVar[bool] = False

    transformer: SD3Transformer2DModel
    text_encoder_2: LazyTextEncoder
    text_encoder_3: LazyTextEncoder
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    tokenizer_3: T5TokenizerFast

    def __post_init__(self) -> None:
        if self.vae.config.latent_channels != self.transformer.config.in_channels:
            raise ModelError(
                f"vae/config.json: latent_channels is {self.vae.config.latent_channels}, transformer/config.json: "
                f"in_channels is {self.transformer.config.in_channels}: they must agree"
            )
        self.vae.requires_grad_(False).eval()
        self.set_scheduler({})
        check_finite(transformer=self.transformer, vae=self.vae)

    @property
    def trained_density(self) -> TimestepDensity:
        """Return the paper's: logit-normal (section 5.1), and the sampler's shift of 3 at 1024 pixels (5.3.2)."""
        return TimestepDensity("logit_normal", shift=self.sampler_shift)

    @property
    def frozen_encoders(self) -> tuple[LazyTextEncoder, ...]:
        return (self.text_encoder, self.text_encoder_2, self.text_encoder_3)

    @property
    def t5_tokenizer(self) -> T5TokenizerFast:
        return self.tokenizer_3

    @property
    def resolution(self) -> int:
        return self.transformer.config.sample_size * self.vae_scale_factor

    @property
    def size_step(self) -> int:
        """Return 16 pixels: the VAE's 8, and 2 latents a token."""
        return self.transformer.config.patch_size * self.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        return self.size_step

    @property
    def target_groups(self) -> Mapping[str, tuple[str, ...]]:
        return TARGET_GROUPS

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        largest = self.transformer.config.pos_embed_max_size * self.size_step
        if max(height, width) > largest:
            raise UserError(
                f"an image side of {max(height, width)} pixels is too large for this model's positions; use at most "
                f"{largest}"
            )
        return super().latent_shape(height, width)

    def run_text_encoders(self, prompts: list[str]) -> Conditioning:
        """Return the prompt of both CLIPs and T5, [B, 77 + 256, D], and the CLIPs' pooled states, [B, P].

        Of CLIP the last hidden states but one, filled up with zeros to T5's width.
        """
        *clips, t5 = self.loaded_encoders()
        outputs = [
            encoder(clip.tokenize(tokenizer, prompts).to(t5.device), output_hidden_states=True)
            for tokenizer, encoder in zip((self.tokenizer, self.tokenizer_2), clips, strict=True)
        ]
        clip_BND = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        t5_BND = t5(self.t5_ids(prompts).to(t5.device))[0]
        prompt_BND = torch.cat([F.pad(clip_BND, (0, t5_BND.shape[-1] - clip_BND.shape[-1])), t5_BND], dim=1)
        return Conditioning({"prompt": prompt_BND, "pooled": torch.cat([each.text_embeds for each in outputs], dim=-1)})

    def cache_blank_prompts(self, prompts: list[str]) -> None:
        config = self.transformer.config
        num_tokens = self.tokenizer.model_max_length + self.max_tokens
        blank = Conditioning(
            {
                "prompt": torch.zeros(1, num_tokens, config.joint_attention_dim),
                "pooled": torch.zeros(1, config.pooled_projection_dim),
            }
        )
        self.prompt_cache = dict.fromkeys(prompts, blank)

    def original_modules(self) -> dict[str, tuple[str, ...]]:
        """Return attention, feed-forward and modulation of each block."""
        found: dict[str, tuple[str, ...]] = {}
        for number in range(len(self.transformer.transformer_blocks)):
            here, block = f"transformer_blocks.{number}", f"joint_blocks.{number}"
            for side, names, out, ff, norm in (
                ("x_block", ("to_q", "to_k", "to_v"), "to_out.0", "ff", "norm1"),
                (
                    "context_block",
                    ("add_q_proj", "add_k_proj", "add_v_proj"),
                    "to_add_out",
                    "ff_context",
                    "norm1_context",
                ),
            ):
                found[f"{block}.{side}.adaLN_modulation.1"] = (f"{here}.{norm}.linear",)
                found[f"{block}.{side}.attn.qkv"] = tuple(f"{here}.attn.{name}" for name in names)
                found[f"{block}.{side}.attn.proj"] = (f"{here}.attn.{out}",)
                for layer, name in (("fc1", "net.0.proj"), ("fc2", "net.2")):
                    found[f"{block}.{side}.mlp.{layer}"] = (f"{here}.{ff}.{name}",)
            found[f"{block}.x_block.attn2.qkv"] = tuple(f"{here}.attn2.{name}" for name in ("to_q", "to_k", "to_v"))
            found[f"{block}.x_block.attn2.proj"] = (f"{here}.attn2.to_out.0",)
        modules = dict(self.transformer.named_modules())
        return {original: members for original, members in found.items() if all(name in modules for name in members)}

    def swapped_modules(self) -> frozenset[str]:
        """Return the last modulation of the text: diffusers has scale and shift, Stability AI shift and scale."""
        return frozenset({f"transformer_blocks.{self.transformer.config.num_layers - 1}.norm1_context.linear"})

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict noise - x0."""
        spread = partial(in_proportion, num_blocks=self.transformer.config.num_layers)
        return self.transformer(
            hidden_states=noisy_BCHW,
            timestep=t_B,
            encoder_hidden_states=conditioning["prompt"],
            pooled_projections=conditioning["pooled"],
            block_controlnet_hidden_states=residuals_of(conditioning, {BLOCKS: spread}),
            return_dict=False,
        )[0]

    def control_condition(self, network: Any, kind: str, map_1CHW: Tensor) -> Conditioning:
        """Return the map's latents, which early ControlNets read without the VAE's shift.

        Stability AI's own for edges was trained on other pixels than in -1..1, as its card's code makes them.
        """
        if kind == "canny" and is_of_stability(network):
            map_1CHW = map_1CHW.add(1).div(2) * 255 * 0.5 + 0.5
        latents_1CHW = self.encode_images(map_1CHW)[0]
        if network.config.force_zeros_for_pooled_projection:
            config = self.vae.config
            latents_1CHW = latents_1CHW + (config.shift_factor or 0) * config.scaling_factor
        return Conditioning({MAP: latents_1CHW})

    def control(self, network: Any, condition: Conditioning, weight: float, inputs: DenoiserInputs) -> Conditioning:
        """Return what a ControlNet adds. Stability AI's own read tokens of this base's making, and no prompt."""
        conditioning, hidden = inputs.conditioning, inputs.noisy_BCHW
        pooled_BP = conditioning["pooled"]
        if network.config.force_zeros_for_pooled_projection:
            pooled_BP = torch.zeros_like(pooled_BP)
        if is_of_stability(network):
            bring(self.transformer)
            hidden = self.transformer.pos_embed(hidden)
        (found,) = network(
            hidden_states=hidden,
            controlnet_cond=condition[MAP],
            conditioning_scale=weight,
            encoder_hidden_states=None if network.context_embedder is None else conditioning["prompt"],
            pooled_projections=pooled_BP,
            timestep=inputs.t_B,
            return_dict=False,
        )
        return Conditioning(fields_of(BLOCKS, found))

    def pipeline(self) -> StableDiffusion3Pipeline:
        text_encoder, text_encoder_2, text_encoder_3 = self.loaded_encoders()
        return StableDiffusion3Pipeline(
            transformer=self.transformer,
            scheduler=self.scheduler(),
            vae=self.vae,
            text_encoder=text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=self.tokenizer_3,
        )


def is_of_stability(network: Any) -> bool:
    """Return whether a ControlNet is one of Stability AI's for 3.5 large: they alone have no positions of their own."""
    return not network.config.use_pos_embed


def load(folder: Path, source: ModelSource) -> StableDiffusion3:
    """Load a pipeline folder, one part at a time; the text encoders only when a prompt is to be encoded.

    Raises ModelError for missing, incomplete or non-finite weights. Warns of a distilled model.
    """
    if "turbo" in f"{source.base}/{folder.name}".lower():
        warn_of_distilled(source.base, "stabilityai/stable-diffusion-3.5-large")
    clips = ("text_encoder", "text_encoder_2")
    text_encoder, text_encoder_2 = (
        lazy_text_encoder(CLIPTextModelWithProjection, folder, source, part) for part in clips
    )
    text_encoder_3 = lazy_text_encoder(T5EncoderModel, folder, source, "text_encoder_3")
    transformer = load_transformer(SD3Transformer2DModel, folder, source)
    tokenizer, tokenizer_2 = (load_tokenizer(folder, part) for part in ("tokenizer", "tokenizer_2"))
    tokenizer_3 = load_tokenizer(folder, "tokenizer_3", T5TokenizerFast)
    clip_t5.check_text(folder, clips, "text_encoder_3", (tokenizer, tokenizer_2, tokenizer_3), transformer.config)
    return StableDiffusion3(
        vae=load_vae(folder, source, "sd3.5-medium"),
        transformer=transformer,
        scheduler_config=load_scheduler_config(folder),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        text_encoder_3=text_encoder_3,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        tokenizer_3=tokenizer_3,
    )
