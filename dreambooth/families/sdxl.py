"""Stable Diffusion XL: two CLIP text encoders, and a UNet that reads the size and the crop of each image.

Podell et al. 2023, arXiv 2307.01952. Its VAE overflows in float16: here a VAE is always float32.
Shapes: B batch, C channels, H/W latent height and width, N tokens, D width of both text encoders together, P pooled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dreambooth.errors import ModelError
from dreambooth.families import clip
from dreambooth.families.clip_weights import ClipWeights
from dreambooth.families.conditioning import Conditioning
from dreambooth.families.loading import (
    check_finite,
    load_part,
    load_scheduler_config,
    load_tokenizer,
    scheduler_config_of,
)
from dreambooth.families.single_file import Header, load_single_file_pipeline
from dreambooth.families.source import ModelSource
from dreambooth.families.unet import UNetFamily, check_text_width, optimize_for_device
from dreambooth.families.vae import load_vae


@dataclass
class StableDiffusionXL(UNetFamily, clip.ClipTokens, ClipWeights):
    """The networks of a Stable Diffusion XL base behind the `Family` protocol."""

    architecture: ClassVar[str] = "stable-diffusion-xl-v1-base"

    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    zero_empty_prompts: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for tokenizer, text_encoder in self._text_side:
            clip.check_tokenizer(len(tokenizer), text_encoder.config.vocab_size)
            clip.check_length(tokenizer, text_encoder)
            clip.pool_at_end_token(tokenizer, text_encoder)
        check_text_width(self.unet, sum(encoder.config.hidden_size for _, encoder in self._text_side))
        check_finite(unet=self.unet, text_encoder=self.text_encoder, text_encoder_2=self.text_encoder_2, vae=self.vae)

    @property
    def _text_side(self) -> list[tuple[CLIPTokenizer, CLIPTextModel]]:
        return [(self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)]

    @property
    def text_encoders(self) -> list[nn.Module]:
        return [self.text_encoder, self.text_encoder_2]

    def run_text_encoders(self, prompts: list[str]) -> Conditioning:
        """Return both encoders' last hidden states but one, [B, N, D], and the second's pooled state, [B, P].

        Those of empty prompts are zeros where the base was trained so (`force_zeros_for_empty_prompt`).
        """
        outputs = [
            encoder(clip.tokenize(tokenizer, prompts).to(encoder.device, non_blocking=True), output_hidden_states=True)
            for tokenizer, encoder in self._text_side
        ]
        hidden_BND = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled_BP = outputs[1].text_embeds
        if self.zero_empty_prompts and "" in prompts:
            is_full_B1 = torch.tensor([[prompt != ""] for prompt in prompts], device=hidden_BND.device)
            hidden_BND, pooled_BP = hidden_BND * is_full_B1[..., None], pooled_BP * is_full_B1
        return Conditioning({"encoder_hidden_states": hidden_BND, "text_embeds": pooled_BP})

    def size_conditioning(self, size_crop_B6: Tensor) -> Conditioning:
        """Return original size, crop and target size as they are."""
        return Conditioning({"time_ids": size_crop_B6})

    def text_inputs(self, noisy_BCHW: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Return texts, pooled text and sizes; without `time_ids` an image counts as a whole one of its own size."""
        if "time_ids" in conditioning:
            time_ids_B6 = conditioning["time_ids"]
        else:
            height, width = (side * self.vae_scale_factor for side in noisy_BCHW.shape[-2:])
            time_ids_B6 = torch.tensor([[height, width, 0, 0, height, width]] * len(noisy_BCHW))
        added = {"text_embeds": conditioning["text_embeds"], "time_ids": time_ids_B6.to(noisy_BCHW)}
        inputs = super().text_inputs(noisy_BCHW, conditioning)
        return {**inputs, "added_cond_kwargs": {**added, **inputs.get("added_cond_kwargs", {})}}

    def add_word(self, word: str, num_vectors: int, start_words: Sequence[str]) -> list[list[int]]:
        return [clip.add_word(tokenizer, part, word, num_vectors, start_words) for tokenizer, part in self._text_side]

    def pipeline(self) -> StableDiffusionXLPipeline:
        """Return the networks as a pipeline without a watermark."""
        return StableDiffusionXLPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            unet=self.unet,
            scheduler=self.scheduler(),
            force_zeros_for_empty_prompt=self.zero_empty_prompts,
            add_watermarker=False,
        )


def load(folder: Path, source: ModelSource) -> StableDiffusionXL:
    """Load a pipeline folder, one part at a time.

    Raises ModelError for missing, incomplete or non-finite weights.
    """
    if not (folder / "text_encoder").is_dir():
        raise ModelError(f"{folder}: has no text_encoder: an SDXL refiner? Use the base model")
    unet = load_part(UNet2DConditionModel, folder, "unet", source)
    optimize_for_device(unet)
    return StableDiffusionXL(
        vae=load_vae(folder, source, "sdxl"),
        unet=unet,
        scheduler_config=load_scheduler_config(folder),
        text_encoder=load_part(CLIPTextModel, folder, "text_encoder", source),
        text_encoder_2=load_part(CLIPTextModelWithProjection, folder, "text_encoder_2", source),
        tokenizer=load_tokenizer(folder, "tokenizer"),
        tokenizer_2=load_tokenizer(folder, "tokenizer_2"),
        zero_empty_prompts=StableDiffusionXLPipeline.load_config(folder).get("force_zeros_for_empty_prompt", True),
    )


def load_single_file(header: Header, source: ModelSource) -> StableDiffusionXL:
    """Load an original-layout `.safetensors`. Raises ModelError."""
    pipeline = load_single_file_pipeline(StableDiffusionXLPipeline, header, source, add_watermarker=False)
    optimize_for_device(pipeline.unet)
    return StableDiffusionXL(
        vae=pipeline.vae,
        unet=pipeline.unet,
        scheduler_config=scheduler_config_of(pipeline.scheduler),
        text_encoder=pipeline.text_encoder,
        text_encoder_2=pipeline.text_encoder_2,
        tokenizer=pipeline.tokenizer,
        tokenizer_2=pipeline.tokenizer_2,
        zero_empty_prompts=pipeline.config.force_zeros_for_empty_prompt,
    )
