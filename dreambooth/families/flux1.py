"""FLUX.1: a transformer of double and single blocks, CLIP's pooled text, T5, and guidance as an input.

Black Forest Labs 2024, github.com/black-forest-labs/flux. Guidance is distilled into FLUX.1 dev: the network reads the
scale, and an image takes one prediction a step. It is trained with 1, at which it is the model before distillation.
Shapes: B batch, C channels, H/W latent height and width, N tokens, D width of T5, P of CLIP.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FluxControlNetModel, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from dreambooth.controlnets import UNION_MODES
from dreambooth.errors import ModelError
from dreambooth.families import clip, clip_t5, flux_names
from dreambooth.families.autoencoder import KLCodec
from dreambooth.families.conditioning import Conditioning, DenoiserInputs
from dreambooth.families.control import MAP, fields_of, in_runs, in_turn, residuals_of
from dreambooth.families.flow import FlowProcess, OneTransformer, warn_of_distilled
from dreambooth.families.frozen_text import FrozenText, LazyTextEncoder, lazy_text_encoder
from dreambooth.families.guidance import DISTILLED, FROM_UNCONDITIONAL, Guidance
from dreambooth.families.loading import check_finite, load_scheduler_config, load_tokenizer
from dreambooth.families.patches import PATCH, pack, unpack
from dreambooth.families.source import ModelSource
from dreambooth.families.transformer_file import load_transformer
from dreambooth.families.vae import load_vae
from dreambooth.timesteps import TimestepDensity

TRAINING_GUIDANCE = 1.0  # as ai-toolkit and sd-scripts train FLUX.1 dev
CONTROL_GUIDANCE = 3.5  # for a ControlNet that reads it beside a base that does not: the pipeline's default
MODE = "mode"  # which kind of map a union of ControlNets is given
IN_DOUBLE, IN_TURN, IN_SINGLE = "double", "turn", "single"  # what ControlNets add to
DOUBLE, SINGLE = "transformer_blocks.*", "single_transformer_blocks.*"
TARGET_GROUPS = {
    "attention": (
        *(f"{DOUBLE}.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"{DOUBLE}.attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
        *(f"{SINGLE}.attn.{name}" for name in ("to_q", "to_k", "to_v")),
    ),
    "feed-forward": (
        *(f"{DOUBLE}.{part}.net.{layer}" for part in ("ff", "ff_context") for layer in ("0.proj", "2")),
        f"{SINGLE}.proj_mlp",
        f"{SINGLE}.proj_out",  # of attention and feed-forward together
    ),
    "modulation": (f"{DOUBLE}.norm1.linear", f"{DOUBLE}.norm1_context.linear", f"{SINGLE}.norm.linear"),
}


@dataclass
class Flux1(OneTransformer, FlowProcess, KLCodec, FrozenText, clip_t5.ClipT5Tokens):
    """The networks of a FLUX.1 base behind the `Family` protocol."""

    MAX_TOKENS: ClassVar[int] = 512
    architecture: ClassVar[str] = "flux-1-dev"
    layouts: ClassVar[tuple[str, ...]] = ("kohya", "comfyui")
    comfyui_prefix: ClassVar[str] = "transformer."  # under the authors' names diffusers loads nothing, without an error
    control_class: ClassVar[type[Any]] = FluxControlNetModel
    controls_read_prompts: ClassVar[bool] = True

    transformer: FluxTransformer2DModel
    text_encoder_2: LazyTextEncoder
    tokenizer: CLIPTokenizer
    tokenizer_2: T5TokenizerFast

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
    def trained_density(self) -> TimestepDensity:
        """Return that of sd-scripts' `flux_shift`: logit-normal, with the sampler's shift. The base's is not known."""
        return TimestepDensity("logit_normal", shift=self.sampler_shift)

    @property
    def guidance(self) -> Guidance:
        return DISTILLED if self.transformer.config.guidance_embeds else FROM_UNCONDITIONAL

    @property
    def frozen_encoders(self) -> tuple[LazyTextEncoder, ...]:
        return (self.text_encoder, self.text_encoder_2)

    @property
    def t5_tokenizer(self) -> T5TokenizerFast:
        return self.tokenizer_2

    @property
    def resolution(self) -> int:
        return self.vae.config.sample_size

    @property
    def size_step(self) -> int:
        """Return 16 pixels: the VAE's 8, and 2 latents a token."""
        return PATCH * self.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        return self.size_step

    @property
    def target_groups(self) -> Mapping[str, tuple[str, ...]]:
        return TARGET_GROUPS

    def run_text_encoders(self, prompts: list[str]) -> Conditioning:
        """Return T5's last hidden states of prompts padded to 512 tokens, [B, N, D], and CLIP's pooled state, [B, P].

        T5 and the transformer attend to the padding too, as the base was trained.
        """
        clip_text, t5 = self.loaded_encoders()
        pooled_BP = clip_text(clip.tokenize(self.tokenizer, prompts).to(t5.device)).pooler_output
        return Conditioning({"prompt": t5(self.t5_ids(prompts).to(t5.device))[0], "pooled": pooled_BP})

    def cache_blank_prompts(self, prompts: list[str]) -> None:
        config = self.transformer.config
        blank = Conditioning(
            {
                "prompt": torch.zeros(1, self.max_tokens, config.joint_attention_dim),
                "pooled": torch.zeros(1, config.pooled_projection_dim),
            }
        )
        self.prompt_cache = dict.fromkeys(prompts, blank)

    def original_modules(self) -> dict[str, tuple[str, ...]]:
        attention = ("attn.to_q", "attn.to_k", "attn.to_v")
        found = flux_names.block_modules(
            self.transformer, ("net.0.proj", "net.2"), (*attention, "proj_mlp"), "proj_out"
        )
        for number in range(len(self.transformer.transformer_blocks)):
            for side, norm in (("img", "norm1"), ("txt", "norm1_context")):
                found[f"double_blocks.{number}.{side}_mod.lin"] = (f"transformer_blocks.{number}.{norm}.linear",)
        for number in range(len(self.transformer.single_transformer_blocks)):
            found[f"single_blocks.{number}.modulation.lin"] = (f"single_transformer_blocks.{number}.norm.linear",)
        return found

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict noise - x0. Tokens have three coordinates: a prompt's are at the origin, an image's at its place.

        conditioning: its field "guidance", [B], is what a sampler was asked for; without it the network is trained.
        """
        config = self.transformer.config
        double = {
            IN_DOUBLE: partial(in_runs, num_blocks=config.num_layers),
            IN_TURN: partial(in_turn, num_blocks=config.num_layers),
        }
        single = {IN_SINGLE: partial(in_runs, num_blocks=config.num_single_layers)}
        found_BNC = self.transformer(
            **self._arguments(DenoiserInputs(noisy_BCHW, t_B, conditioning)),
            guidance=self._guidance_input(conditioning, noisy_BCHW),
            controlnet_block_samples=residuals_of(conditioning, double),
            controlnet_single_block_samples=residuals_of(conditioning, single),
            return_dict=False,
        )[0]
        return unpack(found_BNC, *noisy_BCHW.shape[-2:])

    def _arguments(self, inputs: DenoiserInputs) -> dict[str, Any]:
        """Return the arguments that the transformer and ControlNets have in common."""
        conditioning = inputs.conditioning
        height, width = inputs.noisy_BCHW.shape[-2:]
        rows, columns = torch.arange(height // PATCH), torch.arange(width // PATCH)
        image_ids = torch.cartesian_prod(torch.arange(1), rows, columns).to(inputs.noisy_BCHW.device)
        return {
            "hidden_states": pack(inputs.noisy_BCHW),
            "encoder_hidden_states": conditioning["prompt"],
            "pooled_projections": conditioning["pooled"],
            "timestep": inputs.t_B / 1000,
            "img_ids": image_ids,
            "txt_ids": image_ids.new_zeros(conditioning["prompt"].shape[1], 3),
        }

    def _guidance_input(self, conditioning: Conditioning, noisy_BCHW: Tensor) -> Tensor | None:
        """Return the scale for each sample, [B], float32; None for a network that reads none."""
        if not self.guidance.is_input:
            return None
        if "guidance" in conditioning:
            return conditioning["guidance"].float()
        return torch.full((len(noisy_BCHW),), TRAINING_GUIDANCE, device=noisy_BCHW.device)

    def control_condition(self, network: Any, kind: str, map_1CHW: Tensor) -> Conditioning:
        """Return the map's latents as tokens, or its pixels for XLabs' ControlNets; for a union its kind's number."""
        pixels = network.input_hint_block is not None
        fields = {MAP: map_1CHW if pixels else pack(self.encode_images(map_1CHW)[0])}
        return Conditioning(fields | ({MODE: torch.tensor([[UNION_MODES[kind]]])} if network.union else {}))

    def control(self, network: Any, condition: Conditioning, weight: float, inputs: DenoiserInputs) -> Conditioning:
        """Return what a ControlNet adds. Those of XLabs add to the double blocks in turn, the others in runs."""
        guidance_B = self._guidance_input(inputs.conditioning, inputs.noisy_BCHW)
        if guidance_B is None:
            guidance_B = torch.full((len(inputs),), CONTROL_GUIDANCE, device=inputs.noisy_BCHW.device)
        double, single = network(
            **self._arguments(inputs),
            guidance=guidance_B if network.config.guidance_embeds else None,
            controlnet_cond=condition[MAP],
            controlnet_mode=condition[MODE] if network.union else None,
            conditioning_scale=weight,
            return_dict=False,
        )
        part = IN_DOUBLE if network.input_hint_block is None else IN_TURN
        return Conditioning(fields_of(part, double) | fields_of(IN_SINGLE, single))

    def pipeline_arguments(self, noise_BCHW: Tensor, guidance_scale: float) -> dict[str, Any]:
        latents = {"latents": pack(noise_BCHW)}
        if self.guidance.is_input:
            return {**latents, "guidance_scale": guidance_scale}
        return {**latents, "true_cfg_scale": guidance_scale, "negative_prompt": [""] * len(noise_BCHW)}

    def pipeline(self) -> FluxPipeline:
        text_encoder, text_encoder_2 = self.loaded_encoders()
        return FluxPipeline(
            scheduler=self.scheduler(),
            vae=self.vae,
            text_encoder=text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            transformer=self.transformer,
        )


def load(folder: Path, source: ModelSource) -> Flux1:
    """Load a pipeline folder, one part at a time; the text encoders only when a prompt is to be encoded.

    Raises ModelError for missing, incomplete or non-finite weights. Warns of a model distilled to few steps.
    """
    if "schnell" in f"{source.base}/{folder.name}".lower():
        warn_of_distilled(source.base, "black-forest-labs/FLUX.1-dev")
    text_encoder = lazy_text_encoder(CLIPTextModel, folder, source)
    text_encoder_2 = lazy_text_encoder(T5EncoderModel, folder, source, "text_encoder_2")
    transformer = load_transformer(FluxTransformer2DModel, folder, source)
    tokenizer = load_tokenizer(folder, "tokenizer")
    tokenizer_2 = load_tokenizer(folder, "tokenizer_2", T5TokenizerFast)
    clip_t5.check_text(folder, ("text_encoder",), "text_encoder_2", (tokenizer, tokenizer_2), transformer.config)
    return Flux1(
        vae=load_vae(folder, source, "flux1"),
        transformer=transformer,
        scheduler_config=load_scheduler_config(folder),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
    )
