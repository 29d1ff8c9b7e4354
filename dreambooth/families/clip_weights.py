"""Weighted, blended and long prompts for families with CLIP's text encoder.

A weight w moves what a token means away from what nothing means (ComfyUI's rule, and Compel's for w > 1):

    z' = z_empty + w * (z - z_empty)        for each token's hidden state z, at the same position of an empty prompt

A prompt of more tokens than the encoder has positions is read in parts of whole words, each with start and end, whose
hidden states the denoiser reads one behind the other (as AUTOMATIC1111 does). Shorter prompts beside it end in empty
parts. The pooled state of XL is the first part's, without weights.

Why not Compel (2.5.1 was tried): it encodes by itself, past the words of several vectors that a run has learned, past
XL's zeros for empty prompts and the cached prompts, and its own syntax, (word)1.3, is not what people paste.
Shapes: B prompts, N tokens, D width, P pooled; K parts a prompt.
"""

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dreambooth.errors import UserError
from dreambooth.families.conditioning import Conditioning
from dreambooth.prompt_weights import Blend, WeightedPrompt

HIDDEN, EMPTY = "encoder_hidden_states", " "  # which is encoded as nothing; "" may stand for zeros


class ReadsText(Protocol):
    """The methods of a text side that encoding needs."""

    def encode_prompts(self, prompts: list[str]) -> Conditioning: ...

    def tokenize(self, text: str) -> list[int]: ...

    def truncate(self, prompt: str) -> tuple[str, str]: ...


class ClipWeights:
    """The part of a family with CLIP's text encoder that `protocols.ReadsWeights` asks for."""

    def encode_weighted(self: ReadsText, prompts: Sequence[Blend]) -> Conditioning:
        return encode(self, prompts)

    def num_parts(self: ReadsText, prompt: Blend) -> int:
        return num_parts_of(self, prompt)


def encode(side: ReadsText, prompts: Sequence[Blend]) -> Conditioning:
    """Encode each prompt, all of as many parts as the longest has: hidden states [B, K N, D], and pooled [B, P].

    One part without weights has the same bits as `encode_prompts` gives it, among the same number of prompts.
    """
    num_parts = max(num_parts_of(side, each) for each in prompts)
    every = [prompt for blend in prompts for prompt in blend.prompts]
    encoded = _encode_all(side, every, num_parts)
    rows, first = [], 0
    for blend in prompts:
        own = encoded.select(range(first, first + len(blend.prompts)))
        rows.append(own if len(blend.prompts) == 1 else _mean(own, blend.parts))
        first += len(blend.prompts)
    return Conditioning.cat(rows)


def num_parts_of(side: ReadsText, blend: Blend) -> int:
    """Return in how many parts a prompt is read. Raises UserError for a word that is longer than a part."""
    return max(len(spans_of(side, prompt.text)) for prompt in blend.prompts)


def spans_of(side: ReadsText, text: str) -> list[tuple[int, int]]:
    """Return start and end of each part that a text is read in. Raises UserError for a word that fits none."""
    spans, start = [], 0
    while True:
        kept, dropped = side.truncate(text[start:])
        if not kept and dropped:
            raise UserError(f"prompt {text!r}: a word of it has more tokens than this model reads: {dropped[:40]!r}")
        spans.append((start, start + len(kept)))
        if not dropped:
            return spans
        start = text.index(dropped, start + len(kept))


def _encode_all(side: ReadsText, prompts: Sequence[WeightedPrompt], num_parts: int) -> Conditioning:
    """Encode prompts of up to `num_parts` parts, with their weights."""
    texts: list[str] = []
    weights: list[list[float]] = []
    for prompt in prompts:
        spans = spans_of(side, prompt.text)
        texts += [prompt.text[start:end] for start, end in spans]
        weights += [_token_weights(side, prompt, span) for span in spans]
        num_empty = num_parts - len(spans)
        texts += [EMPTY if prompt.text else ""] * num_empty
        weights += [[]] * num_empty
    encoded = side.encode_prompts(texts)
    hidden_BND = encoded[HIDDEN]
    if any(weight != 1 for weight in itertools.chain(*weights)):
        hidden_BND = _weighted(side, hidden_BND, weights)
    own = encoded.select(range(0, len(texts), num_parts)) if num_parts > 1 else encoded
    return own | Conditioning({HIDDEN: hidden_BND.reshape(len(prompts), -1, hidden_BND.shape[-1])})


def _token_weights(side: ReadsText, prompt: WeightedPrompt, span: tuple[int, int]) -> list[float]:
    """Return the weight of each token of a part, without start and end. A word has the weight of its beginning."""
    start, end = span
    found: list[float] = []
    position = 0
    for fragment in prompt.fragments:
        position += len(fragment.text)
        upto = len(side.tokenize(prompt.text[start : min(max(position, start), end)]))
        found += [fragment.weight] * (upto - len(found))
    return found[: len(side.tokenize(prompt.text[start:end]))]


def _weighted(side: ReadsText, hidden_BND: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """Return hidden states with the weights applied; those of weight 1 keep their bits."""
    empty_1ND = side.encode_prompts([EMPTY])[HIDDEN]
    weight_BN1 = torch.ones_like(hidden_BND[..., :1])
    for row, own in enumerate(weights):
        weight_BN1[row, 1 : 1 + len(own), 0] = torch.tensor(own).to(weight_BN1)
    return torch.where(weight_BN1 == 1, hidden_BND, empty_1ND + weight_BN1 * (hidden_BND - empty_1ND))


def _mean(encoded: Conditioning, parts: Sequence[float]) -> Conditioning:
    """Return the weighted mean of several prompts as one: sum_i part_i z_i."""
    fields = {}
    for name in encoded:
        tensor = encoded[name]
        part_B = torch.tensor(parts).to(tensor).reshape(-1, *[1] * (tensor.ndim - 1))
        fields[name] = (part_B * tensor).sum(0, keepdim=True)
    return Conditioning(fields)
