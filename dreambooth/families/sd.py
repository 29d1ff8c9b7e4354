"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, a VAE.

Shapes: B batch, C channels, H/W latent height and width, N tokens, D width of the text encoder.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth.families import clip
from dreambooth.families.builtin_configs import PREDICTS_V, SIZE_2_V
from dreambooth.families.clip_weights import ClipWeights
from dreambooth.families.conditioning import Conditioning
from dreambooth.families.loading import (
    check_finite,
    load_part,
    load_scheduler_config,
    load_tokenizer,
    scheduler_config_of,
)
from dreambooth.families.single_file import Header, load_single_file_pipeline, measured_prediction
from dreambooth.families.source import ModelSource
from dreambooth.families.unet import UNetFamily, check_text_width, optimize_for_device
from dreambooth.families.vae import load_vae

logger = logging.getLogger(__name__)


@dataclass
class StableDiffusion(UNetFamily, clip.ClipTokens, ClipWeights):
    """The networks of a Stable Diffusion model behind the `Family` protocol."""

    layouts: ClassVar[tuple[str, ...]] = (*UNetFamily.layouts, "onnx", "openvino")

    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    def __post_init__(self) -> None:
        super().__post_init__()
        clip.check_tokenizer(len(self.tokenizer), self.text_encoder.config.vocab_size)
        clip.check_length(self.tokenizer, self.text_encoder)
        check_text_width(self.unet, self.text_encoder.config.hidden_size)
        check_finite(unet=self.unet, text_encoder=self.text_encoder, vae=self.vae)

    @property
    def text_encoders(self) -> list[nn.Module]:
        return [self.text_encoder]

    def run_text_encoders(self, prompts: list[str]) -> Conditioning:
        """Return the text encoder's hidden states, [B, N, D], of prompts padded to the tokenizer's length."""
        ids_BN = clip.tokenize(self.tokenizer, prompts).to(self.text_encoder.device, non_blocking=True)
        return Conditioning({"encoder_hidden_states": self.text_encoder(ids_BN).last_hidden_state})

    def size_conditioning(self, size_crop_B6: Tensor) -> Conditioning:
        return Conditioning({})

    @property
    def architecture(self) -> str:
        """Return the name of 1.x or 2.x: 2.x has an OpenCLIP encoder with plain GELU, and for 768 pixels predicts v."""
        if self.text_encoder.config.hidden_act == "quick_gelu":
            return "stable-diffusion-v1"
        predicts_v = self.schedule.prediction == "v_prediction"
        return "stable-diffusion-v2-768-v" if predicts_v else "stable-diffusion-v2-512"

    def add_word(self, word: str, num_vectors: int, start_words: Sequence[str]) -> list[list[int]]:
        return [clip.add_word(self.tokenizer, self.text_encoder, word, num_vectors, start_words)]

    def pipeline(self) -> StableDiffusionPipeline:
        """Return the networks as a pipeline without a safety checker, which the base's folder may or may not hold."""
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def load(folder: Path, source: ModelSource) -> StableDiffusion:
    """Load a pipeline folder, one part at a time.

    Raises ModelError for missing, incomplete or non-finite weights.
    """
    unet = load_part(UNet2DConditionModel, folder, "unet", source)
    optimize_for_device(unet)
    return StableDiffusion(
        vae=load_vae(folder, source, "sd1"),
        unet=unet,
        scheduler_config=load_scheduler_config(folder),
        text_encoder=load_part(CLIPTextModel, folder, "text_encoder", source),
        tokenizer=load_tokenizer(folder, "tokenizer"),
    )


def load_single_file(header: Header, source: ModelSource) -> StableDiffusion:
    """Load an original-layout `.safetensors`. Raises ModelError."""
    pipeline = load_single_file_pipeline(StableDiffusionPipeline, header, source, safety_checker=None)
    optimize_for_device(pipeline.unet)
    family = StableDiffusion(
        vae=pipeline.vae,
        unet=pipeline.unet,
        scheduler_config=scheduler_config_of(pipeline.scheduler),
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
    )
    if source.config is None and header.config == "sd2" and header.prediction is None:
        detect_prediction_type(family, header.path)
    return family


def detect_prediction_type(family: StableDiffusion, path: Path) -> None:
    """Detect by its output what the network predicts: 2.x models of epsilon and of v share names and shapes."""
    prediction = measured_prediction(family)
    logger.info(
        f"note: {path} does not say what it predicts; by its answer to pure noise it is {prediction} "
        "(else name it: model.config, --config: sd2 or sd2-v)"
    )
    if prediction == "v_prediction":
        family.set_scheduler(PREDICTS_V)
        family.unet.register_to_config(sample_size=SIZE_2_V)
