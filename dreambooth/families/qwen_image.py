"""Qwen-Image: a transformer of double blocks, a Qwen2.5-VL text encoder, a VAE of films.

Wu et al. 2025, arXiv 2508.02324. An image is a film of one frame. Latents are standardised by mean and standard
deviation of each channel; the transformer reads them in patches of 2 x 2.
Shapes: B batch, C channels, H/W latent height and width, N tokens, D width of the text encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageControlNetModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from dreambooth.errors import ModelError, UserError
from dreambooth.families import qwen
from dreambooth.families.autoencoder import QwenImageCodec
from dreambooth.families.conditioning import Conditioning, DenoiserInputs
from dreambooth.families.control import MAP, fields_of, in_runs, residuals_of
from dreambooth.families.flow import FlowProcess, OneTransformer
from dreambooth.families.frozen_text import FrozenText, lazy_text_encoder
from dreambooth.families.guidance import Guidance
from dreambooth.families.inspection import read_json
from dreambooth.families.loading import check_finite, load_part, load_scheduler_config, load_tokenizer
from dreambooth.families.patches import PATCH, pack, unpack
from dreambooth.families.source import ModelSource
from dreambooth.families.transformer_file import load_transformer
from dreambooth.timesteps import TimestepDensity

BLOCK = "transformer_blocks.*"
BLOCKS = "blocks"  # what ControlNets add to
TARGET_GROUPS = {
    "attention": (
        *(f"{BLOCK}.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"{BLOCK}.attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
    ),
    "feed-forward": tuple(
        f"{BLOCK}.{part}.net.{layer}" for part in ("img_mlp", "txt_mlp") for layer in ("0.proj", "2")
    ),
    "modulation": (f"{BLOCK}.img_mod.1", f"{BLOCK}.txt_mod.1"),
}


def rescaled(uncond_BCHW: Tensor, cond_BCHW: Tensor, scale: float) -> Tensor:
    """Apply guidance, and give each token the length that its conditional prediction has."""
    guided_BCHW = uncond_BCHW + scale * (cond_BCHW - uncond_BCHW)
    longer = token_length(cond_BCHW) / token_length(guided_BCHW)
    return guided_BCHW * longer


def token_length(latents_BCHW: Tensor) -> Tensor:
    """Return the length of each token's vector at its four positions, [B, 1, H, W]."""
    length = F.pixel_unshuffle(latents_BCHW, PATCH).norm(dim=1, keepdim=True)
    return length.repeat_interleave(PATCH, dim=-1).repeat_interleave(PATCH, dim=-2)


