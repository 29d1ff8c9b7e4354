"""Encodes pictures and captions of the second edition for a training that draws them on the way.

Shapes: B pictures, C latent channels, h/w latent height and width, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from toyworld.editions import SECOND, telling_masks
from toyworld.latents import LinearCodec, to_pixels
from toyworld.second import picture
from toyworld.second.picture import Picture
from toyworld.tokenizer import build_tokenizer


def encode_pictures(codec: LinearCodec, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
    """Return latents [B, C, h, w], and weights of their errors [B, 1, h, w], the mean 1 in each picture."""
    masks = torch.from_numpy(np.stack([telling_masks(each) for each in pictures]))
    masks = F.avg_pool2d(masks, SECOND.latent_patch)
    weights = 1 + (torch.tensor(SECOND.mask_weights)[:, None, None] * masks).sum(1, keepdim=True)
    latents = codec.encode(to_pixels([picture.render(each) for each in pictures]))
    return latents, weights / weights.mean((1, 2, 3), keepdim=True)


def encode_captions(texts: Sequence[str]) -> Tensor:
    """Return tokens, [B, L]."""
    return torch.tensor(_tokenizer()(list(texts), padding="max_length").input_ids)


@cache  # once a process
def _tokenizer() -> CLIPTokenizer:
    return build_tokenizer(SECOND.vocabulary())
