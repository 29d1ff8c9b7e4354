"""LPIPS is used where it is installed: its interface, on a stand-in for the package that this machine need not have."""

import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from dreambooth.errors import ModelError
from dreambooth.metrics.perceptual import load_lpips
from dreambooth.metrics.subject import SubjectScorer, load_encoders

ROOT = Path(__file__).parents[1]


class MeanDifference(torch.nn.Module):
    """Called as lpips.LPIPS is: two batches of pixels in [-1, 1], distances [B, 1, 1, 1] out."""

    def __init__(self, net: str) -> None:
        super().__init__()
        assert net == "alex"

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).abs().mean(dim=(1, 2, 3), keepdim=True)


def install(monkeypatch: pytest.MonkeyPatch, network: object) -> None:
    package = types.ModuleType("lpips")
    package.LPIPS = network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)


def test_all_pairs_are_measured_on_pixels_between_minus_1_and_1(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, MeanDifference)
    perceptual = load_lpips("cpu")
    assert perceptual is not None
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 16), "white")
    assert perceptual.distance([black, white, black]).tolist() == [[0, 2, 0], [2, 0, 2], [0, 2, 0]]


def test_images_of_the_class_are_measured_by_cosines_whether_it_is_there_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Quality compares their diversity with their drift, which is a cosine distance."""
    install(monkeypatch, MeanDifference)
    vit = str(ROOT / "checkpoints" / "toyworld-encoders" / "vit")
    photos = [Image.new("RGB", (64, 64), colour) for colour in ("red", "white")]
    with_it, without = (SubjectScorer(load_encoders(vit, None, lpips=lpips), photos) for lpips in (True, False))
    assert with_it.encoders.lpips is not None
    assert with_it.of_class(photos)["div"] == without.of_class(photos)["div"] == without.among(photos)
    assert with_it.among(photos) == pytest.approx([4 / 3, 4 / 3])


def test_without_the_package_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert load_lpips("cpu") is None


def test_weights_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(net: str) -> None:
        raise OSError("no network")

    install(monkeypatch, offline)
    with pytest.raises(ModelError, match="AlexNet"):
        load_lpips("cpu")
