"""The common part of families with CLIP's tokenizer and text encoder. Shapes: B prompts, N tokens."""

import itertools
import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreambooth.errors import ModelError, UserError
from dreambooth.families.token_limit import split_at_limit

logger = logging.getLogger(__name__)

NUM_BYTE_PIECES = 514  # every CLIP tokenizer has 256 bytes, each also as the end of a word, and two special tokens

CLIP_SIZE = 49408  # entries of CLIP's tokenizer; "robot" has id 8797, "firefly" 33997, "sks" 48136
COMMON = 0.8  # the fraction of these that counts as common, from the most frequent on


class ClipTokens:
    """The methods of a `TextSide` that only ask CLIP's tokenizer; of two tokenizers, the first."""

    tokenizer: Any

    @property
    def max_tokens(self) -> int:
        return self.tokenizer.model_max_length

    def tokenize(self, text: str) -> list[int]:
        return token_ids(self.tokenizer, text)

    def count_tokens(self, prompt: str) -> int:
        return len(self.tokenize(prompt)) + 2

    def truncate(self, prompt: str) -> tuple[str, str]:
        return truncate(self.tokenizer, prompt)

    def rare_words(self) -> list[str]:
        return rare_words(self.tokenizer)

    def is_common_token(self, token_id: int) -> bool:
        return is_common_token(self.tokenizer, token_id)


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Return token ids [B, N], padded to the tokenizer's length; of a longer prompt those that `truncate` keeps."""
    read = [expand_words(tokenizer, truncate(tokenizer, prompt)[0]) for prompt in prompts]
    return tokenizer(read, padding="max_length", return_tensors="pt").input_ids


def truncate(tokenizer: Any, prompt: str) -> tuple[str, str]:
    """Split a prompt into the whole words that fit the tokenizer's length, and the rest, which the model ignores."""
    limit = tokenizer.model_max_length - 2  # start and end
    return split_at_limit(prompt, limit, lambda text: len(token_ids(tokenizer, text)))


def rare_words(tokenizer: Any) -> list[str]:
    """Return words of three or four consonants that are one token each, the rarest first: they mean next to nothing.

    CLIP's ids are in the order of the merges, and so of how often a word was met.
    """
    rare = [entry for entry in tokenizer.get_vocab().items() if not is_common_token(tokenizer, entry[1])]
    by_id = sorted(rare, key=lambda entry: -entry[1])
    return [match[1] for token, _ in by_id if (match := re.fullmatch(r"([b-df-hj-np-tv-xz]{3,4})</w>", token))]


def is_common_token(tokenizer: Any, token_id: int) -> bool:
    """Return whether a token of CLIP's own vocabulary is among the most frequent four fifths."""
    return len(tokenizer) > CLIP_SIZE // 2 and token_id < COMMON * CLIP_SIZE


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text, without start and end."""
    return tokenizer(expand_words(tokenizer, text), add_special_tokens=False).input_ids


def expand_words(tokenizer: Any, prompt: str) -> str:
    """Replace each learned word of several vectors by its tokens: "<dog>" becomes "<dog> <dog>_1 <dog>_2".

    In any case of letters, as the tokenizer matches them; diffusers' own function finds none with capitals in it.
    """
    added = tokenizer.get_added_vocab()
    several = [word for word in added if f"{word}_1" in added]
    said = {token.lower() for token in tokenizer.tokenize(prompt)} if several else set()
    for word in several:
        if word.lower() in said:
            further = itertools.takewhile(added.__contains__, (f"{word}_{number}" for number in itertools.count(1)))
            tokens = " ".join([word, *further])
            prompt = tokens.join(re.split(re.escape(word), prompt, flags=re.IGNORECASE))
    return prompt


@torch.no_grad()
def add_word(tokenizer: Any, text_encoder: Any, word: str, num_vectors: int, start_words: Sequence[str]) -> list[int]:
    """Add a word of several tokens to the tokenizer, each embedded as the mean of `start_words`; return their ids.

    Without start words the embedding is random: for trained words, which are loaded afterwards.

    Raises UserError for a word that it already has, and for a start word that is not one token.
    """
    if len(token_ids(tokenizer, word)) == 1:
        raise UserError(
            f"subject.identifier: {word!r} is a word of this model already, and this method learns a new one; "
            f"write <{word.strip('<>')}>, say"
        )
    start_ids = [single_token(token_ids(tokenizer, each), each) for each in start_words]
    tokens = [word, *(f"{word}_{number}" for number in range(1, num_vectors))]
    tokenizer.add_tokens(tokens)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    text_encoder.resize_token_embeddings(max(len(tokenizer), text_encoder.config.vocab_size), mean_resizing=False)
    embedding = text_encoder.get_input_embeddings().weight
    if start_ids:
        embedding[ids] = embedding[start_ids].mean(0)
    return ids


def single_token(token_ids: list[int], start_word: str) -> int:
    """Return the id of the token that a start word is. Raises UserError if it is several."""
    if len(token_ids) != 1:
        raise UserError(
            f"method.start_word: {start_word!r} is {len(token_ids)} tokens to this tokenizer; "
            "name a word that is one token"
        )
    return token_ids[0]


def pool_at_end_token(tokenizer: Any, text_encoder: Any) -> None:
    """Make the pooled state that of the end token.

    Old configs leave its id out, and then transformers takes the token with the largest id, which a new word's is.
    """
    for module in text_encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id


def check_length(tokenizer: Any, text_encoder: Any) -> None:
    """Raise ModelError if the tokenizer pads prompts to more tokens than the text encoder has position embeddings."""
    length, num_positions = tokenizer.model_max_length, text_encoder.config.max_position_embeddings
    if not 2 < length <= num_positions:
        raise ModelError(
            f"tokenizer/tokenizer_config.json: model_max_length is {length}, text_encoder/config.json: "
            f"max_position_embeddings is {num_positions}: the first must not be larger than the second"
        )


def check_tokenizer(num_entries: int, num_embeddings: int, part: str = "text_encoder") -> None:
    """Raise ModelError for a tokenizer that lacks its vocabulary or is too large for the text encoder.

    Warns of one that is merely smaller: it works, but the text encoder was hardly trained with it. part: its folder.
    """
    if num_entries < NUM_BYTE_PIECES or num_entries > num_embeddings:
        raise ModelError(
            f"{part.replace('text_encoder', 'tokenizer')} has {num_entries} entries, the text encoder {num_embeddings} "
            f"({part}/config.json: vocab_size): the tokenizer folder is incomplete or of another model"
        )
    if num_entries < num_embeddings:
        logger.warning(f"tokenizer has {num_entries} entries, the text encoder {num_embeddings}")
