"""Embeddings to scores: one number per picture, and one place where numbers become a mean with its interval.

The measures of the DreamBooth paper (arXiv 2208.12242, section 4.2 and its supplement): subject fidelity DINO and
CLIP-I, prompt fidelity CLIP-T, prior preservation PRES and DIV. All embeddings have length 1.
Shapes: B pictures, N references, D embedding dimensions.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

CONFIDENCE = 0.95


def similarity(pictures_BD: Tensor, references_ND: Tensor) -> Tensor:
    """Mean cosine of each picture to all references, [B]. The mean over B is the mean pairwise cosine.

    DINO and CLIP-I where the pictures are of the subject and the references its photos; PRES where the pictures are of
    the class prompt (then low is good: what the class has taken over from the subject).
    """
    return (pictures_BD @ references_ND.T).mean(1)


def prompt_similarity(pictures_BD: Tensor, texts_BD: Tensor) -> Tensor:
    """CLIP-T: cosine of each picture to the text of its prompt, [B]."""
    return (pictures_BD * texts_BD).sum(1)


def diversity(distance_BB: Tensor) -> Tensor:
    """DIV: mean distance of each picture to the others of its prompt, [B]; 0 where all are the same. B >= 2.

    The paper takes it among pictures of one prompt with the subject (section 4.3); among those of the class prompt it
    tells whether the class has collapsed. `evaluate` has both, validation the second.
    """
    num_pictures = len(distance_BB)
    assert num_pictures > 1, "one picture has no diversity"
    return (distance_BB.sum(1) - distance_BB.diagonal()) / (num_pictures - 1)


def cosine_distance(pictures_BD: Tensor) -> Tensor:
    """1 - cosine of all pairs, [B, B]."""
    return 1 - pictures_BD @ pictures_BD.T


def drift(pictures_BD: Tensor, base_BD: Tensor) -> Tensor:
    """1 - cosine of each picture to the untouched base's of the same prompt and seed, [B]; 0 where nothing moved."""
    return 1 - (pictures_BD * base_BD).sum(1)


def self_similarity(photos_ND: Tensor) -> float:
    """Mean cosine among different photos of one subject: what a perfect picture would reach. 1 for a single photo."""
    num_photos = len(photos_ND)
    if num_photos == 1:
        return 1.0
    return float(1 - diversity(cosine_distance(photos_ND)).mean())


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval over `num` independent numbers; nan where one number gives none."""

    mean: float
    low: float
    high: float
    num: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {(self.high - self.low) / 2:.3f}" if self.num > 1 else f"{self.mean:.3f}"


def estimate(scores: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Mean with Student's t interval.

    groups: what each score belongs to (its subject, say). Pictures of one subject are alike, so they are averaged
    first, and the interval is over the groups: without that it would be far too narrow.
    """
    if groups is not None:
        by_group: dict[Hashable, list[float]] = defaultdict(list)
        for score, group in zip(scores, groups, strict=True):
            by_group[group].append(score)
        scores = [float(np.mean(members)) for members in by_group.values()]
    from scipy import stats  # half a second, which a run's first step need not wait for

    mean, num = float(np.mean(scores)), len(scores)
    if num < 2:
        return Estimate(mean, float("nan"), float("nan"), num)
    half = float(stats.sem(scores) * stats.t.ppf(0.5 + CONFIDENCE / 2, num - 1))
    return Estimate(mean, mean - half, mean + half, num)
