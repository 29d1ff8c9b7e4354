"""The second edition's base at tiny size."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from toyworld.base import BaseSettings, build_modules
from toyworld.editions import SECOND

TINY = replace(SECOND, unet_widths=(16, 16), text_layers=1)


def random_modules() -> nn.ModuleDict:
    """Text encoder and denoiser none of whose branches is silent, so that words count from the first step."""
    modules = build_modules(BaseSettings(Path(), TINY))
    with torch.no_grad():
        for name, parameter in modules["unet"].named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                torch.nn.init.xavier_uniform_(parameter)
    return modules
