"""LPIPS is used where it is installed: its interface, on a stand-in for the package that this machine need not have."""

import sys
import types

import pytest
import torch
from PIL import Image

from dreambooth.errors import ModelError
from dreambooth.metrics.perceptual import load_lpips


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


def test_without_the_package_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert load_lpips("cpu") is None


def test_weights_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(net: str) -> None:
        raise OSError("no network")

    install(monkeypatch, offline)
    with pytest.raises(ModelError, match="AlexNet"):
        load_lpips("cpu")
