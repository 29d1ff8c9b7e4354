"""Full fine-tuning: every weight of the denoiser, and the text encoders on request (arXiv 2208.12242, section 3.2)."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.families.clip import single_token
from dreambooth.methods.base import MethodSettings


def attach(family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    """Make the networks trainable; with `trains_identifier_rows_only` of the token embedding only the words' rows.

    Raises UserError for start words of several tokens, and for an identifier of several that has start words.
    """
    for word, start_words in zip(settings.words, settings.start_words, strict=False):
        if start_words:
            _start_as(family, word, start_words)
    trained: dict[str, nn.Module] = {"denoiser": family.denoiser}
    for number, text_encoder in enumerate(family.text_encoders):
        text_encoder.requires_grad_(settings.train_text_encoder).train(settings.train_text_encoder)
        if settings.train_text_encoder:
            trained[f"text_encoder_{number}"] = text_encoder
            if settings.trains_identifier_rows_only:
                rows = [row for word in settings.words for row in family.tokenize(word)]
                train_rows_only(cast(Any, text_encoder).get_input_embeddings().weight, rows)
    family.denoiser.requires_grad_(True).train()
    return trained


@torch.no_grad()
def _start_as(family: Family, word: str, start_words: tuple[str, ...]) -> None:
    """Let the embedding of `word` start as the mean of the start words'."""
    row, *further = family.tokenize(word)
    if further:
        raise UserError(
            f"subject.identifier: {word!r} is {1 + len(further)} tokens to this tokenizer, whose embeddings are other "
            "words' too; take one of a single token, or set method.start_word to null"
        )
    start_rows = [single_token(family.tokenize(each), each) for each in start_words]
    for text_encoder in family.text_encoders:
        weight_VD = cast(Any, text_encoder).get_input_embeddings().weight
        weight_VD[row] = weight_VD[start_rows].mean(0)


def train_rows_only(weight_VD: Tensor, rows: list[int]) -> None:
    """Zero the gradient of all other rows from now on. [V, D]: vocabulary and width."""
    trains_V1 = torch.zeros(len(weight_VD), 1)
    trains_V1[rows] = 1
    weight_VD.register_hook(lambda gradient_VD: gradient_VD * trains_V1.to(gradient_VD.device, non_blocking=True))
