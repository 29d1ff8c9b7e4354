"""The text side of families with Qwen's tokenizer: prompts stand within a chat template, as one message of the user.

Its vocabulary is in the order of the merges, and so of how often a piece was met; 100256 of 151643 entries are those of
a tokenizer of mostly English text, the others are of further languages. There "robot" has id 12305 and "backpack"
33136, while "sks" is two tokens. A word within a sentence is another token than the same word alone: it has the blank
before it.
"""

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth.errors import ModelError
from dreambooth.families.conditioning import Conditioning
from dreambooth.families.token_limit import split_at_limit

NUM_BYTE_PIECES = 256
QWEN_SIZE = 151643  # entries, without the special tokens
COMMON = 50000  # ids below it are words that everybody uses
TEMPLATE = (  # of the code of diffusers' pipelines, as is the number of its tokens that are dropped
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
NUM_DROPPED = 34
BLANK = "Ġ"  # as byte-level BPE writes the blank before a word


class QwenTokens:
    """The methods of a `TextSide` that only ask Qwen's tokenizer."""

    THINKING: ClassVar[bool] = True  # whether the template leaves room for the model's thoughts

    tokenizer: Any

    @property
    def max_tokens(self) -> int:
        return 512

    def with_template(self, prompt: str) -> str:
        """Return the text that the text encoder reads for a prompt: a message and the beginning of its answer."""
        message = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=self.THINKING
        )

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of words as they stand within a sentence."""
        return self.tokenizer(f" {text.strip()}", add_special_tokens=False).input_ids

    def count_tokens(self, prompt: str) -> int:
        return len(self.tokenizer(self.with_template(prompt), add_special_tokens=False).input_ids)

    def truncate(self, prompt: str) -> tuple[str, str]:
        return split_at_limit(prompt, self.max_tokens, self.count_tokens)

    def token_ids(self, prompts: list[str], device: torch.device) -> Iterator[Tensor]:
        """Yield the token ids of as much of each prompt as is read, in its template, [1, N] each."""
        for prompt in prompts:
            text = self.with_template(self.truncate(prompt)[0])
            yield self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(device)

    def blank_prompts(self, prompts: list[str], *size: int) -> dict[str, Conditioning]:
        """Return the conditioning of each prompt with zeros of this size for a token."""
        lengths = {prompt: min(self.count_tokens(prompt), self.max_tokens) for prompt in prompts}
        return {prompt: Conditioning.from_rows(prompt=[torch.zeros(n, *size)]) for prompt, n in lengths.items()}

    def rare_words(self) -> list[str]:
        rare = [entry for entry in self.tokenizer.get_vocab().items() if not self.is_common_token(entry[1])]
        by_id = sorted(rare, key=lambda entry: -entry[1])
        words = [
            match[1] for token, _ in by_id if (match := re.fullmatch(rf"{BLANK}([b-df-hj-np-tv-xz]{{3,4}})", token))
        ]
        return [word for word in words if "xx" not in word]  # what is met on the web's other side

    def is_common_token(self, token_id: int) -> bool:
        return len(self.tokenizer) > QWEN_SIZE // 2 and token_id < COMMON


class TemplateTokens(QwenTokens):
    """The same where prompts stand in the template of Qwen-Image, whose beginning is dropped once it is encoded."""

    def with_template(self, prompt: str) -> str:
        return TEMPLATE.format(prompt)

    def count_tokens(self, prompt: str) -> int:
        return super().count_tokens(prompt) - NUM_DROPPED


def check_tokenizer(tokenizer: Any, num_embeddings: int) -> None:
    """Raise ModelError for a tokenizer that lacks its vocabulary or template, or is too large for the text encoder."""
    if not NUM_BYTE_PIECES <= len(tokenizer) <= num_embeddings:
        raise ModelError(
            f"tokenizer has {len(tokenizer)} entries, the text encoder {num_embeddings} (text_encoder/config.json: "
            "vocab_size): the tokenizer folder is incomplete or of another model"
        )
    if not tokenizer.chat_template:
        raise ModelError("tokenizer: has no chat template (chat_template.jinja), in which prompts of this family stand")
