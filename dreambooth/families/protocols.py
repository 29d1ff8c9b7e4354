"""What a model family is to the rest of the program: a few methods around the networks."""

from collections.abc import Iterable
from typing import Any, Protocol

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dreambooth.schedules import Schedule

Condition = dict[str, Tensor]  # what the denoiser is told besides the noisy picture; each tensor [B, ...]


class Family(Protocol):
    """A text-to-image diffusion model. Shapes: B batch, C channels, H/W height and width."""

    schedule: Schedule
    tokenizer: Any  # of several, the first
    scheduler_config: dict[str, Any]  # of the base's own sampler; any diffusers scheduler can be made from it

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer: what a method trains."""
        ...

    @property
    def text_encoders(self) -> list[nn.Module]:
        """All of them; a method may train them too."""
        ...

    @property
    def vae(self) -> Any:
        """Between pixels and latents; it never trains."""
        ...

    @property
    def resolution(self) -> int:
        """Side of the pictures that the base was made for, pixels."""
        ...

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent, along a side."""
        ...

    @property
    def size_multiple(self) -> int:
        """Pixels. Sides that are multiples of it the denoiser halves, level by level, without a remainder."""
        ...

    def set_scheduler(self, changes: dict[str, Any]) -> None:
        """Change settings of the base's sampler, and the schedule with them."""
        ...

    def encode_images(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels in [-1, 1] to mean and standard deviation of the scaled latents, both [B, C, H, W]."""
        ...

    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Scaled latents to pixels in about [-1, 1], [B, 3, H, W]."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture this large (pixels). Raises UserError for a size that does not fit."""
        ...

    def condition(self, prompts: list[str]) -> Condition:
        """What the denoiser is told about each prompt, of a long one by as much as it reads (`clip.fit`)."""
        ...

    def cache_prompts(self, prompts: Iterable[str]) -> None:
        """Let `condition` know these prompts, and no others, by heart: frozen text encoders are then done."""
        ...

    def size_conditioning(self, size_crop_B6: Tensor) -> Condition:
        """What is told besides the prompt of how pictures were cut: `data.size_crop_of`. May be nothing."""
        ...

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        """The denoiser's prediction for noisy latents at timesteps `t_B`, [B, C, H, W]."""
        ...

    def add_word(self, word: str, num_vectors: int, initializer_token: str) -> list[list[int]]:
        """Add a word of several tokens, each embedded like `initializer_token`; their ids in each text encoder.

        Raises UserError for a word that is known already, and for a start word that is not one token.
        """
        ...

    def token_ids(self, text: str) -> list[int]:
        """What the tokenizer makes of a text, without start and end."""
        ...

    def pipeline(self) -> DiffusionPipeline:
        """The same live networks as a diffusers pipeline, for export."""
        ...
