"""A model family to the rest of the program: four small protocols around its networks.

Latent codec, text side, denoiser and noise process; a function takes the one that it needs. Nothing outside this folder
knows whether the denoiser is a UNet or a transformer, or which fields its conditioning has.
Shapes: B batch, C channels, H/W height and width (pixels or latents).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from dreambooth.families.conditioning import Conditioning, DenoiserInputs
from dreambooth.families.guidance import Guidance
from dreambooth.prompt_weights import Blend
from dreambooth.schedules import Schedule
from dreambooth.timesteps import Shift, Size


class LatentCodec(Protocol):
    """Convert pixels to latents and back. It never trains."""

    @property
    def vae(self) -> Any: ...

    @property
    def vae_scale_factor(self) -> int:
        """Return the number of pixels for each latent along a side."""
        ...

    def encode_images(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the scaled latents of pixels in [-1, 1], both [B, C, H, W]."""
        ...

    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Return the pixels of scaled latents, in about [-1, 1], [B, 3, H, W]."""
        ...

    @property
    def size_step(self) -> int:
        """Return the pixels that image sides must be a multiple of."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, H, W) of an image's latents. Raises UserError for a size in pixels that does not fit."""
        ...


class TextSide(Protocol):
    """Turn prompts into the conditioning that the denoiser reads."""

    tokenizer: Any  # of several, the first

    @property
    def text_encoders(self) -> list[nn.Module]:
        """Return the text encoders that a method may train."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Encode each prompt; of one longer than the tokenizer's limit, as much as is read of it."""
        ...

    def cache_prompts(
        self,
        prompts: Iterable[str],
        encode: Callable[[str], Conditioning] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Let `encode_prompts` answer for these prompts, and no others, without the text encoders.

        encode: encodes one prompt, or knows what the text encoders make of it; None: they encode. folder: where text
        encoders that never train keep what they have encoded, for the next time.
        """
        ...

    def cache_blank_prompts(self, prompts: list[str]) -> None:
        """Let `encode_prompts` answer with tensors of the right shapes, where text encoders never train.

        What a step takes can then be planned without loading them.
        """
        ...

    @property
    def text_digest(self) -> str:
        """Return the SHA-256 of text encoders that never train, and so are not among `text_encoders`; empty for none.

        They are loaded only where a prompt is to be encoded.
        """
        ...

    def num_text_weights(self) -> int:
        """Return how many weights those text encoders have."""
        ...

    def num_text_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of those text encoders in a dtype, or as they are quantized."""
        ...

    @property
    def max_tokens(self) -> int:
        """Return how many tokens of a prompt are read, start and end included."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without start and end."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """Return how many tokens a whole prompt has, start and end included."""
        ...

    def truncate(self, prompt: str) -> tuple[str, str]:
        """Split a prompt into the part that is read, by whole words, and the rest, which is dropped."""
        ...

    def rare_words(self) -> list[str]:
        """Return words of one token that mean next to nothing, the rarest first: good identifiers."""
        ...

    def is_common_token(self, token_id: int) -> bool:
        """Return whether a token is so frequent in texts that its meaning would hinder an identifier."""
        ...

    def add_word(self, word: str, num_vectors: int, start_words: Sequence[str]) -> list[list[int]]:
        """Add a word of several tokens, each embedded as the mean of `start_words`; return their ids by text encoder.

        Raises UserError for a word that is known already, and for a start word that is not one token.
        """
        ...


@runtime_checkable
class ReadsWeights(Protocol):
    """Read weights, blends and prompts of more tokens than the text encoder has positions: a text side may do so."""

    def encode_weighted(self, prompts: Sequence[Blend]) -> Conditioning:
        """Encode each prompt, all to the length of the longest."""
        ...

    def num_parts(self, prompt: Blend) -> int:
        """Return in how many parts a prompt is read, each as long as the text encoder reads at once."""
        ...


class Denoiser(Protocol):
    """Predict the schedule's target with the network that a method trains."""

    @property
    def denoiser(self) -> nn.Module:
        """Return the UNet or transformer."""
        ...

    @property
    def guidance(self) -> Guidance:
        """Return how its predictions with and without a prompt are combined."""
        ...

    @property
    def has_idle_weights(self) -> bool:
        """Return whether some of its weights do not act on the prediction, so that they get no gradient."""
        ...

    @property
    def resolution(self) -> int:
        """Return the side of the images that it was trained on, pixels."""
        ...

    @property
    def size_multiple(self) -> int:
        """Return the pixels that image sides should be a multiple of, so that they halve evenly at each level."""
        ...

    @property
    def target_groups(self) -> Mapping[str, tuple[str, ...]]:
        """Return groups of modules for `method.targets`: by name, the ends of the modules' names.

        A group covers the denoiser and the text encoders.
        """
        ...

    def size_conditioning(self, size_crop_B6: Tensor) -> Conditioning:
        """Return the conditioning on how images were cut (`latents.size_crop_of`); without fields if there is none."""
        ...

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the schedule's target from noisy latents, [B, C, H, W].

        t_B: as samplers count: of DDPM 0 .. T - 1, of flow matching 1000 sigma (`Schedule.network_time`).
        """
        ...


@runtime_checkable
class InpaintingDenoiser(Protocol):
    """Let a base that was trained to fill masks be sampled; a family without such bases need not follow it."""

    @property
    def is_inpainting(self) -> bool:
        """Return whether the network reads a mask and the image around it beside noisy latents."""
        ...

    def inpainting_conditioning(self, pixels_BCHW: Tensor, redrawn_B1HW: Tensor) -> Conditioning:
        """Return what such a network reads of an image in [-1, 1] of which these pixels (bool) are redrawn."""
        ...


@runtime_checkable
class ControlledDenoiser(Protocol):
    """Let ControlNets add to the network; a family for which there are none need not follow it.

    control_class: of its ControlNets. controls_read_prompts: whether in guidance one reads the prompts alone, and what
    it adds then holds for the half without a prompt too; else it reads both.
    """

    control_class: ClassVar[type[Any]]
    controls_read_prompts: ClassVar[bool]

    @property
    def denoiser(self) -> nn.Module: ...

    def control_condition(self, network: Any, kind: str, map_1CHW: Tensor) -> Conditioning:
        """Return what a ControlNet reads of a map in [-1, 1], a conditioning of one sample; it is made once."""
        ...

    def control(self, network: Any, condition: Conditioning, weight: float, inputs: DenoiserInputs) -> Conditioning:
        """Return what a ControlNet adds, times `weight`, as fields by part and block.

        condition: of `control_condition`, a row for each sample. `predict` reads the fields of several, joined.
        """
        ...


@runtime_checkable
class StyledDenoiser(Protocol):
    """Let the style of an image be taken; a family whose attention cannot be shared need not follow it."""

    def shared_attention(self, weight: float) -> AbstractContextManager[None]:
        """Let every sample of a batch attend to the first one as well, while the block runs."""
        ...

    def image_prompt(self, adapter: Any, weight: float) -> AbstractContextManager[None]:
        """Let the network read the field `image_embeds` of its conditioning by an IP-Adapter, while the block runs."""
        ...


class NoiseProcess(Protocol):
    """Hold the noise schedule and the settings of the base's sampler."""

    schedule: Schedule  # add_noise, target, training timesteps
    scheduler_config: dict[str, Any]  # of the base's own sampler

    def set_scheduler(self, changes: dict[str, Any]) -> None:
        """Change settings of the base's sampler, and the schedule with them."""
        ...

    def sampler_config(self, size: Size, num_steps: int) -> dict[str, Any]:
        """Return the settings of a sampler of any class, for latents of this size (height, width) in so many steps."""
        ...

    @property
    def even_sigmas(self) -> bool:
        """Return whether its pipeline has the Euler of flow matching step evenly from sigma 1 to 1 / steps.

        Else the sampler spaces its steps itself, down to the last training timestep.
        """
        ...

    @property
    def sampler_shift(self) -> Shift:
        """Return how the base's sampler moves its timesteps towards noise; 1: not at all."""
        ...


@runtime_checkable
class NamedByAuthors(Protocol):
    """Name the transformer's matrices as its authors do, as files of other programs may; a family need not.

    comfyui_prefix: of a LoRA for ComfyUI: "diffusion_model." before the authors' names, "transformer." before those of
    diffusers. unread_by_diffusers: the layouts that diffusers loads nothing of, without an error.
    """

    comfyui_prefix: ClassVar[str]
    unread_by_diffusers: ClassVar[tuple[str, ...]]

    @property
    def denoiser(self) -> nn.Module: ...

    def original_modules(self) -> Mapping[str, tuple[str, ...]]:
        """Return, by the authors' name of a matrix, the modules of diffusers whose outputs it has one after another."""
        ...

    def swapped_modules(self) -> frozenset[str]:
        """Return the modules of diffusers of whose outputs the authors' matrix has the second half first."""
        ...


class Family(LatentCodec, TextSide, Denoiser, NoiseProcess, Protocol):
    """A text-to-image diffusion model."""

    @property
    def architecture(self) -> str:
        """Return its name in Stability AI's Model Metadata Standard, as metadata of files state it."""
        ...

    @property
    def layouts(self) -> tuple[str, ...]:
        """Return the export formats that there are for it beside diffusers' own, by name."""
        ...

    def components(self) -> dict[str, nn.Module]:
        """Return denoiser and text encoders that may train, by their names in the pipeline: "unet", "text_encoder"."""
        ...

    def pipeline_arguments(self, noise_BCHW: Tensor, guidance_scale: float) -> dict[str, Any]:
        """Return the arguments by which its pipeline starts from this noise, and is guided so."""
        ...

    def pipeline(self) -> DiffusionPipeline:
        """Return the same live networks as a diffusers pipeline, for export."""
        ...
