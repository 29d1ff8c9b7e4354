"""Weights in prompts as AUTOMATIC1111 writes them, and blends as Compel does.

    (word)        weight 1.1; nested ones multiply         (word:1.3)    weight 1.3
    [word]        weight 1 / 1.1                           \\( \\) \\[ \\]   the character itself
    ("a dog", "a cat").blend(0.7, 0.3)                     the weighted mean of what two prompts mean; a whole prompt

What a weight does is the text side's (`families/clip_weights.py`).
"""

import math
import re
from collections.abc import Callable

from dreambooth.errors import UserError
from dreambooth.prompt_weights import Blend, Fragment, WeightedPrompt

PARENTHESES = 1.1  # the weight of (word); of [word] its inverse
MAX_WEIGHT = 10.0
TOKEN = re.compile(r"\\[()\[\]\\]|[()\[\]]|[^()\[\]\\]+|\\")
NUMBER = re.compile(r"(.*):\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*", re.DOTALL)
NO_NUMBER = re.compile(r".*:([^\s:,]+)", re.DOTALL)
BLEND = re.compile(r"\(\s*(\"[^\"]*\"(?:\s*,\s*\"[^\"]*\")*)\s*\)\s*\.\s*blend\s*\(([^()]*)\)", re.DOTALL)
QUOTED = re.compile(r'"([^"]*)"')
CLOSED_BY = {"(": ")", "[": "]"}


def parse_weights(prompt: str) -> Blend:
    """Return a prompt's pieces with their weights.

    Raises UserError for a weight that is no number, a bracket that nothing closes, and what changes between the steps.
    """
    try:
        match = BLEND.fullmatch(prompt.strip())
        if match is None:
            return Blend((_parse(prompt),))
        prompts = tuple(_parse(text) for text in QUOTED.findall(match[1]))
        return Blend(prompts, _parts(match[2], len(prompts)))
    except ValueError as error:
        raise UserError(f"prompt {prompt!r}: {error}") from error


def check_blends(prompt: str) -> None:
    """Raise UserError for a blend within a longer prompt, which `parse_weights` takes for text, as recipes need it."""
    match = BLEND.search(prompt)
    if match is not None and match[0] != prompt.strip():
        raise UserError(
            f"prompt {prompt!r}: a blend must be the whole prompt; write the other words inside each of its quotes"
        )


def inside_blend(prompt: str, change: Callable[[str], str]) -> str:
    """Return a prompt changed, of a blend each of its prompts. Raises UserError for quotes that would end those."""
    match = BLEND.fullmatch(prompt.strip())
    if match is None:
        return change(prompt)

    def changed(quoted: re.Match[str]) -> str:
        text = change(quoted[1])
        if '"' in text:
            raise UserError(f"prompt {prompt!r}: a prompt of a blend cannot hold a double quote, as {text!r} does")
        return f'"{text}"'

    return prompt.replace(match[1], QUOTED.sub(changed, match[1]), 1)


def _parts(text: str, num_prompts: int) -> tuple[float, ...]:
    """Return the parts of a blend, which add up to 1. Raises ValueError."""
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"blend({text}): must be numbers with commas between them") from None
    if len(parts) != num_prompts:
        raise ValueError(f"blend({text}): {len(parts)} numbers for {num_prompts} prompts; write one for each")
    total = math.fsum(parts)
    if not math.isfinite(total) or total <= 0:
        raise ValueError(f"blend({text}): the numbers must add up to more than 0")
    return tuple(part / total for part in parts)


def _parse(prompt: str) -> WeightedPrompt:
    """Return the pieces of a prompt without blends. Raises ValueError."""
    pieces: list[Fragment] = []
    opened: list[tuple[str, int]] = []  # brackets that are still open, and the pieces before each
    is_explicit = False
    for token in TOKEN.findall(prompt):
        if token in CLOSED_BY:
            opened.append((token, len(pieces)))
        elif token in CLOSED_BY.values():
            bracket, first = opened.pop() if opened else ("", 0)
            if CLOSED_BY.get(bracket) != token:
                raise ValueError(f"a {token!r} that closes nothing; write \\{token} for the character")
            inside = pieces[first:]
            weight, inside, has_number = _weight(bracket, inside)
            is_explicit = is_explicit or has_number
            pieces[first:] = [Fragment(each.text, each.weight * weight) for each in inside]
        else:
            pieces.append(Fragment(token[-1] if token[0] == "\\" else token, 1.0))
    if opened:
        bracket = opened[-1][0]
        raise ValueError(f"a {bracket!r} that nothing closes; write \\{bracket} for the character")
    return WeightedPrompt(_joined(pieces), is_explicit)


def _weight(bracket: str, inside: list[Fragment]) -> tuple[float, list[Fragment], bool]:
    """Return the weight of a bracket, what it holds without the number, and whether there was one."""
    last = inside[-1].text if inside else ""
    match = NUMBER.fullmatch(last)
    if bracket == "[":
        if match is not None or "|" in last:
            raise ValueError(
                "[a:b:0.5] and [a|b] of other tools, which change the prompt between the steps, are not done here; "
                "write \\[ for a bracket"
            )
        return 1 / PARENTHESES, inside, False
    if match is None:
        if (other := NO_NUMBER.fullmatch(last)) is not None:
            raise ValueError(f"the weight {other[1]!r} is no number; write (word:1.3), or \\( for a parenthesis")
        return PARENTHESES, inside, False
    weight = float(match[2])
    if not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"the weight {match[2]} is not from 0 to {MAX_WEIGHT:g}; write \\( for a parenthesis")
    return weight, [*inside[:-1], Fragment(match[1], inside[-1].weight)], True


def _joined(pieces: list[Fragment]) -> tuple[Fragment, ...]:
    """Return the pieces with neighbours of one weight as one."""
    joined: list[Fragment] = []
    for piece in pieces:
        if joined and joined[-1].weight == piece.weight:
            joined[-1] = Fragment(joined[-1].text + piece.text, piece.weight)
        elif piece.text:
            joined.append(piece)
    return tuple(joined)
