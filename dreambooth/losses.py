"""The training loss. A loss returns one number per sample; a mask says which samples are of the class prior.

So a weighting and the two means cannot get out of step. Shapes: B batch, C channels, H/W latent height and width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dreambooth.plugins import Table


@dataclass(frozen=True)
class LossParts:
    """Hold a loss and its parts, each a scalar: total = instance + weight * prior."""

    total: Tensor
    instance: Tensor
    prior: Tensor | None


def squared_error(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Return the squared error of every number, float32 (Ho et al. 2020, eq. 14)."""
    return F.mse_loss(prediction_BCHW.float(), target_BCHW.float(), reduction="none")


def pseudo_huber(prediction_BCHW: Tensor, target_BCHW: Tensor, c: float) -> Tensor:
    """Return 2 c (sqrt(d^2 + c^2) - c) of every difference d, float32 (Khrapov et al. 2024, arXiv 2403.16728).

    Outliers pull less than by their square: for differences well below `c` it is d^2, well above 2 c |d|.
    """
    difference = prediction_BCHW.float() - target_BCHW.float()
    return 2 * c * difference.square() / ((difference.square() + c**2).sqrt() + c)


def mean_over_image(error_BCHW: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
    """Return each sample's mean over its positions, [B], weighted by the mask: positions with 0 do not count.

    Dividing by the mask's sum keeps a small subject's loss as large as that of one that fills the image.
    """
    if mask_B1HW is None:
        return error_BCHW.mean(dim=(1, 2, 3))
    weight_BCHW = mask_B1HW.to(error_BCHW).expand_as(error_BCHW)
    return (error_BCHW * weight_BCHW).sum(dim=(1, 2, 3)) / weight_BCHW.sum(dim=(1, 2, 3))


def sample_weights(is_prior_B: Tensor, weight: float) -> Tensor:
    """Return how much each sample's loss counts in the total of `prior_preservation`, [B]."""
    return torch.where(is_prior_B, weight / is_prior_B.sum(), 1 / (~is_prior_B).sum())


def prior_preservation(loss_B: Tensor, is_prior_B: Tensor, weight: float) -> LossParts:
    """Return mean(subject) + weight * mean(prior), DreamBooth's loss (arXiv 2208.12242, eq. 2; `weight`: its lambda).

    weight = 1 is the paper's choice; 0 is plain fine-tuning. Without prior samples the total is the subject's mean.

    loss_B: one loss per sample, [B]. is_prior_B: bool, [B]; at least one sample must be of the subject.
    """
    instance = loss_B[~is_prior_B].mean()
    if not bool(is_prior_B.any()):
        return LossParts(total=instance, instance=instance, prior=None)
    prior = loss_B[is_prior_B].mean()
    return LossParts(total=instance + weight * prior, instance=instance, prior=prior)


# -------------------------------------------------------------------------------- weightings over timesteps

# Weight of an x0 error at a signal-to-noise ratio: one rule for every prediction type.
X0_WEIGHTS: Table[Callable[[Tensor, float], Tensor]] = Table(
    "losses",
    {
        # Hang et al. 2023, arXiv 2303.09556. gamma = 5 is the paper's.
        "min_snr": lambda snr, gamma: snr.clamp(max=gamma),
        # Crowson et al. 2024, arXiv 2401.11605: the same without the kink.
        "soft_min_snr": lambda snr, gamma: snr * gamma / (snr + gamma),
        # Yu et al. 2023, arXiv 2310.08442: epsilon's loss divided by sqrt(snr), so that all timesteps learn x0.
        "debiased": lambda snr, gamma: snr.sqrt(),
    },
)
# Squared error of a prediction over that of the x0 it implies.
ERROR_OVER_X0: dict[str, Callable[[Tensor], Tensor]] = {
    "epsilon": lambda snr: snr,
    "v_prediction": lambda snr: snr + 1,
    "flow": lambda snr: (snr.sqrt() + 1).square(),
}


def timestep_weight(snr_B: Tensor, weighting: str, prediction: str, gamma: float = 5.0) -> Tensor:
    """Return w: w * squared_error(prediction) == x0_weight(snr) * squared_error(x0). All predictions share one x0 loss.

    min_snr:       w = min(snr, gamma) / snr for epsilon, min(snr, gamma) / (snr + 1) for v. A gamma of infinity is the
                   plain epsilon loss, one near 0 the plain x0 loss times gamma.
    soft_min_snr:  w = gamma / (snr + gamma) for epsilon.
    debiased:      w = 1 / sqrt(snr) for epsilon.
    none:          w = 1: the plain loss of whatever is predicted.

    snr_B: alpha^2 / sigma^2, float32, [B]. Returns [B]. Where epsilon's x0 is undefined (snr 0) the limit is taken for
    min_snr and soft_min_snr; debiased has none there and raises ValueError. Raises ValueError for an unknown name.
    """
    if weighting == "none":
        return torch.ones_like(snr_B)
    if weighting not in X0_WEIGHTS or prediction not in ERROR_OVER_X0:
        weightings = ("none", *X0_WEIGHTS)
        raise ValueError(f"weighting {weighting!r} of {prediction!r}: known are {weightings} of {tuple(ERROR_OVER_X0)}")
    if prediction == "epsilon" and bool((snr_B == 0).any()):
        if weighting == "debiased":
            raise ValueError("debiased weighting of epsilon is infinite where there is no signal; predict v there")
        snr_B = snr_B.clamp(min=torch.finfo(snr_B.dtype).tiny)
    return X0_WEIGHTS[weighting](snr_B, gamma) / ERROR_OVER_X0[prediction](snr_B)
