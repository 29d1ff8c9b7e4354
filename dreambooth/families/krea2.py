"""Krea 2: a transformer of one stream, a Qwen3-VL text encoder of which many layers are read, Qwen-Image's VAE.

Krea 2026, krea.ai/blog/krea-2-technical-report; how it is sampled stands in the code of diffusers' pipeline. That one
pads a prompt to 512 tokens in the middle of the template, and masks the padding everywhere; here there is none.
Shapes: B batch, C channels, H/W latent height and width, N tokens, L layers, D width of the text encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLQwenImage, Krea2Pipeline, Krea2Transformer2DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3VLModel

from dreambooth.errors import ModelError, UserError
from dreambooth.families import qwen
from dreambooth.families.autoencoder import QwenImageCodec
from dreambooth.families.conditioning import Conditioning
from dreambooth.families.flow import FlowProcess, OneTransformer, warn_of_distilled
from dreambooth.families.frozen_text import FrozenText, lazy_text_encoder
from dreambooth.families.guidance import BEYOND_CONDITIONAL, Guidance
from dreambooth.families.inspection import read_json
from dreambooth.families.loading import check_finite, load_part, load_scheduler_config, load_tokenizer
from dreambooth.families.patches import PATCH, pack, unpack
from dreambooth.families.source import ModelSource
from dreambooth.families.transformer_file import load_transformer
from dreambooth.timesteps import Shift, TimestepDensity

TEXT_LAYERS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)  # whose hidden states are read where the index names none
DISTILLED_SHIFT = 2.718281828459045**1.15  # of the pipeline's code
BLOCK = "transformer_blocks.*"
TARGET_GROUPS = {
    "attention": tuple(f"{BLOCK}.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_gate", "to_out.0")),
    "feed-forward": tuple(f"{BLOCK}.ff.{name}" for name in ("gate", "up", "down")),
    # With attention, ff.up and ff.down the layers that the authors adapt: diffusers' README_krea2.md.
    "embedding": (
        *("img_in", "time_embed.linear_1", "time_embed.linear_2", "time_mod_proj", "text_fusion.projector"),
        *("txt_in.linear_1", "txt_in.linear_2", "final_layer.linear"),
    ),
}
ORIGINAL_NAMES = (  # parts of modules' names in diffusers, and in the authors' own code
    *(("transformer_blocks.", "blocks."), ("text_fusion.", "txtfusion."), (".ff.", ".mlp.")),
    *((".to_q", ".wq"), (".to_k", ".wk"), (".to_v", ".wv"), (".to_gate", ".gate"), (".to_out.0", ".wo")),
    *(("time_embed.linear_1", "tmlp.0"), ("time_embed.linear_2", "tmlp.2"), ("time_mod_proj", "tproj.1")),
    *(("txt_in.linear_1", "txtmlp.1"), ("txt_in.linear_2", "txtmlp.3")),
    *(("img_in", "first"), ("final_layer.linear", "last.linear")),
)


@dataclass
class Krea2(OneTransformer, FlowProcess, QwenImageCodec, FrozenText, qwen.TemplateTokens):
    """The networks of a Krea 2 base behind the `Family` protocol."""

    guidance: ClassVar[Guidance] = BEYOND_CONDITIONAL
    architecture: ClassVar[str] = "krea-2"
    layouts: ClassVar[tuple[str, ...]] = ("comfyui",)
    comfyui_prefix: ClassVar[str] = "diffusion_model."

    transformer: Krea2Transformer2DModel
    tokenizer: PreTrainedTokenizerFast
    text_layers: tuple[int, ...] = TEXT_LAYERS
    is_distilled: bool = False

    def __post_init__(self) -> None:
        if 4 * self.vae.config.z_dim != self.transformer.config.in_channels:
            raise ModelError(
                f"vae/config.json: z_dim is {self.vae.config.z_dim}, transformer/config.json: in_channels is "
                f"{self.transformer.config.in_channels}, which must be four times as many"
            )
        self.vae.requires_grad_(False).eval()
        self.set_scheduler({})
        check_finite(transformer=self.transformer, vae=self.vae)

    @property
    def sampler_shift(self) -> Shift:
        return DISTILLED_SHIFT if self.is_distilled else super().sampler_shift

    @property
    def trained_density(self) -> TimestepDensity:
        """Return logit-normal, as musubi-tuner trains it, with the sampler's shift: the base's own is not published."""
        return TimestepDensity("logit_normal", shift=self.sampler_shift)

    @property
    def target_groups(self) -> Mapping[str, tuple[str, ...]]:
        return TARGET_GROUPS

    def run_text_encoders(self, prompts: list[str]) -> Conditioning:
        """Return some layers' hidden states behind the template's beginning, each prompt's own number, [B, N, L, D]."""
        (text_encoder,) = self.loaded_encoders()
        rows = []
        for ids_1N in self.token_ids(prompts, text_encoder.device):
            states = text_encoder(
                input_ids=ids_1N, attention_mask=torch.ones_like(ids_1N), output_hidden_states=True, use_cache=False
            ).hidden_states
            rows.append(torch.stack([states[layer][0, qwen.NUM_DROPPED :] for layer in self.text_layers], dim=1))
        return Conditioning.from_rows(prompt=rows)

    def cache_blank_prompts(self, prompts: list[str]) -> None:
        config = self.transformer.config
        self.prompt_cache = self.blank_prompts(prompts, config.num_text_layers, config.text_hidden_dim)

    def original_modules(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for name, module in self.transformer.named_modules():
            if isinstance(module, nn.Linear) or hasattr(module, "base_layer"):
                original = name
                for here, authors in ORIGINAL_NAMES:
                    original = original.replace(here, authors)
                found[original] = (name,)
        return found

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict noise - x0. Tokens have three coordinates: a prompt's are at the origin, an image's at its place."""
        height, width = noisy_BCHW.shape[-2:]
        prompt_BNLD = conditioning["prompt"]
        rows, columns = torch.arange(height // PATCH), torch.arange(width // PATCH)
        image_ids = torch.cartesian_prod(torch.arange(1), rows, columns)
        ids = torch.cat([image_ids.new_zeros(prompt_BNLD.shape[1], 3), image_ids])
        found_BNC = self.transformer(
            hidden_states=pack(noisy_BCHW),
            encoder_hidden_states=prompt_BNLD,
            encoder_attention_mask=conditioning.mask("prompt") if conditioning.lengths else None,
            timestep=t_B / 1000,
            position_ids=ids.to(noisy_BCHW.device),
            return_dict=False,
        )[0]
        return unpack(found_BNC, height, width)

    def pipeline_arguments(self, noise_BCHW: Tensor, guidance_scale: float) -> dict[str, Any]:
        return {"latents": pack(noise_BCHW), "guidance_scale": guidance_scale}

    def pipeline(self) -> Krea2Pipeline:
        (text_encoder,) = self.loaded_encoders()
        return Krea2Pipeline(
            scheduler=self.scheduler(),
            vae=self.vae,
            text_encoder=text_encoder,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
            text_encoder_select_layers=self.text_layers,
            is_distilled=self.is_distilled,
        )


def load(folder: Path, source: ModelSource) -> Krea2:
    """Load a pipeline folder, one part at a time; the text encoder only when a prompt is to be encoded.

    Raises ModelError for missing, incomplete or non-finite weights. Warns of a distilled model.
    """
    if source.vae is not None:
        raise UserError(f"model.vae={source.vae}: this family has a VAE of its own kind; set it to null")
    index = read_json(folder / "model_index.json")
    if is_distilled := bool(index.get("is_distilled", False)):
        warn_of_distilled(source.base, "krea/Krea-2-Raw")
    text_layers = tuple(index.get("text_encoder_select_layers") or TEXT_LAYERS)
    text_encoder = lazy_text_encoder(Qwen3VLModel, folder, source)
    config = read_json(folder / "text_encoder" / "config.json")
    config = config.get("text_config", config)
    transformer = load_transformer(Krea2Transformer2DModel, folder, source)
    check_text(folder, transformer.config, config, text_layers)
    tokenizer = load_tokenizer(folder, "tokenizer", PreTrainedTokenizerFast)
    qwen.check_tokenizer(tokenizer, config.get("vocab_size", 0))
    return Krea2(
        vae=load_part(AutoencoderKLQwenImage, folder, "vae", source, torch.float32),
        transformer=transformer,
        scheduler_config=load_scheduler_config(folder),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_layers=text_layers,
        is_distilled=is_distilled,
    )


def check_text(folder: Path, transformer: Any, text_encoder: dict[str, Any], text_layers: tuple[int, ...]) -> None:
    """Raise ModelError where a text encoder's config does not give what a transformer's config wants to read."""
    if (width := transformer.text_hidden_dim) != text_encoder.get("hidden_size"):
        raise ModelError(
            f"{folder}: transformer/config.json: text_hidden_dim is {width}, text_encoder/config.json: hidden_size is "
            f"{text_encoder.get('hidden_size')}: they must agree"
        )
    if (num_read := transformer.num_text_layers) != len(text_layers):
        raise ModelError(
            f"{folder}: transformer/config.json: num_text_layers is {num_read}, model_index.json: "
            f"text_encoder_select_layers names {len(text_layers)}: they must agree"
        )
    if (num_layers := text_encoder.get("num_hidden_layers", 0)) < max(text_layers):
        raise ModelError(
            f"{folder}: text_encoder/config.json: num_hidden_layers is {num_layers}, of which layer {max(text_layers)} "
            "is read"
        )
