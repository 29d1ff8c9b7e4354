"""Z-Image: one stream of image and text tokens through a transformer, a Qwen3 text encoder, the VAE of FLUX.1.

Z-Image Team 2025, arXiv 2511.22699. The network counts time from noise to image, and predicts the way back: time and
output are turned round here.
Shapes: B batch, C channels, H/W latent height and width, N tokens, D width of the text encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import ZImageControlNetModel, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Model

from dreambooth.errors import ModelError
from dreambooth.families import qwen
from dreambooth.families.autoencoder import KLCodec
from dreambooth.families.conditioning import Conditioning, DenoiserInputs
from dreambooth.families.control import MAP, block_by_block, fields_of, residuals_of
from dreambooth.families.flow import FlowProcess, OneTransformer, warn_of_distilled
from dreambooth.families.frozen_text import FrozenText, lazy_text_encoder
from dreambooth.families.guidance import BEYOND_CONDITIONAL, Guidance
from dreambooth.families.inspection import read_json
from dreambooth.families.loading import check_finite, load_scheduler_config, load_tokenizer
from dreambooth.families.offload import bring
from dreambooth.families.source import ModelSource
from dreambooth.families.transformer_file import load_transformer
from dreambooth.families.vae import load_vae
from dreambooth.timesteps import ShiftBySize, TimestepDensity

LAYERS = "layers"  # what ControlNets add to
ATTENTION = tuple(f"attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))
FEED_FORWARD = tuple(f"feed_forward.{name}" for name in ("w1", "w2", "w3"))
# Ends of the names of modules. Peers leave out the refiners, which see image or text alone. Those of the text are a
# group: the text encoder is frozen, so only they can give an identifier a meaning of its own.
TARGET_GROUPS = {
    "attention": tuple(f"layers.*.{name}" for name in ATTENTION),
    "feed-forward": tuple(f"layers.*.{name}" for name in FEED_FORWARD),
    "modulation": ("layers.*.adaLN_modulation.0",),
    "text": ("cap_embedder.1", *(f"context_refiner.*.{name}" for name in (*ATTENTION, *FEED_FORWARD))),
}


@dataclass
class ZImage(OneTransformer, FlowProcess, KLCodec, FrozenText, qwen.QwenTokens):
    """The networks of a Z-Image base behind the `Family` protocol."""

    # Section 4.3 of the report: logit-normal as in Stable Diffusion 3, shifted by size as in FLUX.1.
    TRAINED_WITH: ClassVar[TimestepDensity] = TimestepDensity("logit_normal", shift=ShiftBySize())
    guidance: ClassVar[Guidance] = BEYOND_CONDITIONAL
    architecture: ClassVar[str] = "z-image"
    layouts: ClassVar[tuple[str, ...]] = ("kohya", "comfyui")
    control_class: ClassVar[type[Any]] = ZImageControlNetModel
    controls_read_prompts: ClassVar[bool] = False

    transformer: ZImageTransformer2DModel
    tokenizer: PreTrainedTokenizerFast

    def __post_init__(self) -> None:
        if self.vae.config.latent_channels != self.transformer.config.in_channels:
            raise ModelError(
                f"vae/config.json: latent_channels is {self.vae.config.latent_channels}, transformer/config.json: "
                f"in_channels is {self.transformer.config.in_channels}: they must agree"
            )
        self.vae.requires_grad_(False).eval()
        rope = self.transformer.rope_embedder  # else the first call makes these tables, in a plan ones without numbers
        rope.freqs_cis = rope.precompute_freqs_cis(rope.axes_dims, rope.axes_lens, rope.theta)
        self.set_scheduler({})
        check_finite(transformer=self.transformer, vae=self.vae)

    @property
    def resolution(self) -> int:
        return self.vae.config.sample_size

    @property
    def size_step(self) -> int:
        """Return 16 pixels: the VAE's 8, and 2 latents a token."""
        return self.PATCH * self.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        return self.size_step

    @property
    def target_groups(self) -> Mapping[str, tuple[str, ...]]:
        return TARGET_GROUPS

    def run_text_encoders(self, prompts: list[str]) -> Conditioning:
        """Return the last hidden states but one, each prompt's own number of tokens, [B, N, D]."""
        (text_encoder,) = self.loaded_encoders()
        ids = self.token_ids(prompts, text_encoder.device)
        rows = [text_encoder(ids_1N, output_hidden_states=True).hidden_states[-2][0] for ids_1N in ids]
        return Conditioning.from_rows(prompt=rows)

    def cache_blank_prompts(self, prompts: list[str]) -> None:
        self.prompt_cache = self.blank_prompts(prompts, self.transformer.config.cap_feat_dim)

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict noise - x0."""
        added = residuals_of(conditioning, {LAYERS: block_by_block})
        inputs = DenoiserInputs(noisy_BCHW, t_B, conditioning)
        found = self.transformer(*_arguments(inputs), controlnet_block_samples=added, return_dict=False)[0]
        return -torch.stack(found).squeeze(2)

    def control_condition(self, network: Any, kind: str, map_1CHW: Tensor) -> Conditioning:
        """Return the map's latents; later ControlNets read channels for a mask behind them, which are zero."""
        latents_1CHW = self.encode_images(map_1CHW)[0]
        num_missing = network.config.control_in_dim - latents_1CHW.shape[1]
        return Conditioning({MAP: F.pad(latents_1CHW, (0, 0, 0, 0, 0, num_missing))})

    def control(self, network: Any, condition: Conditioning, weight: float, inputs: DenoiserInputs) -> Conditioning:
        """Return what a ControlNet adds. It has this transformer's embedders and refiners in common with it."""
        bring(self.transformer)
        ZImageControlNetModel.from_transformer(network, self.transformer)
        maps = list(condition[MAP].unsqueeze(2).unbind())
        found = network(*_arguments(inputs), maps, conditioning_scale=weight)
        return Conditioning(fields_of(LAYERS, found))

    def pipeline(self) -> ZImagePipeline:
        (text_encoder,) = self.loaded_encoders()
        return ZImagePipeline(
            scheduler=self.scheduler(),
            vae=self.vae,
            text_encoder=text_encoder,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
        )


