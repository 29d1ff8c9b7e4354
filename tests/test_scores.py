"""Scores are what the paper says they are, and a mean's interval holds the truth as often as it claims."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dreambooth.metrics import scores
from dreambooth.metrics.estimates import BOUNDS, estimate


def unit(num: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(num, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_similarity_is_the_mean_pairwise_cosine() -> None:
    pictures, photos = unit(3), unit(4, seed=1)
    pairs = [float(F.cosine_similarity(a, b, dim=0)) for a in pictures for b in photos]
    assert float(scores.similarity(pictures, photos).mean()) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_diversity_is_the_mean_distance_of_different_pictures_and_0_for_copies() -> None:
    pictures = unit(4)
    pairs = [1 - float(pictures[i] @ pictures[j]) for i in range(4) for j in range(i)]
    diversity = scores.diversity(scores.cosine_distance(pictures))
    assert float(diversity.mean()) == pytest.approx(np.mean(pairs), abs=1e-6)
    copies = scores.diversity(scores.cosine_distance(unit(1).expand(3, 8)))
    assert copies.tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_drift_is_0_for_the_same_pictures_and_pairs_them_by_seed() -> None:
    pictures = unit(3)
    assert scores.drift(pictures, pictures).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    many = torch.nn.functional.normalize(torch.randn(500, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert (1 - (many * many).sum(1)).min() < 0, "cosines of an image with itself exceed 1 by rounding"
    assert scores.drift(many, many).min() == 0
    assert float(scores.drift(pictures, pictures.flip(0))[1]) == pytest.approx(0, abs=1e-6)
    assert float(scores.drift(pictures, pictures.flip(0))[0]) > 0.1


def test_photos_are_not_compared_with_themselves() -> None:
    photos = unit(3)
    pairs = [float(photos[i] @ photos[j]) for i in range(3) for j in range(i)]
    assert scores.self_similarity(photos) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert scores.self_similarity(photos[:1]) == 1


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [estimate(rng.normal(0.3, 0.1, size=6).tolist()) for _ in range(2000)]
    held = np.mean([each.low <= 0.3 <= each.high for each in found])
    assert 0.93 <= held <= 0.97


def test_pictures_of_one_subject_count_once() -> None:
    one_each = estimate([0.2, 0.4, 0.9])
    many = estimate([0.2] * 50 + [0.4] * 50 + [0.9] * 50, groups=["a"] * 50 + ["b"] * 50 + ["c"] * 50)
    assert (many.mean, many.low, many.high, many.num) == pytest.approx(
        (one_each.mean, one_each.low, one_each.high, one_each.num)
    )


def test_one_number_has_a_mean_and_no_interval() -> None:
    lonely = estimate([0.5])
    assert lonely.mean == 0.5
    assert np.isnan(lonely.low)
    assert str(lonely) == "0.500"
    assert str(estimate([0.4, 0.6])) == "0.500 ± 1.271"


def test_an_interval_ends_where_the_range_of_the_score_does() -> None:
    found = estimate([0.6, 0.9, 0.95], bounds=BOUNDS["dino"])
    assert found.high == 1.0 > found.mean > found.low > -1.0
    assert str(found) == "0.817 (0.346 to 1.000)"
