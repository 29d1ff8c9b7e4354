"""The training loss. A loss returns one number per sample; a mask says which samples are of the class prior.

So a weighting and the two means cannot fall out of step. Shapes: B batch, C channels, H/W latent height and width.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossParts:
    """total = instance + weight * prior, each a scalar."""

    total: Tensor
    instance: Tensor
    prior: Tensor | None


def squared_error(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error of each sample, float32 [B] (Ho et al. 2020, eq. 14)."""
    return F.mse_loss(prediction_BCHW.float(), target_BCHW.float(), reduction="none").mean(dim=(1, 2, 3))


def prior_preservation(loss_B: Tensor, is_prior_B: Tensor, weight: float) -> LossParts:
    """mean(subject) + weight * mean(prior): the DreamBooth loss (arXiv 2208.12242, eq. 2; `weight` is its lambda).

    weight = 1 is the paper's choice; 0 is plain fine-tuning. Without prior samples the total is the subject's mean.

    loss_B: one loss per sample, [B]. is_prior_B: bool, [B]; at least one sample must be of the subject.
    """
    instance = loss_B[~is_prior_B].mean()
    if not bool(is_prior_B.any()):
        return LossParts(total=instance, instance=instance, prior=None)
    prior = loss_B[is_prior_B].mean()
    return LossParts(total=instance + weight * prior, instance=instance, prior=prior)
