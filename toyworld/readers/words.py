"""The tokenizer of the models that write about the toy world: each of its words is one token, as OPT's has them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from toyworld.readers import questions
from toyworld.tokenizer import learn_merges

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BEGIN, PAD, IMAGE = "</s>", "<pad>", "<image>"  # OPT begins and ends with the same token
MAX_LENGTH = 64


@lru_cache(maxsize=1)
def build_writer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of captions, questions and answers."""
    return build_words(questions.vocabulary())


def build_words(vocabulary: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer in OPT's form: each word is one token, anything else falls into letters."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    split = ByteLevel(add_prefix_space=True).pre_tokenize_str
    merges = learn_merges(sorted({piece for word in vocabulary for piece, _ in split(word)}), end="")
    pieces = [BEGIN, PAD, *sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    tokenizer.decoder = Decoder()
    tokenizer.post_processor = TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, vocab[BEGIN])])
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=BEGIN, unk_token=BEGIN, pad_token=PAD,
        model_max_length=MAX_LENGTH, padding_side="left",
    )  # fmt: skip
    found.add_tokens([IMAGE], special_tokens=True)
    return found
