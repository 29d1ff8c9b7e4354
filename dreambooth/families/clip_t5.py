"""The text side of families that read prompts by CLIP and by T5 (Raffel et al. 2020, arXiv 1910.10683), both frozen.

CLIP's vocabulary is in the order of how often a word was met, so it judges identifiers. T5 reads longer prompts than
CLIP, and the limit is T5's; what CLIP does not read of a long prompt, T5 still does.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from dreambooth.errors import ModelError
from dreambooth.families import clip
from dreambooth.families.inspection import read_json
from dreambooth.families.token_limit import split_at_limit

NUM_SPECIAL = 3  # every T5 tokenizer has padding, end and unknown


class ClipT5Tokens(clip.ClipTokens):
    """The methods of a `TextSide` that only ask the tokenizers."""

    MAX_TOKENS: ClassVar[int]

    @property
    @abstractmethod
    def t5_tokenizer(self) -> Any: ...

    @property
    def max_tokens(self) -> int:
        return self.MAX_TOKENS

    def count_tokens(self, prompt: str) -> int:
        """Return T5's tokens, the end included; it has no start."""
        return len(self.t5_tokenizer(prompt).input_ids)

    def truncate(self, prompt: str) -> tuple[str, str]:
        return split_at_limit(prompt, self.max_tokens, self.count_tokens)

    def t5_ids(self, prompts: list[str]) -> Tensor:
        """Return T5's token ids of as much of each prompt as is read, padded to the limit, [B, N]."""
        read = [self.truncate(prompt)[0] for prompt in prompts]
        return self.t5_tokenizer(read, padding="max_length", max_length=self.max_tokens, return_tensors="pt").input_ids


def check_text(
    folder: Path, clip_parts: tuple[str, ...], t5_part: str, tokenizers: tuple[Any, ...], config: Any
) -> None:
    """Raise ModelError for tokenizers that are not their text encoders', and texts that the transformer cannot read.

    tokenizers: of CLIP's parts, then of T5. config: of the transformer.
    """
    *clips, t5 = (read_json(folder / part / "config.json") for part in (*clip_parts, t5_part))
    for part, own, tokenizer in zip(clip_parts, clips, tokenizers, strict=False):
        clip.check_tokenizer(len(tokenizer), own.get("vocab_size", 0), part)
    if not NUM_SPECIAL < len(tokenizers[-1]) <= t5.get("vocab_size", 0):
        raise ModelError(
            f"{folder}: {t5_part.replace('text_encoder', 'tokenizer')} has {len(tokenizers[-1])} entries, "
            f"{t5_part}/config.json: vocab_size is {t5.get('vocab_size')}: the tokenizer folder is incomplete or of "
            "another model"
        )
    if (width := config.joint_attention_dim) != t5.get("d_model"):
        raise ModelError(
            f"{folder}: transformer/config.json: joint_attention_dim is {width}, {t5_part}/config.json: d_model is "
            f"{t5.get('d_model')}: they must agree"
        )
    pooled = sum(own.get("projection_dim" if len(clips) > 1 else "hidden_size", 0) for own in clips)
    if config.pooled_projection_dim != pooled:
        raise ModelError(
            f"{folder}: transformer/config.json: pooled_projection_dim is {config.pooled_projection_dim}, the pooled "
            f"states of {' and '.join(clip_parts)} have {pooled}: they must agree"
        )
