"""A tokenizer of Qwen's kind for the toy world: bytes, each of its words behind a blank one token, a chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toyworld.tokenizer import COMMON_WORDS, RARE_WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BLANK = "\u0120"  # as byte-level BPE writes the blank before a word
BREAK = "\u010a"  # and a line break
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
ROLES = ("user", "assistant")  # words of the template, without a blank before them
MAX_LENGTH = 64  # tokens, the template included
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_flow_tokenizer(vocabulary: set[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that has each word of `vocabulary`, and the rare words, as one token. The same every time."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    words = sorted(vocabulary | set(RARE_WORDS) | set(COMMON_WORDS))
    # The roles come last: a pair of theirs inside a word would be joined before the word's own.
    spelled = [[BLANK, *word] for word in words if word.isascii()] + [[*role] for role in ROLES]
    merges = dict.fromkeys(("".join(pieces[:end]), pieces[end]) for pieces in spelled for end in range(1, len(pieces)))
    tokens = dict.fromkeys([*sorted(ByteLevel.alphabet()), *map("".join, merges)])
    model = BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=list(merges))
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, additional_special_tokens=[START],
        model_max_length=MAX_LENGTH, padding_side="right",
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def with_template(tokenizer: PreTrainedTokenizerFast, caption: str) -> str:
    """Return what the text encoder reads for a caption."""
    message = [{"role": "user", "content": caption}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
