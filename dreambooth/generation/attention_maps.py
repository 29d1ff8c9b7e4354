"""Where each word of a prompt acted on an image: cross-attention, summed over heads, layers and steps.

DAAM (Tang et al. 2022, "What the DAAM: Interpreting Stable Diffusion Using Cross Attention", arXiv 2210.04885, eq. 6):

    map_k[y, x] = sum over steps, layers and heads of the attention of position (y, x) to token k, upscaled to one size

Here it is the mean instead of the sum, so each position's numbers over all tokens add up to 1. Nothing of the sampling
changes: queries and keys are computed a second time beside it.
Shapes: B images, N tokens, H/W latent height and width, S positions of a layer, D width.
"""

import math
import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from PIL import Image
from torch import Tensor

from dreambooth.data.overlays import overlay
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.families.clip_weights import spans_of
from dreambooth.generation.grids.grid import GridRow, draw_grid
from dreambooth.generation.prompting.prompt_reading import text_of
from dreambooth.generation.request import GeneratedImage, ImageRequest

PUNCTUATION = ".,;:!?\"'"
COLUMNS = 6


class AttentionRecorder:
    """Record the cross-attention of a denoiser to its text while images are sampled, within a `with` block.

    num_images: of the batch; where a forward pass has more, the last ones are the guided images' own. size: (H, W).
    Raises UserError for a denoiser without such layers.
    """

    def __init__(self, denoiser: torch.nn.Module, num_images: int, size: tuple[int, int]) -> None:
        self._layers = cross_attention_of(denoiser)
        if not self._layers:
            raise UserError(
                f"--attention-maps: {type(denoiser).__name__} has no cross-attention to the prompt; maps are for "
                "families with a UNet"
            )
        self._num_images, self._size = num_images, size
        self._sum_BNHW: Tensor | None = None
        self._count = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> "AttentionRecorder":
        self._hooks = [each.register_forward_pre_hook(self._record, with_kwargs=True) for each in self._layers]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def maps(self) -> Tensor:
        """Return the attention to each token, [B, N, H, W], float32 on the CPU."""
        assert self._sum_BNHW is not None, "nothing was sampled"
        return (self._sum_BNHW / self._count).cpu()

    @torch.no_grad()
    def _record(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        text = kwargs["encoder_hidden_states"]
        text = text[0] if isinstance(text, tuple) else text  # an IP-Adapter's image stands behind the text
        hidden_BSD, text_BND = args[0][-self._num_images :], text[-self._num_images :]
        query, key = (
            layer.head_to_batch_dim(project(each))
            for project, each in ((layer.to_q, hidden_BSD), (layer.to_k, text_BND))
        )
        part_BSN = layer.get_attention_scores(query, key).float().unflatten(0, (self._num_images, -1)).mean(1)
        part_BNhw = part_BSN.transpose(1, 2).unflatten(2, self._layer_size(part_BSN.shape[1]))
        part_BNHW = F.interpolate(part_BNhw, self._size, mode="bicubic").clamp(min=0)
        self._sum_BNHW = part_BNHW if self._sum_BNHW is None else self._sum_BNHW + part_BNHW
        self._count += 1

    def _layer_size(self, num_positions: int) -> tuple[int, int]:
        """Return (height, width) of a layer: the latents' size, halved some times."""
        height, width = self._size
        while height * width > num_positions:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        assert height * width == num_positions, "a layer of another shape than the latents"
        return height, width


def cross_attention_of(denoiser: torch.nn.Module) -> list[Attention]:
    """Return the layers of a denoiser that attend to its text; none of a transformer that joins text and image."""
    return [each for each in denoiser.modules() if isinstance(each, Attention) and each.is_cross_attention]


def word_maps(family: Family, request: ImageRequest, maps_NHW: Tensor) -> dict[str, Tensor]:
    """Return a map [H, W] for each word of a request's prompt: the mean over its tokens.

    Of equal words the first counts, and of a blend the words of its first prompt.
    """
    text = text_of(family, request)
    found: dict[str, Tensor] = {}
    length = family.max_tokens
    for part, (start, end) in enumerate(spans_of(family, text)):
        for match in re.finditer(r"\S+", text[start:end]):
            word = match[0].strip(PUNCTUATION)
            first = len(family.tokenize(text[start : start + match.start()]))
            upto = len(family.tokenize(text[start : start + match.end()]))
            if word and word not in found and upto > first:
                found[word] = maps_NHW[part * length + 1 + first : part * length + 1 + upto].mean(0)
    return found


def draw_attention(image: GeneratedImage, maps: Mapping[str, Tensor]) -> Image.Image:
    """Return a sheet of an image and, beside it, where each word acted; every map has its own brightest point."""
    shown = [image, *(overlay(image, map_HW, float(map_HW.max())) for map_HW in maps.values())]
    captions = ["", *maps]
    rows = [
        GridRow("" if first else str(image.recipe.get("prompt", "")), shown[first : first + COLUMNS],
                captions[first : first + COLUMNS])
        for first in range(0, len(shown), COLUMNS)
    ]  # fmt: skip
    return draw_grid(rows)
