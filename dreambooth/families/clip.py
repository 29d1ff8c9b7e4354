"""The common part of families with CLIP's tokenizer and text encoder. Shapes: B prompts, N tokens."""

import bisect
import logging
import re
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor

from dreambooth.errors import ModelError, UserError

logger = logging.getLogger(__name__)

NUM_BYTE_PIECES = 514  # every CLIP tokenizer has 256 bytes, each also as the end of a word, and two special tokens

CLIP_SIZE = 49408  # entries of CLIP's tokenizer; "robot" has id 8797, "firefly" 33997, "sks" 48136
COMMON = 0.8


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Token ids [B, N], padded to the tokenizer's length; of a longer prompt as much as `fit` keeps."""
    spelled = [spell_out(tokenizer, fit(tokenizer, prompt)[0]) for prompt in prompts]
    return tokenizer(spelled, padding="max_length", return_tensors="pt").input_ids


def fit(tokenizer: Any, prompt: str) -> tuple[str, str]:
    """A prompt as far as the tokenizer's length goes, by whole words, and the rest, which the model does not read."""
    limit = tokenizer.model_max_length - 2  # start and end
    if len(token_ids(tokenizer, prompt)) <= limit:
        return prompt, ""
    ends = [match.end() for match in re.finditer(r"\S+", prompt)]
    num_words = bisect.bisect_right(ends, limit, key=lambda end: len(token_ids(tokenizer, prompt[:end])))
    kept = prompt[: ends[num_words - 1]] if num_words else ""
    return kept, prompt[len(kept) :].strip()


def rare_words(tokenizer: Any) -> list[str]:
    """Words of three or four consonants that are one token each, the rarest first: they mean next to nothing.

    CLIP's ids are in the order of the merges, and so of how often a word was met.
    """
    rare = [entry for entry in tokenizer.get_vocab().items() if not is_common(tokenizer, entry[1])]
    by_id = sorted(rare, key=lambda entry: -entry[1])
    return [match[1] for token, _ in by_id if (match := re.fullmatch(r"([b-df-hj-np-tv-xz]{3,4})</w>", token))]


def is_common(tokenizer: Any, token_id: int) -> bool:
    """Whether a token of CLIP's own vocabulary is among the four fifths that were met most."""
    return len(tokenizer) > CLIP_SIZE // 2 and token_id < COMMON * CLIP_SIZE


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Without start and end."""
    return tokenizer(spell_out(tokenizer, text), add_special_tokens=False).input_ids


def spell_out(tokenizer: Any, prompt: str) -> str:
    """A learned word of several vectors as its tokens: "<dog>" becomes "<dog> <dog>_1 <dog>_2"."""
    return TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)


@torch.no_grad()
def add_word(tokenizer: Any, text_encoder: Any, word: str, num_vectors: int, initializer_token: str) -> list[int]:
    """Give the tokenizer a word of `num_vectors` tokens, each embedded like `initializer_token`; returns their ids.

    Raises UserError for a word that it already has, and for a start word that is not one token.
    """
    if len(token_ids(tokenizer, word)) == 1:
        raise UserError(
            f"subject.identifier: {word!r} is a word of this model already, and this method learns a new one; "
            f"write <{word.strip('<>')}>, say"
        )
    start_ids = token_ids(tokenizer, initializer_token)
    if len(start_ids) != 1:
        raise UserError(
            f"method.start_word: {initializer_token!r} is {len(start_ids)} tokens to this tokenizer; "
            "name a word that is one token"
        )
    tokens = [word, *(f"{word}_{number}" for number in range(1, num_vectors))]
    tokenizer.add_tokens(tokens)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    text_encoder.resize_token_embeddings(max(len(tokenizer), text_encoder.config.vocab_size), mean_resizing=False)
    embedding = text_encoder.get_input_embeddings().weight
    embedding[ids] = embedding[start_ids]
    return ids


def pool_at_the_end(tokenizer: Any, text_encoder: Any) -> None:
    """Let the pooled state be that of the end token.

    Old configs leave its id out, and then transformers takes the token with the largest id, which a new word's is.
    """
    for module in text_encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id


def check_length(tokenizer: Any, text_encoder: Any) -> None:
    """Raises ModelError for a tokenizer that fills prompts up to more tokens than the text encoder has places for."""
    length, places = tokenizer.model_max_length, text_encoder.config.max_position_embeddings
    if not 2 < length <= places:
        raise ModelError(
            f"tokenizer/tokenizer_config.json: model_max_length is {length}, text_encoder/config.json: "
            f"max_position_embeddings is {places}: it must be as large, or smaller"
        )


def check_tokenizer(num_entries: int, num_embeddings: int) -> None:
    """Raises ModelError for a tokenizer that lacks its vocabulary or is too large for the text encoder.

    One that is merely smaller works, but is hardly the one that the text encoder was trained with: that is told.
    """
    if num_entries < NUM_BYTE_PIECES or num_entries > num_embeddings:
        raise ModelError(
            f"tokenizer has {num_entries} entries, the text encoder {num_embeddings} (text_encoder/config.json: "
            "vocab_size): the tokenizer folder is incomplete or of another model"
        )
    if num_entries < num_embeddings:
        logger.warning(f"tokenizer has {num_entries} entries, the text encoder {num_embeddings}")
