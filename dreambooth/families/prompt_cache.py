"""Prompts that are encoded once and kept, so that frozen text encoders can be freed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from dreambooth.families.conditioning import Conditioning


@dataclass
class PromptCache(ABC):
    """The part of a `TextSide` that all families share: they say only how a prompt is encoded."""

    prompt_cache: dict[str, Conditioning] = field(default_factory=dict, init=False)  # by prompt, of one sample each

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module: ...

    @abstractmethod
    def run_text_encoders(self, prompts: list[str]) -> Conditioning:
        """Encode prompts. The result for one does not depend on its neighbours."""

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Encode prompts, or look them up where they are cached."""
        if not self.prompt_cache:
            return self.run_text_encoders(prompts)
        known = Conditioning.cat([self.prompt_cache[prompt] for prompt in prompts])
        return known.to(dtype=next(self.denoiser.parameters()).dtype)

    @property
    def text_digest(self) -> str:
        return ""

    def num_text_weights(self) -> int:
        return 0

    def num_text_bytes(self, dtype: torch.dtype) -> int:
        return 0

    def cache_blank_prompts(self, prompts: list[str]) -> None:  # noqa: B027 - most families have nothing to do
        """Do nothing: text encoders that may train are run."""

    @torch.no_grad()
    def cache_prompts(
        self,
        prompts: Iterable[str],
        encode: Callable[[str], Conditioning] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Encode each prompt by itself, by `encode` or else by the text encoders.

        Nothing is kept in the folder, as what text encoders know may change.
        """
        encode = encode or (lambda prompt: self.run_text_encoders([prompt]))
        self.prompt_cache = {prompt: encode(prompt) for prompt in dict.fromkeys(prompts)}
