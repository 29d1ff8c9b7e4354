"""How often each timestep is trained on.

A timestep is a fraction of the way from image to noise, 0 to 1: sigma in flow matching, t / T in DDPM. A density says
how often each fraction is drawn, and a shift then moves all of them towards noise:

    fraction' = shift * fraction / (1 + (shift - 1) * fraction)        Esser et al. 2024, arXiv 2403.03206, eq. 23

Larger images need more noise before they are unrecognisable, so a model's shift often grows with their size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Size = tuple[int, int]  # of latents: height, width


def shifted(fraction: float, shift: float) -> float:
    """Move a fraction towards noise: 1 leaves it, 3 moves a half to three quarters."""
    return shift * fraction / (1 + (shift - 1) * fraction)


@dataclass(frozen=True)
class ShiftBySize:
    """Compute a shift from the size of latents: its logarithm grows linearly with the number of tokens.

    log_low at tokens_low, log_high at tokens_high, and on beyond both. The defaults are those of FLUX.1, which others
    took over: 0.5 at 256 tokens (256 x 256 pixels), 1.15 at 4096 (1024 x 1024), a shift of 1.6 to 3.2.
    patch: latents a token, along a side.
    """

    log_low: float = 0.5
    log_high: float = 1.15
    tokens_low: int = 256
    tokens_high: int = 4096
    patch: int = 2

    def __call__(self, size: Size) -> float:
        num_tokens = (size[0] // self.patch) * (size[1] // self.patch)
        slope = (self.log_high - self.log_low) / (self.tokens_high - self.tokens_low)
        return math.exp(self.log_low + slope * (num_tokens - self.tokens_low))


Shift = float | Callable[[Size], float]


def shift_at(shift: Shift, size: Size) -> float:
    """Return the shift for latents of this size."""
    return shift(size) if callable(shift) else shift


def _uniform(generator: np.random.Generator, num_timesteps: int, mean: float, std: float) -> float:
    """Draw every fraction equally often: one of the timesteps, and then a place within it."""
    return (int(generator.integers(num_timesteps)) + float(generator.random(dtype=np.float32))) / num_timesteps


def _logit_normal(generator: np.random.Generator, num_timesteps: int, mean: float, std: float) -> float:
    """Draw a fraction whose logit is normal (Esser et al. 2024, eq. 19): mostly the middle, which is hardest."""
    return 1 / (1 + math.exp(-(mean + std * generator.standard_normal())))


# Draw a fraction from: generator, number of timesteps, mean and standard deviation of the logit.
DENSITIES: dict[str, Callable[[np.random.Generator, int, float, float], float]] = {
    "uniform": _uniform,
    "logit_normal": _logit_normal,
    # Its name in ai-toolkit and sd-scripts, where it has no mean and `sigmoid_scale` for the standard deviation.
    "sigmoid": lambda generator, num_timesteps, mean, std: _logit_normal(generator, num_timesteps, 0.0, std),
}


@dataclass(frozen=True)
class TimestepDensity:
    """Hold how often each timestep is drawn.

    name: in `DENSITIES`. mean, std: of the logit, where the density has them. shift: a number, or a function of the
    latents' size.
    """

    name: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: Shift = 1.0

    def __post_init__(self) -> None:
        if self.name not in DENSITIES:
            raise ValueError(f"density {self.name!r} is not known; one of {', '.join(DENSITIES)}")

    def draw(self, generator: np.random.Generator, num_timesteps: int, size: Size) -> int:
        """Draw a timestep, 0 to num_timesteps - 1, for latents of this size (height, width)."""
        fraction = DENSITIES[self.name](generator, num_timesteps, self.mean, self.std)
        fraction = shifted(fraction, shift_at(self.shift, size))
        return min(int(num_timesteps * fraction), num_timesteps - 1)


UNIFORM = TimestepDensity()
