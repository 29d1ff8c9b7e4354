"""FLUX.2 Klein: a transformer of double and single blocks, a Qwen3 text encoder, a VAE of 32 channels.

Black Forest Labs 2026; only the code of diffusers' pipeline tells how it is sampled. Latents are patches of 2 x 2,
standardised by the VAE's own statistics: 128 channels, 16 pixels a position.
Shapes: B batch, C channels, H/W latent height and width, N tokens, D width of the conditioning.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from dreambooth.errors import ModelError, UserError
from dreambooth.families import flux_names, qwen
from dreambooth.families.conditioning import Conditioning
from dreambooth.families.flow import FlowProcess, OneTransformer, warn_of_distilled
from dreambooth.families.frozen_text import FrozenText, lazy_text_encoder
from dreambooth.families.guidance import FROM_UNCONDITIONAL, Guidance
from dreambooth.families.inspection import read_json
from dreambooth.families.loading import check_finite, load_part, load_scheduler_config, load_tokenizer
from dreambooth.families.source import ModelSource
from dreambooth.families.transformer_file import load_transformer
from dreambooth.timesteps import Shift, Size, TimestepDensity

TEXT_LAYERS = (9, 18, 27)  # whose hidden states are joined, of 36
USUAL_STEPS = 50  # the pipeline's default; the sampler's shift depends on the number of steps
DOUBLE, SINGLE = "transformer_blocks.*", "single_transformer_blocks.*"
TARGET_GROUPS = {
    "attention": (
        *(f"{DOUBLE}.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"{DOUBLE}.attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
        f"{SINGLE}.attn.to_qkv_mlp_proj",  # one matrix for attention and feed-forward
        f"{SINGLE}.attn.to_out",
    ),
    "feed-forward": tuple(f"{DOUBLE}.{part}.linear_{end}" for part in ("ff", "ff_context") for end in ("in", "out")),
}


@dataclass(frozen=True)
class EmpiricalShift:
    """Compute the sampler's shift from the number of steps and of tokens: diffusers' `compute_empirical_mu`.

    Its logarithm mu is linear in the tokens, by two lines fitted to 10 and to 200 steps, and linear in the steps
    between them; beyond 4300 tokens it is that of 200 steps.
    """

    num_steps: int = USUAL_STEPS

    def __call__(self, size: Size) -> float:
        num_tokens = size[0] * size[1]
        of_200 = 0.00016927 * num_tokens + 0.45666666
        if num_tokens > 4300:
            return math.exp(of_200)
        of_10 = 8.73809524e-05 * num_tokens + 1.89833333
        return math.exp(of_200 + (of_200 - of_10) / 190 * (self.num_steps - 200))


@dataclass
class Flux2Codec:
    """An `AutoencoderKLFlux2` behind the `LatentCodec` protocol."""

    vae: AutoencoderKLFlux2

    @property
    def vae_scale_factor(self) -> int:
        """Return 16 pixels a latent along a side: the VAE's 8, and patches of 2."""
        return 2 ** len(self.vae.config.block_out_channels)

    @property
    def size_step(self) -> int:
        return self.vae_scale_factor

    @property
    def _mean_std(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the patches' channels, [1, C, 1, 1]."""
        statistics = self.vae.bn
        mean_1C11 = statistics.running_mean.view(1, -1, 1, 1)
        return mean_1C11, (statistics.running_var.view(1, -1, 1, 1) + self.vae.config.batch_norm_eps).sqrt()

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents as the denoiser expects them."""
        moments = self.vae.encode(pixels_BCHW.to(self.vae.device, self.vae.dtype)).latent_dist
        mean_1C11, std_1C11 = self._mean_std
        return (F.pixel_unshuffle(moments.mean, 2) - mean_1C11) / std_1C11, F.pixel_unshuffle(moments.std, 2) / std_1C11

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Invert `encode_images`, as far as the VAE goes."""
        mean_1C11, std_1C11 = self._mean_std
        whole_BCHW = latents_BCHW.to(self.vae.device, self.vae.dtype) * std_1C11 + mean_1C11
        return self.vae.decode(F.pixel_shuffle(whole_BCHW, 2)).sample

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.vae_scale_factor
        for side in (height, width):
            if side % factor or side <= 0:
                raise UserError(f"an image side of {side} pixels does not fit this model; use a multiple of {factor}")
        return 4 * self.vae.config.latent_channels, height // factor, width // factor


@dataclass
class Flux2Klein(OneTransformer, FlowProcess, Flux2Codec, FrozenText, qwen.QwenTokens):
    """The networks of a FLUX.2 Klein base behind the `Family` protocol."""

    # Not published: peers train where the sampler steps.
    TRAINED_WITH: ClassVar[TimestepDensity] = TimestepDensity(shift=EmpiricalShift())
    THINKING: ClassVar[bool] = False
    guidance: ClassVar[Guidance] = FROM_UNCONDITIONAL
    architecture: ClassVar[str] = "flux-2-klein"
    layouts: ClassVar[tuple[str, ...]] = ("comfyui",)
    comfyui_prefix: ClassVar[str] = "diffusion_model."

    transformer: Flux2Transformer2DModel
    tokenizer: PreTrainedTokenizerFast
    is_distilled: bool = False

    def __post_init__(self) -> None:
        if 4 * self.vae.config.latent_channels != self.transformer.config.in_channels:
            raise ModelError(
                f"vae/config.json: latent_channels is {self.vae.config.latent_channels}, transformer/config.json: "
                f"in_channels is {self.transformer.config.in_channels}, which must be four times as many"
            )
        self.vae.requires_grad_(False).eval()
        self.set_scheduler({})
        check_finite(transformer=self.transformer, vae=self.vae)

    @property
    def sampler_shift(self) -> Shift:
        return EmpiricalShift()

    def shift_for(self, num_steps: int) -> Shift:
        return EmpiricalShift(num_steps)

    @property
    def resolution(self) -> int:
        return self.vae.config.sample_size

    @property
    def size_multiple(self) -> int:
        return self.size_step

    @property
    def target_groups(self) -> Mapping[str, tuple[str, ...]]:
        return TARGET_GROUPS

    def run_text_encoders(self, prompts: list[str]) -> Conditioning:
        """Return three layers' hidden states, joined, of prompts padded to 512 tokens, [B, N, D].

        The transformer attends to the padding too, as it was trained.
        """
        (text_encoder,) = self.loaded_encoders()
        texts = [self.with_template(self.truncate(prompt)[0]) for prompt in prompts]
        read = self.tokenizer(
            texts, add_special_tokens=False, padding="max_length", max_length=self.max_tokens, return_tensors="pt"
        ).to(text_encoder.device)
        states = text_encoder.model(  # without the head, whose 150,000 numbers a token nobody reads
            input_ids=read.input_ids, attention_mask=read.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        return Conditioning({"prompt": torch.cat([states[layer] for layer in TEXT_LAYERS], dim=-1)})

    def cache_blank_prompts(self, prompts: list[str]) -> None:
        blank = torch.zeros(1, self.max_tokens, self.transformer.config.joint_attention_dim)
        self.prompt_cache = {prompt: Conditioning({"prompt": blank}) for prompt in prompts}

    def original_modules(self) -> dict[str, tuple[str, ...]]:
        single = ("attn.to_qkv_mlp_proj",), "attn.to_out"
        return flux_names.block_modules(self.transformer, ("linear_in", "linear_out"), *single)

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict noise - x0. Tokens are positions, row by row; each has four coordinates, a prompt's its number."""
        height, width = noisy_BCHW.shape[-2:]
        prompt_BND = conditioning["prompt"]
        one, rows, columns = torch.arange(1), torch.arange(height), torch.arange(width)
        image_ids = torch.cartesian_prod(one, rows, columns, one).to(noisy_BCHW.device)
        text_ids = torch.cartesian_prod(one, one, one, torch.arange(prompt_BND.shape[1])).to(noisy_BCHW.device)
        found_BNC = self.transformer(
            hidden_states=noisy_BCHW.flatten(2).transpose(1, 2),
            encoder_hidden_states=prompt_BND,
            timestep=t_B / 1000,
            img_ids=image_ids,
            txt_ids=text_ids,
            guidance=None,
            return_dict=False,
        )[0]
        return found_BNC.transpose(1, 2).unflatten(2, (height, width))

    def pipeline(self) -> Flux2KleinPipeline:
        (text_encoder,) = self.loaded_encoders()
        return Flux2KleinPipeline(
            scheduler=self.scheduler(),
            vae=self.vae,
            text_encoder=text_encoder,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
            is_distilled=self.is_distilled,
        )


def load(folder: Path, source: ModelSource) -> Flux2Klein:
    """Load a pipeline folder, one part at a time; the text encoder only when a prompt is to be encoded.

    Raises ModelError for missing, incomplete or non-finite weights. Warns of a distilled model.
    """
    is_distilled = bool(read_json(folder / "model_index.json").get("is_distilled", False))
    if is_distilled:
        warn_of_distilled(source.base, "black-forest-labs/FLUX.2-klein-base-4B")
    if source.vae is not None:
        raise UserError(f"model.vae={source.vae}: this family has a VAE of its own kind; set it to null")
    text_encoder = lazy_text_encoder(Qwen3ForCausalLM, folder, source)
    config = read_json(folder / "text_encoder" / "config.json")
    transformer = load_transformer(Flux2Transformer2DModel, folder, source)
    joined = len(TEXT_LAYERS) * config.get("hidden_size", 0)
    if (width := transformer.config.joint_attention_dim) != joined:
        raise ModelError(
            f"{folder}: transformer/config.json: joint_attention_dim is {width}, text_encoder/config.json: hidden_size "
            f"is {config.get('hidden_size')}: the first must be {len(TEXT_LAYERS)} times the second"
        )
    if (num_layers := config.get("num_hidden_layers", 0)) < TEXT_LAYERS[-1]:
        raise ModelError(
            f"{folder}: text_encoder/config.json: num_hidden_layers is {num_layers}, of which layer {TEXT_LAYERS[-1]} "
            "is read"
        )
    tokenizer = load_tokenizer(folder, "tokenizer", PreTrainedTokenizerFast)
    qwen.check_tokenizer(tokenizer, config.get("vocab_size", 0))
    return Flux2Klein(
        vae=load_part(AutoencoderKLFlux2, folder, "vae", source, torch.float32),
        transformer=transformer,
        scheduler_config=load_scheduler_config(folder),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        is_distilled=is_distilled,
    )
