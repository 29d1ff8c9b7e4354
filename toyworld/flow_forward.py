"""Z-Image's forward on whole batches: images of one size, captions of any length.

The transformer's own forward takes each image by itself. For 64 small ones, a step of training calls three times as
many operators as with this one.

Shapes: B batch, C latent channels, h/w latent height and width, N image tokens, L caption tokens, D transformer width,
T text width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ZImageTransformer2DModel
from torch import Tensor

CAPTION_STEP = 32  # captions are filled up to a multiple of so many tokens; an image's tokens must be one
PATCH = 2  # latents that a token covers, each way
LAYERS_FOR = f"{PATCH}-1"  # the key of the embedder and of the last layer of such patches


def predict(
    transformer: ZImageTransformer2DModel, noisy_BChw: Tensor, time_B: Tensor, states_BLT: Tensor, length_B: Tensor
) -> Tensor:
    """Return what the transformer predicts, x0 - noise, [B, C, h, w].

    time_B: 0 is noise, 1 an image. states_BLT: of the captions, of which length_B (on the CPU) tokens each count.
    """
    device = noisy_BChw.device
    height, width = (size // PATCH for size in noisy_BChw.shape[-2:])
    assert height * width % CAPTION_STEP == 0
    filled_B = (length_B + CAPTION_STEP - 1) // CAPTION_STEP * CAPTION_STEP
    num_tokens = int(filled_B.max())
    one_length = bool((filled_B == num_tokens).all())
    length_B, filled_B = length_B.to(device), filled_B.to(device)
    token_L = torch.arange(num_tokens, device=device)
    modulation = transformer.t_embedder(time_B * transformer.t_scale).type_as(noisy_BChw)

    image_BND = transformer.all_x_embedder[LAYERS_FOR](_patches(noisy_BChw))
    image_rope = _rope(transformer, _image_positions(filled_B, height, width))
    for layer in transformer.noise_refiner:
        image_BND = layer(image_BND, None, image_rope, modulation)

    states_BLT = F.pad(states_BLT, (0, 0, 0, num_tokens - states_BLT.shape[1]))
    missing_BL = token_L >= length_B[:, None]
    text_BLD = torch.where(missing_BL[..., None], transformer.cap_pad_token, transformer.cap_embedder(states_BLT))
    text_rope = _rope(transformer, _text_positions(len(length_B), token_L))
    seen_BL = None if one_length else token_L < filled_B[:, None]
    for layer in transformer.context_refiner:
        text_BLD = layer(text_BLD, seen_BL, text_rope)

    both, rope = torch.cat([image_BND, text_BLD], 1), torch.cat([image_rope, text_rope], 1)
    num_patches = height * width
    seen = None if seen_BL is None else F.pad(seen_BL, (num_patches, 0), value=True)
    for layer in transformer.layers:
        both = layer(both, seen, rope, modulation)
    found = transformer.all_final_layer[LAYERS_FOR](both, c=modulation)[:, :num_patches]
    return _image(found, height, width)


def _patches(latents_BChw: Tensor) -> Tensor:
    """Return the numbers of each token, [B, N, PATCH * PATCH * C]."""
    batch, channels, height, width = latents_BChw.shape
    split = latents_BChw.view(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, PATCH * PATCH * channels)


def _image(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens [B, N, PATCH * PATCH * C] as latents; height and width are counted in tokens."""
    split = tokens.view(len(tokens), height, width, PATCH, PATCH, -1).permute(0, 5, 1, 3, 2, 4)
    return split.reshape(len(tokens), -1, height * PATCH, width * PATCH)


def _image_positions(filled_B: Tensor, height: int, width: int) -> Tensor:
    """Return positions [B, N, 3] along text, height and width: an image's first stands behind its caption."""
    rows, columns = (torch.arange(size, device=filled_B.device) for size in (height, width))
    grid_N2 = torch.cartesian_prod(rows, columns)
    start_BN1 = (filled_B + 1)[:, None, None].expand(-1, len(grid_N2), 1)
    return torch.cat([start_BN1, grid_N2.expand(len(filled_B), -1, 2)], -1)


def _text_positions(batch: int, token_L: Tensor) -> Tensor:
    """Return positions [B, L, 3]: a caption's first token is number 1 along the text."""
    return F.pad((token_L + 1)[:, None], (0, 2)).expand(batch, -1, 3)


def _rope(transformer: ZImageTransformer2DModel, positions: Tensor) -> Tensor:
    """Return the rotations of positions [B, n, 3], complex [B, n, half of a head]."""
    return transformer.rope_embedder(positions.reshape(-1, 3)).view(*positions.shape[:2], -1)
