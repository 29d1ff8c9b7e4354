"""Tell whether a text belongs to an image, by a model that reads both together."""

from collections.abc import Sequence

import torch
from PIL import Image

from dreambooth.readers.loading import ReaderSource, load_retrieval, moved


class Blip2Matcher:
    """Match by BLIP-2's image-text matching head (Li et al. 2023, arXiv 2301.12597, section 3.1)."""

    def __init__(self, source: ReaderSource) -> None:
        self.name = source.name
        self.network, self.processor = load_retrieval(source)

    @torch.no_grad()
    def match(self, images: Sequence[Image.Image], text: str) -> list[float]:
        texts = [text] * len(images)
        inputs = self.processor(images=list(images), text=texts, truncation=True, return_tensors="pt")
        found = self.network(**moved(inputs, self.network), use_image_text_matching_head=True)
        values: list[float] = found.logits_per_image.double().softmax(-1)[:, 1].tolist()
        return values
