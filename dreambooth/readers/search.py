"""Rank images by how well they fit a text, in the space that images and texts have in common."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from dreambooth.readers.loading import ReaderSource, load_network, load_part, load_retrieval, moved


class Blip2Searcher:
    """Compare by BLIP-2's contrast: the cosine of a text with the query that fits it best (section 3.1)."""

    def __init__(self, source: ReaderSource) -> None:
        self.name = source.name
        self.network, self.processor = load_retrieval(source)

    @torch.no_grad()
    def likeness(self, images: Sequence[Image.Image], text: str) -> list[float]:
        inputs = self.processor(images=list(images), text=[text], truncation=True, return_tensors="pt")
        found = self.network(**moved(inputs, self.network), use_image_text_matching_head=False)
        values: list[float] = found.logits_per_image.float().reshape(len(images)).tolist()
        return values


class ClipSearcher:
    """Compare by a CLIP or SigLIP."""

    def __init__(self, source: ReaderSource) -> None:
        self.name = source.name
        self.network = load_network(source, transformers.AutoModel)
        self.processor = load_part(source.name, transformers.AutoImageProcessor)
        self.tokenizer = load_part(source.name, transformers.AutoTokenizer)
        # SigLIP 2's tokenizer tells no length of its own, and pads and cuts nothing then.
        self.num_tokens = min(self.tokenizer.model_max_length, self.network.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def likeness(self, images: Sequence[Image.Image], text: str) -> list[float]:
        tokens = self.tokenizer(
            [text], padding="max_length", max_length=self.num_tokens, truncation=True, return_tensors="pt"
        )
        pixels = self.processor(images=list(images), return_tensors="pt")
        text_1D = _embedding(self.network.get_text_features(**moved(tokens, self.network)))
        images_BD = _embedding(self.network.get_image_features(**moved(pixels, self.network)))
        values: list[float] = (images_BD @ text_1D.T)[:, 0].tolist()
        return values


def _embedding(features: Any) -> torch.Tensor:
    """Return the vectors of a model's features, of length 1, float32 [B, D]."""
    return F.normalize(getattr(features, "pooler_output", features).float(), dim=-1)
