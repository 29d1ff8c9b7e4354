"""Images and texts as unit vectors, by the encoders that the field measures with, over transformers directly.

DINO (Caron et al. 2021, arXiv 2104.14294) and DINOv2 (Oquab et al. 2023, arXiv 2304.07193) embed an image by the
class token of their last layer, CLIP (Radford et al. 2021, arXiv 2103.00020) images and texts in one space. All by
hub id or local folder. Shapes: B images or texts, D embedding dimensions.
"""

import urllib.request
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from PIL.Image import Image
from torch import Tensor

from dreambooth.data.images import center_square
from dreambooth.errors import ModelError
from dreambooth.readers.loading import load_part

BATCH_SIZE = 32  # images or texts at a time


class ImageEncoder:
    """Embed images by the class token of a vision transformer: DINO, DINOv2, ViT."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.processor = processor

    @torch.no_grad()
    def images(self, images: Sequence[Image]) -> Tensor:
        """Embed RGB images, the largest centred square of each: float32 [B, D] of length 1, on the CPU.

        The encoders' own preprocessing squashes (DINO) or crops (CLIP) what is not square; this makes them agree.
        """
        parts = []
        for first in range(0, len(images), BATCH_SIZE):
            squares = [center_square(image) for image in images[first : first + BATCH_SIZE]]
            pixels_BCHW = self.processor(images=squares, return_tensors="pt")["pixel_values"].to(self.model.device)
            parts.append(F.normalize(self._embed(pixels_BCHW).float(), dim=-1).cpu())
        return torch.cat(parts)

    def _embed(self, pixels_BCHW: Tensor) -> Tensor:
        return self.model(pixel_values=pixels_BCHW).last_hidden_state[:, 0]


class ClipEncoder(ImageEncoder):
    """Embed images and texts with CLIP; their cosine tells how well they match."""

    def __init__(self, name: str, model: Any, processor: Any, tokenizer: Any) -> None:
        super().__init__(name, model, processor)
        self.tokenizer = tokenizer

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: float32 [B, D] of length 1, on the CPU. What is longer than CLIP reads is cut off."""
        parts = []
        for first in range(0, len(texts), BATCH_SIZE):
            batch = list(texts[first : first + BATCH_SIZE])
            tokens = self.tokenizer(batch, padding="max_length", truncation=True, return_tensors="pt")
            tokens = tokens.to(self.model.device)
            pooled_BD = self.model.text_model(tokens.input_ids, tokens.attention_mask).pooler_output
            parts.append(F.normalize(self.model.text_projection(pooled_BD).float(), dim=-1).cpu())
        return torch.cat(parts)

    def _embed(self, pixels_BCHW: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixels_BCHW).pooler_output)


def is_available(hub_id: str) -> bool:
    """Return whether a hub id can be loaded now: from the local cache, or from a hub that answers within seconds.

    The hub's own client tries for half a minute before it gives up.
    """
    if isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(f"{constants.ENDPOINT}/api/models/{hub_id}", timeout=5):
            return True
    except OSError:
        return False


def load_image_encoder(name: str, device: str = "cpu") -> ImageEncoder:
    """Load DINO, DINOv2 or another vision transformer by hub id or local folder.

    Raises ModelError where there is none, or where weights are missing.
    """
    model = _load_model(name, transformers.AutoModel).to(device)
    if not hasattr(model.config, "patch_size") or hasattr(model, "visual_projection"):
        raise ModelError(f"{name}: a {type(model).__name__} is no vision transformer; name a DINO, DINOv2 or ViT")
    return ImageEncoder(name, model, _load(name, transformers.AutoImageProcessor))


def load_clip(name: str, device: str = "cpu") -> ClipEncoder:
    """Load a CLIP by hub id or local folder. Raises ModelError where there is none, or where weights are missing."""
    model = _load_model(name, transformers.CLIPModel).to(device)
    processor, tokenizer = _load(name, transformers.AutoImageProcessor), _load(name, transformers.CLIPTokenizer)
    if len(tokenizer) != model.config.text_config.vocab_size:  # without its files a tokenizer of two tokens is made up
        raise ModelError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the text encoder {model.config.text_config.vocab_size}"
        )
    return ClipEncoder(name, model, processor, tokenizer)


def _load_model(name: str, model_class: Any) -> Any:
    """Load a model in float32. A pooler is not used here, so it may be missing; nothing else may."""
    model, info = _load(name, model_class, dtype=torch.float32, output_loading_info=True)
    if not all(weights.isfinite().all() for weights in model.state_dict().values()):
        raise ModelError(f"{name}: a {type(model).__name__} with weights that are not finite numbers")
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing or info["mismatched_keys"]:
        raise ModelError(f"{name}: not a whole {type(model).__name__}: no weights for {', '.join(missing[:3])} ...")
    return model


def _load(name: str, part_class: Any, **options: Any) -> Any:
    """Load a part from a folder, the local cache or the hub. Raises ModelError."""
    try:
        return load_part(name, part_class, **options)
    except ModelError as error:
        raise ModelError(
            f"{name}: no encoder to measure with: neither a whole folder here nor to be had from the hub"
        ) from error
