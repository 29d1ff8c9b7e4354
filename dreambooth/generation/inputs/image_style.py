"""The style of an image made ready: by attention that a batch shares with it, or by an IP-Adapter that reads it.

StyleAligned (arXiv 2312.02133) inverts a real image by DDIM. Here it has the noise of the sampler's step, always the
same, as the reference of ControlNet's "reference-only" has it: that costs no passes and holds for every sampler.
Shapes: B batch, C channels, H/W latent height and width, N tokens, D width of an image's embedding.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from dreambooth.data.images import resize_and_crop, to_tensor
from dreambooth.errors import UserError
from dreambooth.families import Conditioning, DenoiserInputs, Family
from dreambooth.families.clip_weights import HIDDEN
from dreambooth.families.ip_adapter import IPAdapter, load_ip_adapter
from dreambooth.families.protocols import StyledDenoiser
from dreambooth.generation.inputs.image_refs import read_image
from dreambooth.generation.inputs.init_latents import noised
from dreambooth.generation.inputs.style_ref import StyleRef
from dreambooth.generation.models.loading import Model
from dreambooth.generation.schedulers import SamplerStep, scaled_input
from dreambooth.randomness import Randomness

CHOICE = "style"  # the name of the reference's noise


class Style(Protocol):
    """Hold what takes an image's style while a batch is sampled."""

    def applied(self, family: Family) -> contextlib.AbstractContextManager[None]:
        """Change the family's denoiser while the block runs."""
        ...

    def fields(self, num_unguided: int, num_images: int) -> Conditioning:
        """Return what it adds to the conditioning: that many samples of the unguided half, then one for each image."""
        ...

    def predict(self, family: Family, inputs: DenoiserInputs, step: SamplerStep) -> Tensor:
        """Return the prediction in this style."""
        ...


@dataclass(frozen=True)
class SharedStyle:
    """Share attention with an image: it goes through the network as the first sample of each batch."""

    x0_1CHW: Tensor
    noise_1CHW: Tensor
    conditioning: Conditioning
    weight: float

    @contextlib.contextmanager
    def applied(self, family: Family) -> Iterator[None]:
        assert isinstance(family, StyledDenoiser), "checked by check_style"
        with family.shared_attention(self.weight):
            yield

    def fields(self, num_unguided: int, num_images: int) -> Conditioning:
        return Conditioning({})

    def predict(self, family: Family, inputs: DenoiserInputs, step: SamplerStep) -> Tensor:
        own_1CHW = noised(step, self.x0_1CHW, self.noise_1CHW)
        own_1CHW = scaled_input(step.scheduler, own_1CHW, step.t)
        both = Conditioning.cat([self._first_row(inputs.conditioning), inputs.conditioning])
        noisy = torch.cat([own_1CHW.to(inputs.noisy_BCHW), inputs.noisy_BCHW])
        return family.predict(noisy, torch.cat([inputs.t_B[:1], inputs.t_B]), both)[1:]

    def _first_row(self, conditioning: Conditioning) -> Conditioning:
        """Return the reference's conditioning with the fields of the others'; what it lacks, as controls, is zero.

        Its text has as many parts as theirs (`clip_weights`): shorter, it would be padded with zeros, which are read.
        """
        first = conditioning.select([0])
        fields = {name: self.conditioning[name] if name in self.conditioning else 0 * first[name] for name in first}
        num_parts = first[HIDDEN].shape[1] // fields[HIDDEN].shape[1]
        return Conditioning(fields | {HIDDEN: fields[HIDDEN].repeat(1, num_parts, 1)}, self.conditioning.lengths)


@dataclass(frozen=True)
class AdapterStyle:
    """Read an image by an IP-Adapter, beside the text. image, none: what it makes of it and of none, [1, 1, (N,) D]."""

    adapter: IPAdapter
    image: Tensor
    none: Tensor
    weight: float

    @contextlib.contextmanager
    def applied(self, family: Family) -> Iterator[None]:
        assert isinstance(family, StyledDenoiser), "checked by check_style"
        with family.image_prompt(self.adapter, self.weight):
            yield

    def fields(self, num_unguided: int, num_images: int) -> Conditioning:
        return Conditioning({"image_embeds": torch.cat([self.none] * num_unguided + [self.image] * num_images)})

    def predict(self, family: Family, inputs: DenoiserInputs, step: SamplerStep) -> Tensor:
        return family.predict(inputs.noisy_BCHW, inputs.t_B, inputs.conditioning)


def check_style(model: Model, ref: StyleRef | None) -> None:
    """Raise UserError for a model of a family in which no style of an image can be taken."""
    if ref is not None and not isinstance(model.family, StyledDenoiser):
        raise UserError(f"--style {ref.image.name}: {model.name} is of a family whose attention cannot be shared")


def prepare_style(model: Model, ref: StyleRef | None, size: tuple[int, int]) -> Style | None:
    """Return an image whose style is taken, for a size (width, height); None where there is none or its weight is 0.

    Raises UserError for a file that cannot be read, or a family in which none can be taken; ModelError for an adapter.
    """
    check_style(model, ref)
    if ref is None or ref.weight == 0:
        return None
    image = read_image(ref.image, "--style")
    if ref.adapter is not None:
        return _adapter_style(model, ref.adapter, image, ref.weight)
    pixels_1CHW = to_tensor(resize_and_crop(image, size))[None]
    device = next(model.family.denoiser.parameters()).device
    x0_1CHW = model.family.encode_images(pixels_1CHW)[0].float().to(device)
    noise_1CHW = Randomness(0).normal(CHOICE, [0], tuple(x0_1CHW.shape[1:])).to(device)
    return SharedStyle(x0_1CHW, noise_1CHW, model.family.encode_prompts([""]), ref.weight)


@torch.no_grad()
def _adapter_style(model: Model, file: str, image: Image.Image, weight: float) -> AdapterStyle:
    if file not in model.networks:
        model.networks[file] = (load_ip_adapter(file), "")
    adapter: IPAdapter = model.networks[file][0]
    denoiser = model.family.denoiser
    with adapter.applied(denoiser, weight):
        of_image, of_none = adapter.embed(denoiser, image)
    own = next(denoiser.parameters())
    return AdapterStyle(adapter, of_image.to(own), of_none.to(own), weight)