@dataclass
class QwenImage(OneTransformer, FlowProcess, QwenImageCodec, FrozenText, qwen.TemplateTokens):
    """The networks of a Qwen-Image base behind the `Family` protocol."""

    # The report: logit-normal. It names no shift; the sampler's grows with the image, and so does it here.
    guidance: ClassVar[Guidance] = Guidance(1.0, rescaled)
    architecture: ClassVar[str] = "qwen-image"
    layouts: ClassVar[tuple[str, ...]] = ("kohya", "comfyui")
    control_class: ClassVar[type[Any]] = QwenImageControlNetModel
    controls_read_prompts: ClassVar[bool] = True
    has_idle_weights: ClassVar[bool] = True  # nothing reads what the last block makes of the text

    transformer: QwenImageTransformer2DModel
    tokenizer: PreTrainedTokenizerFast

    def __post_init__(self) -> None:
        if 4 * self.vae.config.z_dim != self.transformer.config.in_channels:
            raise ModelError(
                f"vae/config.json: z_dim is {self.vae.config.z_dim}, transformer/config.json: in_channels is "
                f"{self.transformer.config.in_channels}, which must be four times as many"
            )
        self.vae.requires_grad_(False).eval()
        rope = self.transformer.pos_embed
        if rope.pos_freqs.is_meta:  # its tables are no weights, and a plan needs their numbers
            self.transformer.pos_embed = type(rope)(rope.theta, rope.axes_dim, rope.scale_rope)
        self.set_scheduler({})
        check_finite(transformer=self.transformer, vae=self.vae)

    @property
    def trained_density(self) -> TimestepDensity:
        return TimestepDensity("logit_normal", shift=self.sampler_shift)

    @property
    def max_tokens(self) -> int:
        return 1024

    @property
    def target_groups(self) -> Mapping[str, tuple[str, ...]]:
        return TARGET_GROUPS

    def run_text_encoders(self, prompts: list[str]) -> Conditioning:
        """Return the last hidden states behind the template's beginning, each prompt's own number, [B, N, D]."""
        (text_encoder,) = self.loaded_encoders()
        rows = []
        for ids_1N in self.token_ids(prompts, text_encoder.device):
            states_1ND = text_encoder.model(input_ids=ids_1N, attention_mask=torch.ones_like(ids_1N)).last_hidden_state
            rows.append(states_1ND[0, qwen.NUM_DROPPED :])
        return Conditioning.from_rows(prompt=rows)

    def cache_blank_prompts(self, prompts: list[str]) -> None:
        self.prompt_cache = self.blank_prompts(prompts, self.transformer.config.joint_attention_dim)

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict noise - x0."""
        spread = partial(in_runs, num_blocks=self.transformer.config.num_layers)
        found_BNC = self.transformer(
            **self._arguments(DenoiserInputs(noisy_BCHW, t_B, conditioning)),
            guidance=None,
            controlnet_block_samples=residuals_of(conditioning, {BLOCKS: spread}),
            return_dict=False,
        )[0]
        return unpack(found_BNC, *noisy_BCHW.shape[-2:])

    def _arguments(self, inputs: DenoiserInputs) -> dict[str, Any]:
        """Return the arguments that the transformer and ControlNets have in common."""
        conditioning = inputs.conditioning
        height, width = inputs.noisy_BCHW.shape[-2:]
        return {
            "hidden_states": pack(inputs.noisy_BCHW),
            "encoder_hidden_states": conditioning["prompt"],
            "encoder_hidden_states_mask": conditioning.mask("prompt").long() if conditioning.lengths else None,
            "timestep": inputs.t_B / 1000,
            "img_shapes": [[(1, height // PATCH, width // PATCH)]] * len(inputs),
        }

    def control_condition(self, network: Any, kind: str, map_1CHW: Tensor) -> Conditioning:
        """Return the map's latents as tokens."""
        return Conditioning({MAP: pack(self.encode_images(map_1CHW)[0])})

    def control(self, network: Any, condition: Conditioning, weight: float, inputs: DenoiserInputs) -> Conditioning:
        found = network(
            **self._arguments(inputs),
            controlnet_cond=condition[MAP],
            conditioning_scale=weight,
            return_dict=False,
        )
        return Conditioning(fields_of(BLOCKS, found))

    def pipeline_arguments(self, noise_BCHW: Tensor, guidance_scale: float) -> dict[str, Any]:
        return {
            "latents": pack(noise_BCHW),
            "true_cfg_scale": guidance_scale,
            "negative_prompt": [""] * len(noise_BCHW),
        }

    def pipeline(self) -> QwenImagePipeline:
        (text_encoder,) = self.loaded_encoders()
        return QwenImagePipeline(
            scheduler=self.scheduler(),
            vae=self.vae,
            text_encoder=text_encoder,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
        )


def load(folder: Path, source: ModelSource) -> QwenImage:
    """Load a pipeline folder, one part at a time; the text encoder only when a prompt is to be encoded.

    Raises ModelError for missing, incomplete or non-finite weights, and for a model with guidance distilled into it.
    """
    if source.vae is not None:
        raise UserError(f"model.vae={source.vae}: this family has a VAE of its own kind; set it to null")
    text_encoder = lazy_text_encoder(Qwen2_5_VLForConditionalGeneration, folder, source)
    config = read_json(folder / "text_encoder" / "config.json")
    config = config.get("text_config", config)
    transformer = load_transformer(QwenImageTransformer2DModel, folder, source)
    if transformer.config.guidance_embeds:
        raise ModelError(f"{folder}: guidance is distilled into this model (guidance_embeds); train the base model")
    if (width := transformer.config.joint_attention_dim) != config.get("hidden_size"):
        raise ModelError(
            f"{folder}: transformer/config.json: joint_attention_dim is {width}, text_encoder/config.json: hidden_size "
            f"is {config.get('hidden_size')}: they must agree"
        )
    tokenizer = load_tokenizer(folder, "tokenizer", PreTrainedTokenizerFast)
    qwen.check_tokenizer(tokenizer, config.get("vocab_size", 0))
    return QwenImage(
        vae=load_part(AutoencoderKLQwenImage, folder, "vae", source, torch.float32),
        transformer=transformer,
        scheduler_config=load_scheduler_config(folder),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )
