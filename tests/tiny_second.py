"""The second edition's base at tiny size."""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from toyworld.base import BaseSettings, build_modules
from toyworld.dataset import fit_codec
from toyworld.editions import SECOND
from toyworld.latents import LinearCodec, to_pixels
from toyworld.second import picture
from toyworld.second.details import draw_detailed

TINY = replace(SECOND, unet_widths=(16, 16), text_layers=1)


def random_modules() -> nn.ModuleDict:
    """Return text encoder and denoiser, none of whose branches is silent: words count from the first step."""
    modules = build_modules(BaseSettings(Path(), TINY))
    with torch.no_grad():
        for name, parameter in modules["unet"].named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                torch.nn.init.xavier_uniform_(parameter)
    return modules


@cache
def tiny_codec() -> LinearCodec:
    """Return a codec of the second edition's latents, fitted to few pictures."""
    rng = random.Random(0)
    return fit_codec(to_pixels([picture.render(draw_detailed(rng)[0]) for _ in range(60)]), 64, 8)
