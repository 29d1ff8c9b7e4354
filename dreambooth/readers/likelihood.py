"""How likely a reader holds an answer: the probability of the answer's tokens after the question's.

A probability ranks images where the text that is written says the same of all. Shapes: B images, T tokens, V tokens of
the vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dreambooth.questions import OPPOSITES
from dreambooth.readers.protocols import Reader


def num_answer_tokens(tokenizer: Any, prompt: str, answer: str) -> int:
    """Return how many tokens an answer adds to the prompt that it is written after."""
    return len(tokenizer(prompt + answer).input_ids) - len(tokenizer(prompt).input_ids)


@torch.no_grad()
def end_likelihood(network: Any, inputs: dict[str, Tensor], num_tokens: int) -> list[float]:
    """Return the log-probability of the last tokens of each text, given what stands before them."""
    logits_BTV = network(**inputs).logits[:, -num_tokens - 1 : -1]
    return _sum_of(logits_BTV, inputs["input_ids"][:, -num_tokens:])


@torch.no_grad()
def decoder_likelihood(network: Any, inputs: dict[str, Tensor], ids_BT: Tensor) -> list[float]:
    """Return the log-probability of tokens that a decoder of its own writes after what an encoder has read."""
    return _sum_of(network(**inputs, labels=ids_BT).logits, ids_BT)


def _sum_of(logits_BTV: Tensor, ids_BT: Tensor) -> list[float]:
    log_p_BT = logits_BTV.float().log_softmax(-1).gather(-1, ids_BT[..., None])[..., 0]
    values: list[float] = log_p_BT.double().sum(-1).tolist()
    return values


def answer_probability(reader: Reader, images: Sequence[Image.Image], question: str, answer: str) -> list[float]:
    """Return the probability of an answer, 0 to 1, of each image.

    Of yes against no where it is one of them, in any case; else that of writing just this answer. A capital letter at
    its beginning counts as the same.
    """
    if answer.lower() in OPPOSITES:
        answer = answer.lower()
    right = _either_case(reader, images, question, answer)
    if answer not in OPPOSITES:
        return [math.exp(value) for value in right]
    wrong = _either_case(reader, images, question, OPPOSITES[answer])
    margins = torch.tensor(right, dtype=torch.float64) - torch.tensor(wrong, dtype=torch.float64)
    values: list[float] = margins.sigmoid().tolist()
    return values


def _either_case(reader: Reader, images: Sequence[Image.Image], question: str, answer: str) -> list[float]:
    """Return the log-probability of an answer, written with a small letter or a capital one."""
    other = answer[:1].swapcase() + answer[1:]
    each = [reader.likelihood(images, question, text) for text in dict.fromkeys((answer, other))]
    found: list[float] = torch.tensor(each, dtype=torch.float64).logsumexp(0).tolist()
    return [min(value, 0.0) for value in found]
