"""Tokens of transformers that read latents in patches of 2 x 2. Shapes: B batch, C channels, H/W latents, N tokens."""

import torch.nn.functional as F
from torch import Tensor

PATCH = 2  # latents a token, along a side


def pack(latents_BCHW: Tensor) -> Tensor:
    """Return the tokens of latents, row by row, [B, H/2 * W/2, 4 C]."""
    return F.pixel_unshuffle(latents_BCHW, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens_BNC: Tensor, height: int, width: int) -> Tensor:
    """Invert `pack`. height, width: of the latents."""
    patches = tokens_BNC.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
    return F.pixel_shuffle(patches, PATCH)
