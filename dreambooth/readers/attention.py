"""Which patches of an image each word of a caption was written from, as far as attention tells.

The language model attends to a few queries, and each query to the patches of the image. For the word of token t

    map_t[p] = sum over queries q of  text[t, q] * image[q, p],      then divided by its sum over the patches

text[t, q]: the language model's attention to query q from the place that writes token t, which is the one before it.
image[q, p]: the query's attention to patch p. Both are means over heads and layers. Positions of a model that are no
patches, such as a class token, are left out.

It says where the model looked, not why it wrote the word: layers of the image encoder have mixed the patches before,
and those of the language model the words (Jain and Wallace 2019, "Attention is not Explanation", arXiv 1902.10186).
Shapes: B images, N layers, A heads, T tokens, Q queries, P patches, h/w rows and columns of patches.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dreambooth.readers.protocols import Box, WordMap

PUNCTUATION = ".,;:!?\"'"
TAG = re.compile("<[^<>]*>")  # Kosmos-2's phrases and boxes


@contextmanager
def attention_in_numbers(network: Any) -> Iterator[None]:
    """Compute attention by plain matrices within the block: the fast kernels do not give its numbers."""
    before = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def mean_attention(layers: Sequence[Tensor]) -> Tensor:
    """Return the mean over layers and heads, float32 on the CPU, [B, from, to]; a layer is [B, A, from, to]."""
    return torch.stack([layer.float().mean(1) for layer in layers]).mean(0).cpu()


def word_maps(tokenizer: Any, ids_T: Tensor, text_TQ: Tensor, image_QP: Tensor) -> tuple[WordMap, ...]:
    """Return the map of each word of a text: the mean over its tokens. The patches form a square.

    text_TQ: attention from the places that write the tokens to the queries; image_QP: from the queries to the patches.
    """
    side = math.isqrt(image_QP.shape[1])
    assert side * side == image_QP.shape[1], "patches that form no square"
    map_TP = text_TQ @ image_QP
    map_TP = map_TP / map_TP.sum(1, keepdim=True).clamp(min=1e-12)
    return tuple(
        WordMap(word, map_TP[tokens].mean(0).reshape(side, side), float(text_TQ[tokens].sum(1).mean()))
        for word, tokens in words_of(tokenizer, ids_T)
    )


def words_of(tokenizer: Any, ids_T: Tensor) -> Iterator[tuple[str, list[int]]]:
    """Yield the words of a text of tokens, each with the numbers of its tokens, without punctuation and tags."""
    ids = ids_T.tolist()
    text = tokenizer.decode(ids, skip_special_tokens=True)
    ends = [len(tokenizer.decode(ids[:number], skip_special_tokens=True)) for number in range(len(ids) + 1)]
    for match in re.finditer(r"\S+", text):
        tokens = [at for at in range(len(ids)) if ends[at] < match.end() and ends[at + 1] > match.start()]
        if tokens and (word := TAG.sub("", match[0]).strip(PUNCTUATION)):
            yield word, tokens


def seen_part(image_processor: Any, size: tuple[int, int]) -> Box:
    """Return which part of an image of that (width, height) a processor leaves: all of it, or its middle."""
    shortest = getattr(image_processor.size, "shortest_edge", None)
    if not getattr(image_processor, "do_center_crop", False) or shortest is None:
        return 0.0, 0.0, 1.0, 1.0
    scale = shortest / min(size)
    crop = image_processor.crop_size
    across, down = min(1.0, crop.width / (size[0] * scale)), min(1.0, crop.height / (size[1] * scale))
    return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2
