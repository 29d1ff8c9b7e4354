"""Self-attention that a batch shares with its first sample, so that all of them take its style.

Hertz et al. 2023, "Style Aligned Image Generation via Shared Attention" (arXiv 2312.02133), section 3.3: queries and
keys of each sample get mean and deviation of the reference's, and each attends to the reference beside itself.
Shapes: B batch (the reference first), N positions, H heads, D width of a head.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SELF_ATTENTION = ".attn1.processor"  # ends of the names of such layers' processors


def adain(features_BHND: Tensor, weight: float) -> Tensor:
    """Return features with mean and deviation over positions moved to those of the first sample.

    Huang & Belongie 2017, arXiv 1703.06868, eq. 8. weight: how far, 0 not at all, 1 (and more) all the way.
    """
    mean_BH1D = features_BHND.mean(2, keepdim=True)
    deviation_BH1D = (features_BHND.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
    normed_BHND = (features_BHND - mean_BH1D) / deviation_BH1D
    aligned_BHND = normed_BHND * deviation_BH1D[:1] + mean_BH1D[:1]
    return torch.lerp(features_BHND, aligned_BHND, min(1.0, weight))


class SharedAttention:
    """A diffusers attention processor in which every sample also attends to the first one.

    weight: each of the reference's positions counts as so many of the sample's own; the paper has 1.
    """

    def __init__(self, weight: float) -> None:
        assert weight > 0, weight
        self.weight = weight

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the layer's output [B, N, H * D], as diffusers' `AttnProcessor` does for a transformer's block."""
        assert encoder_hidden_states is None, "self-attention"
        query_BHND, key_BHND, value_BHND = (
            project(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query_BHND, key_BHND = adain(query_BHND, self.weight), adain(key_BHND, self.weight)
        keys, values = (torch.cat([each[:1].expand_as(each), each], dim=2) for each in (key_BHND, value_BHND))
        num = key_BHND.shape[2]
        bias_12N = query_BHND.new_zeros(1, 2 * num)
        bias_12N[:, :num] = math.log(self.weight)
        mixed_BHND = F.scaled_dot_product_attention(query_BHND, keys, values, attn_mask=bias_12N, scale=attn.scale)
        for layer in attn.to_out:
            mixed_BHND = layer(mixed_BHND.transpose(1, 2).flatten(2) if mixed_BHND.ndim == 4 else mixed_BHND)
        return mixed_BHND / attn.rescale_output_factor


@contextlib.contextmanager
def shared_attention(network: Any, weight: float) -> Iterator[None]:
    """Let a UNet's self-attention be shared with the first sample of each batch; afterwards it is as it was."""
    before = dict(network.attn_processors)
    shared = SharedAttention(weight)
    network.set_attn_processor({name: shared if name.endswith(SELF_ATTENTION) else own for name, own in before.items()})
    try:
        yield
    finally:
        network.set_attn_processor(before)
