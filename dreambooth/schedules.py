"""The noise schedule: each timestep's amounts of image and noise, and the target of the prediction.

    noisy = alpha * x0 + sigma * noise

Everything else follows from the two coefficients: with alpha^2 + sigma^2 = 1 this is DDPM (Ho et al. 2020, eq. 4),
whose targets are epsilon = noise or v = alpha * noise - sigma * x0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D);
with alpha + sigma = 1 it is flow matching, whose target is noise - x0 (Lipman et al. 2022, arXiv 2210.02747).
Tables are float32 whatever the training precision: in bfloat16 sigma at the first timesteps would be 0. Shapes: T
timesteps, B batch, C channels, H/W latent height and width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dreambooth.timesteps import UNIFORM, Size, TimestepDensity

TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x0, noise, alpha, sigma: noise,
    "v_prediction": lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
    "flow": lambda x0, noise, alpha, sigma: noise - x0,
}
X0_FROM: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda prediction, noisy, alpha, sigma: (noisy - sigma * prediction) / alpha,
    "v_prediction": lambda prediction, noisy, alpha, sigma: alpha * noisy - sigma * prediction,
    "flow": lambda prediction, noisy, alpha, sigma: (noisy - sigma * prediction) / (alpha + sigma),
}


@dataclass(frozen=True)
class Schedule:
    """Hold the coefficients by timestep, float32 [T].

    prediction: 'epsilon', 'v_prediction' or 'flow'. density: how often each timestep is trained on; prior_density: on
    class images, where that differs.
    """

    alpha_T: Tensor
    sigma_T: Tensor
    prediction: str
    density: TimestepDensity = UNIFORM
    prior_density: TimestepDensity | None = None

    def __post_init__(self) -> None:
        if self.prediction not in TARGETS:
            raise ValueError(f"prediction type {self.prediction!r} is not known; one of {', '.join(TARGETS)}")

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod_T: Tensor, prediction: str) -> "Schedule":
        """Make a schedule from DDPM's cumulative product: alpha^2 = alphas_cumprod, sigma^2 = 1 - alphas_cumprod."""
        alphas_cumprod_T = alphas_cumprod_T.float()
        return cls(alphas_cumprod_T.sqrt(), (1 - alphas_cumprod_T).sqrt(), prediction)

    @classmethod
    def flow(cls, num_timesteps: int = 1000, density: TimestepDensity = UNIFORM) -> "Schedule":
        """Make the schedule of straight paths: sigma evenly from 1 / T to 1, alpha = 1 - sigma.

        A sampler's shift is not in it: that says which of these timesteps are used, and the density's how often each is
        trained on.
        """
        sigma_T = torch.arange(1, num_timesteps + 1, dtype=torch.float32) / num_timesteps
        return cls(1 - sigma_T, sigma_T, "flow", density)

    @property
    def num_timesteps(self) -> int:
        """Return T; timesteps are 0 .. T - 1, the last one the noisiest."""
        return len(self.alpha_T)

    def to(self, device: torch.device) -> "Schedule":
        """Copy the tables to a device, so that looking up a timestep needs no synchronisation."""
        return replace(self, alpha_T=self.alpha_T.to(device), sigma_T=self.sigma_T.to(device))

    def draw_timestep(self, generator: np.random.Generator, size: Size, is_prior: bool = False) -> int:
        """Draw a timestep to train on, for latents of this size (height, width)."""
        density = self.prior_density if is_prior and self.prior_density is not None else self.density
        return density.draw(generator, self.num_timesteps, size)

    def network_time(self, t_B: Tensor) -> Tensor:
        """Return the network's input for timesteps: for DDPM the timesteps themselves, for flow 1000 sigma."""
        return 1000 * self.sigma_T.to(t_B.device)[t_B] if self.prediction == "flow" else t_B

    def coefficients(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) at these timesteps, float32 [B, 1, 1, 1], on the device of `t_B`."""
        picked = (table_T.to(t_B.device)[t_B].view(-1, 1, 1, 1) for table_T in (self.alpha_T, self.sigma_T))
        return next(picked), next(picked)

    def snr(self, t_B: Tensor) -> Tensor:
        """Return the signal-to-noise ratio alpha^2 / sigma^2, float32 [B]."""
        alpha, sigma = self.coefficients(t_B)
        return (alpha / sigma).square().flatten()

    def add_noise(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Return noisy = alpha * x0 + sigma * noise."""
        alpha, sigma = self.coefficients(t_B)
        return alpha * x0_BCHW + sigma * noise_BCHW

    def target(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Return the target of the prediction, given x0 and noise."""
        return TARGETS[self.prediction](x0_BCHW, noise_BCHW, *self.coefficients(t_B))

    def x0_from(self, prediction_BCHW: Tensor, noisy_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Return the x0 that a prediction implies; undefined for epsilon where alpha is 0."""
        return X0_FROM[self.prediction](prediction_BCHW, noisy_BCHW, *self.coefficients(t_B))