def _arguments(inputs: DenoiserInputs) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Return images, time and prompts: each image a tensor of its own, [C, 1, H, W], as one frame of a film."""
    images = list(inputs.noisy_BCHW.unsqueeze(2).unbind())
    return images, (1000 - inputs.t_B) / 1000, inputs.conditioning.rows("prompt")


def load(folder: Path, source: ModelSource) -> ZImage:
    """Load a pipeline folder, one part at a time; the text encoder only when a prompt is to be encoded.

    Raises ModelError for missing, incomplete or non-finite weights. Warns of a distilled model.
    """
    if "turbo" in f"{source.base}/{folder.name}".lower():
        warn_of_distilled(source.base, "Tongyi-MAI/Z-Image")
    text_encoder = lazy_text_encoder(Qwen3Model, folder, source)
    config = read_json(folder / "text_encoder" / "config.json")
    transformer = load_transformer(ZImageTransformer2DModel, folder, source)
    if (width := transformer.config.cap_feat_dim) != config.get("hidden_size"):
        raise ModelError(
            f"{folder}: transformer/config.json: cap_feat_dim is {width}, text_encoder/config.json: hidden_size is "
            f"{config.get('hidden_size')}: they must agree"
        )
    tokenizer = load_tokenizer(folder, "tokenizer", PreTrainedTokenizerFast)
    qwen.check_tokenizer(tokenizer, config.get("vocab_size", 0))
    return ZImage(
        vae=load_vae(folder, source, "z-image"),
        transformer=transformer,
        scheduler_config=load_scheduler_config(folder),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )
