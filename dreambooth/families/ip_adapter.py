"""An IP-Adapter over a UNet: cross-attention that reads an image beside the text, by diffusers' own layers.

Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter" (arXiv 2308.06721).
Shapes: B batch, N tokens of an image, D width of the image encoder.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from dreambooth.errors import ModelError, first_line
from dreambooth.families.inspection import LOADING_ERRORS

Weights = dict[str, dict[str, Tensor]]  # parts image_proj and ip_adapter, each by name
PARTS = ("image_proj", "ip_adapter")
ENCODER = "image_encoder"  # the folder beside an adapter's file


@dataclass(frozen=True)
class IPAdapter:
    """Hold an adapter's weights, and the image encoder that it was trained with."""

    weights: Weights
    encoder: CLIPVisionModelWithProjection

    @contextlib.contextmanager
    def applied(self, unet: Any, weight: float) -> Iterator[None]:
        """Let a UNet read an image beside the text, scaled by `weight`; afterwards it is as it was."""
        before, hidden = dict(unet.attn_processors), unet.config.encoder_hid_dim_type
        try:
            unet._load_ip_adapter_weights([self.weights], low_cpu_mem_usage=False)
            for processor in unet.attn_processors.values():
                if hasattr(processor, "scale"):
                    processor.scale = [weight]
            yield
        finally:
            unet.encoder_hid_proj, unet.config.encoder_hid_dim_type = None, hidden
            unet.set_attn_processor(before)

    def embed(self, unet: Any, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return what the UNet reads of an image, and of none, for guidance: [1, 1, D] or [1, 1, N, D] each.

        The UNet's adapter is applied meanwhile: of the plain kind the projected embedding, with zeros for none; of the
        others the encoder's last hidden states but one, with those of a black image for none.
        """
        side = self.encoder.config.image_size
        pixels = CLIPImageProcessor(size=side, crop_size=side)(image, return_tensors="pt").pixel_values
        if isinstance(unet.encoder_hid_proj.image_projection_layers[0], ImageProjection):
            embedded = self.encoder(pixels).image_embeds
            return embedded[None], torch.zeros_like(embedded)[None]
        states = [self.encoder(each, output_hidden_states=True) for each in (pixels, torch.zeros_like(pixels))]
        return states[0].hidden_states[-2][None], states[1].hidden_states[-2][None]


def load_ip_adapter(file: str) -> IPAdapter:
    """Load an adapter's `.safetensors` and the image encoder in the folder beside it. Raises ModelError."""
    path = Path(file).expanduser()
    weights: Weights = {part: {} for part in PARTS}
    try:
        with safe_open(path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                part, _, rest = name.partition(".")
                if part in weights:
                    weights[part][rest] = opened.get_tensor(name)
        encoder = CLIPVisionModelWithProjection.from_pretrained(path.parent / ENCODER, use_safetensors=True)
    except LOADING_ERRORS as error:
        raise ModelError(f"--ip-adapter {path}: cannot be loaded: {first_line(error)}") from error
    return IPAdapter(weights, encoder.eval())
