"""An image to start from, as latents: with noise at the first step, and kept beside the mask at every step.

Shapes: B batch, C channels, H/W latent height and width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth.data.images import to_tensor
from dreambooth.families import Conditioning, Family
from dreambooth.families.protocols import InpaintingDenoiser
from dreambooth.generation.inputs.canvas import Canvas, redrawn_latents, redrawn_pixels
from dreambooth.generation.schedulers import SamplerStep, initial_sigma


@dataclass(frozen=True)
class InitLatents:
    """Hold the latents that sampling starts from, and which of them are redrawn.

    x0_1CHW: scaled latents of the image. strength: the part of the steps that is taken, 0 to 1. redrawn_11HW: bool;
    None: all are. conditioning: of one sample, what an inpainting base reads of the image; of others without fields.
    """

    x0_1CHW: Tensor
    strength: float
    redrawn_11HW: Tensor | None
    conditioning: Conditioning

    def first_step(self, num_steps: int) -> int:
        """Return the number of sampler steps to leave out: all of strength 0, none of 1, else at least one is taken."""
        return num_steps - min(num_steps, math.ceil(round(num_steps * self.strength, 6)))

    def begin(self, step: SamplerStep, noise_BCHW: Tensor) -> Tensor:
        """Return the latents at the first timestep taken: noise alone for strength 1, as without an image."""
        if self.strength == 1:
            return noise_BCHW * initial_sigma(step.scheduler)
        return noised(step, self.x0_1CHW, noise_BCHW)

    def keep(self, step: SamplerStep, latents: Tensor, noise_BCHW: Tensor) -> Tensor:
        """Return latents with the image's own, as noisy as they are by now, wherever it is not redrawn.

        So does RePaint (Lugmayr et al. 2022, arXiv 2201.09865, eq. 8), here with the same noise at each step.
        """
        if self.redrawn_11HW is None:
            return latents
        own_BCHW = noised(step, self.x0_1CHW, noise_BCHW)
        return torch.where(self.redrawn_11HW, latents, own_BCHW)


def noised(step: SamplerStep, x0_1CHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """Return latents as noisy as the sampler has them now, for the timestep that is taken next, [B, C, H, W].

    After the last one without noise.
    """
    x0_BCHW = x0_1CHW.expand_as(noise_BCHW)
    if step.number == step.num_steps:
        return x0_BCHW
    t_B = step.t.expand(len(noise_BCHW))
    if hasattr(step.scheduler, "scale_noise"):  # what diffusers' samplers of flow matching call it
        noisy_BCHW: Tensor = step.scheduler.scale_noise(x0_BCHW, t_B, noise_BCHW)
    else:
        noisy_BCHW = step.scheduler.add_noise(x0_BCHW, noise_BCHW, t_B)
    return noisy_BCHW


def encode_canvas(family: Family, canvas: Canvas, strength: float) -> InitLatents:
    """Return an image to start from as the family's latents, and what an inpainting base reads of it.

    Such a base sees what is kept, and draws it too; of a plain one the kept latents are put back at each step.
    """
    device = next(family.denoiser.parameters()).device
    pixels_1CHW = to_tensor(canvas.image)[None]
    x0_1CHW = family.encode_images(pixels_1CHW)[0].float().to(device)
    if isinstance(family, InpaintingDenoiser) and family.is_inpainting:
        redrawn = torch.ones_like(pixels_1CHW[:, :1]) > 0 if canvas.mask is None else redrawn_pixels(canvas.mask)
        return InitLatents(x0_1CHW, strength, None, family.inpainting_conditioning(pixels_1CHW, redrawn))
    if canvas.mask is None:
        return InitLatents(x0_1CHW, strength, None, Conditioning({}))
    redrawn_11HW = redrawn_latents(canvas.mask, family.vae_scale_factor).to(device)
    return InitLatents(x0_1CHW, strength, redrawn_11HW, Conditioning({}))


def unmasked_conditioning(family: Family, height: int, width: int) -> Conditioning:
    """Return what an inpainting base reads where there is no image: a grey one, all of it redrawn. height, width: of
    latents. Of other bases without fields.
    """
    if not (isinstance(family, InpaintingDenoiser) and family.is_inpainting):
        return Conditioning({})
    grey_13HW = torch.zeros(1, 3, height * family.vae_scale_factor, width * family.vae_scale_factor)
    return family.inpainting_conditioning(grey_13HW, torch.ones_like(grey_13HW[:, :1], dtype=torch.bool))
