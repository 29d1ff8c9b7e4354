"""Denoise an image that is larger than a model was trained for, in overlapping tiles without seams.

MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113, eq. 5): at every step each tile is predicted by itself, and where
tiles overlap the mean of their predictions counts, here weighted towards the middle of each:

    prediction[y, x] = sum_i w_i[y, x] prediction_i[y, x] / sum_i w_i[y, x]

So all tiles are denoised together, and neighbours agree at every step; nothing is pasted afterwards.
Shapes: B batch, C channels, H/W latent height and width.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from dreambooth.families import Conditioning, Family

OVERLAP = 0.5  # of a tile's side, at least


def with_tiles(family: Family, side: int) -> Family:
    """Return a family with the same networks that predicts in tiles of `side` latents; images up to that size as ever.

    Its conditioning must be the same for each tile: without controls or masks, which belong to places.
    """
    tiled, predict_one = copy.copy(family), family.predict

    def predict(noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        return in_tiles(lambda part_BCHW: predict_one(part_BCHW, t_B, conditioning), noisy_BCHW, side)

    setattr(tiled, "predict", predict)  # noqa: B010 - of this copy alone, not of its class
    return tiled


def in_tiles(predict: Callable[[Tensor], Tensor], noisy_BCHW: Tensor, side: int) -> Tensor:
    """Return the prediction for latents, put together from those for tiles of `side` latents."""
    height, width = noisy_BCHW.shape[-2:]
    rows, columns = tile_starts(height, side), tile_starts(width, side)
    if len(rows) == len(columns) == 1:
        return predict(noisy_BCHW)
    weights_HW = (_window(min(side, height))[:, None] * _window(min(side, width))).to(noisy_BCHW.device)
    total_BCHW = torch.zeros_like(noisy_BCHW, dtype=torch.float32)
    weight_HW = torch.zeros(height, width, device=noisy_BCHW.device)
    for top in rows:
        for left in columns:
            part = (..., slice(top, top + side), slice(left, left + side))
            total_BCHW[part] += weights_HW * predict(noisy_BCHW[part]).float()
            weight_HW[part] += weights_HW
    return (total_BCHW / weight_HW).to(noisy_BCHW.dtype)


def tile_starts(length: int, side: int) -> list[int]:
    """Return where the tiles of a side begin: as few as overlap by OVERLAP, evenly spaced, the last at the end."""
    if length <= side:
        return [0]
    num_tiles = math.ceil((length - side) / (side * (1 - OVERLAP))) + 1
    return [round(number * (length - side) / (num_tiles - 1)) for number in range(num_tiles)]


def _window(side: int) -> Tensor:
    """Return weights that rise from an edge to the middle and fall again, above 0 everywhere, [side]."""
    position = (torch.arange(side) + 0.5) / side
    return torch.sin(math.pi * position) ** 2 + 1e-3
