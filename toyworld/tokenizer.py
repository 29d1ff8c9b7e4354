"""A CLIPTokenizer for the toy world: each of its words is one token, anything else falls into byte pieces.

The vocabulary also holds rare words that no caption uses. Their embeddings mean nothing yet, so one of them can become
the name of a DreamBooth subject.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from toyworld import captions

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MAX_LENGTH = 32  # tokens, begin and end included; the longest caption takes 30
RARE_WORDS = ("sks", "ohwx", "xyz", "zwx", "olis", "ukj", "phl", "qwv", "vtq", "krz", "mjx", "bnf")
# Words that users write though no caption does; one token each keeps prompts short.
COMMON_WORDS = ("my", "his", "her", "toy", "small", "big", "in", "front", "next", "to", "wearing", "hat", "red", "new")
END_OF_WORD = "</w>"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def learn_merges(words: list[str], end: str = END_OF_WORD) -> list[tuple[str, str]]:
    """Return byte-pair merges (Sennrich et al. 2016) until every word is one piece; ties go to the greater pair.

    end: what marks a word's last letter.
    """
    pieces = [[*word[:-1], word[-1] + end] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for word in pieces for pair in pairwise(word))
        if not counts:
            return merges
        pair = max(counts, key=lambda candidate: (counts[candidate], candidate))
        merges.append(pair)
        pieces = [_merge(word, pair) for word in pieces]


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def build_tokenizer(vocabulary: set[str] | None = None) -> CLIPTokenizer:
    """Return a tokenizer that has each word of `vocabulary` (None: the shipped base's) as one token.

    The same on every call.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    words = sorted((captions.vocabulary() if vocabulary is None else vocabulary) | set(RARE_WORDS) | set(COMMON_WORDS))
    merges = learn_merges(words)
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(pair) for pair in merges), BEGIN, END]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
    with tempfile.TemporaryDirectory() as folder:  # use the form that users load, the saved one
        tokenizer.save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(Path(folder))
