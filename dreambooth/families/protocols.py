"""A model family to the rest of the program: four small protocols around its networks.

Latent codec, text side, denoiser and noise process; a function takes the one that it needs. Nothing outside this folder
knows whether the denoiser is a UNet or a transformer, or which fields its conditioning has.
Shapes: B batch, C channels, H/W height and width (pixels or latents).
"""

from collections.abc import Iterable
from typing import Any, Protocol

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dreambooth.families.conditioning import Conditioning
from dreambooth.schedules import Schedule


class LatentCodec(Protocol):
    """Pixels to latents and back. It never trains."""

    @property
    def vae(self) -> Any: ...

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent, along a side."""
        ...

    def encode_images(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the scaled latents of pixels in [-1, 1], both [B, C, H, W]."""
        ...

    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Return the pixels of scaled latents, in about [-1, 1], [B, 3, H, W]."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, H, W) of an image's latents. Raises UserError for a size in pixels that does not fit."""
        ...


class TextSide(Protocol):
    """Prompts to what the denoiser reads."""

    tokenizer: Any  # of several, the first

    @property
    def text_encoders(self) -> list[nn.Module]:
        """All of them; a method may train them."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Encode each prompt; of one longer than the tokenizer's limit, as much as is read of it."""
        ...

    def cache_prompts(self, prompts: Iterable[str]) -> None:
        """Let `encode_prompts` answer for these prompts, and no others, without the text encoders."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without start and end."""
        ...

    def add_word(self, word: str, num_vectors: int, initializer_token: str) -> list[list[int]]:
        """Add a word of several tokens, each embedded like `initializer_token`; return their ids by text encoder.

        Raises UserError for a word that is known already, and for an initializer that is not one token.
        """
        ...


class Denoiser(Protocol):
    """Return the network that a method trains."""

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer."""
        ...

    @property
    def resolution(self) -> int:
        """Side of the images that it was trained on, pixels."""
        ...

    @property
    def size_multiple(self) -> int:
        """Pixels. Sides that are multiples of it are halved, level by level, without a remainder."""
        ...

    def size_conditioning(self, size_crop_B6: Tensor) -> Conditioning:
        """Return what it reads of how images were cut (`latents.size_crop_of`); without fields where it reads none."""
        ...

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the schedule's target from noisy latents, [B, C, H, W].

        t_B: as samplers count: of DDPM 0 .. T - 1, of flow matching 1000 sigma (`Schedule.network_time`).
        """
        ...


class NoiseProcess(Protocol):
    """How noise is added and taken away."""

    schedule: Schedule  # add_noise, target, training timesteps
    scheduler_config: dict[str, Any]  # of the base's own sampler; any diffusers scheduler can be made from it

    def set_scheduler(self, changes: dict[str, Any]) -> None:
        """Change settings of the base's sampler, and the schedule with them."""
        ...


class Family(LatentCodec, TextSide, Denoiser, NoiseProcess, Protocol):
    """A text-to-image diffusion model."""

    def pipeline(self) -> DiffusionPipeline:
        """Return the same live networks as a diffusers pipeline, for export."""
        ...
