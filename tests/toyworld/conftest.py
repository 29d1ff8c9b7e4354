"""What tests of the second edition's later stages share."""

import random

import pytest

from toyworld.dataset import fit_codec
from toyworld.latents import to_pixels
from toyworld.second import picture
from toyworld.second.details import draw_detailed


@pytest.fixture(scope="session")
def codec():
    """Latents of the second edition's shape, fitted to few pictures."""
    rng = random.Random(0)
    return fit_codec(to_pixels([picture.render(draw_detailed(rng)[0]) for _ in range(60)]), 64, 8)
