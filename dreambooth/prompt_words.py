"""Words of a prompt as CLIP's tokenizer divides it, so that "sks" is found in "SKS, a dog" and not in "asks".

The tokenizer normalizes to NFC and small letters, and divides a text into runs of letters, single digits, runs of other
characters, and the English endings 's, 't ...
"""

import re
import unicodedata

WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)

# Syntax of other tools in a prompt, each with an example; here it reaches the model as plain text.
WEIGHTS = re.compile(r"[(\[][^()\[\]]*:\s*[-+]?[\d.]+\s*[)\]]")  # (sks:1.2), [a:b:0.5] of A1111 and ComfyUI
WILDCARD = re.compile(r"__[\w/-]+__")  # __colours__
FOREIGN_SYNTAX = (
    re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE),  # <lora:name:1>
    re.compile(r"\bembedding:\S+"),  # embedding:name of ComfyUI
    re.compile(r"\b(?:BREAK|AND)\b"),  # keywords of A1111
    re.compile(r"[\w)](?:\+\+|--)+(?!\w)"),  # sks++ of Compel and InvokeAI
)


def find_words(text: str, words: str) -> list[tuple[int, int]]:
    """Return start and end of each occurrence in NFC `text` of `words`, an identifier for example, as tokens.

    Punctuation at the ends of `words` may touch other punctuation: "<sks>" is found in "(<sks>)".
    """
    parts = [unicodedata.normalize("NFC", match[0]).lower() for match in WORD.finditer(words)]
    if not parts:
        return []
    found: list[tuple[int, int]] = []
    matches = list(WORD.finditer(text))
    for first in range(len(matches) - len(parts) + 1):
        span = _span(matches[first : first + len(parts)], parts)
        if span is not None and (not found or span[0] >= found[-1][1]):
            found.append(span)
    return found


def _span(matches: list[re.Match[str]], parts: list[str]) -> tuple[int, int] | None:
    """Return start and end of these words of a text if they are `parts`, else None."""
    found = [match[0].lower() for match in matches]
    start, end = matches[0].start(), matches[-1].end()
    if not parts[0][0].isalnum() and found[0].endswith(parts[0]):
        start += len(found[0]) - len(parts[0])
        found[0] = parts[0]
    if not parts[-1][0].isalnum() and found[-1].startswith(parts[-1]):
        end -= len(found[-1]) - len(parts[-1])
        found[-1] = parts[-1]
    return (start, end) if found == parts else None


def has_words(text: str, words: str) -> bool:
    """Return whether the tokenizer reads `words` somewhere in `text`."""
    return bool(find_words(unicodedata.normalize("NFC", text), words))


def replace_words(text: str, words: str, by: str) -> str:
    """Return `text` with `by` wherever the tokenizer reads `words`."""
    text = unicodedata.normalize("NFC", text)
    for start, end in reversed(find_words(text, words)):
        text = text[:start] + by + text[end:]
    return text


def foreign_syntax_warning(name: str, prompt: str, reads_weights: bool = False) -> str | None:
    """Return a warning of other tools' syntax in a prompt; None where there is none.

    reads_weights: the prompt is for sampling, which reads weights and wildcards; training reads plain text.
    """
    patterns = FOREIGN_SYNTAX if reads_weights else (WEIGHTS, *FOREIGN_SYNTAX, WILDCARD)
    pieces = [match[0] for pattern in patterns for match in pattern.finditer(prompt)]
    if not pieces:
        return None
    hints = {"<": "--lora FILE:WEIGHT lays a LoRA over the model", "embedding:": "--embedding FILE adds an embedding"}
    hint = "".join(f"; {text}" for start, text in hints.items() if any(piece.startswith(start) for piece in pieces))
    called = "keywords" if reads_weights else "weights and keywords"
    return f"{name}: {called} of other tools are plain text here; leave them out: {', '.join(pieces)}{hint}"


def with_article(noun: str) -> str:
    """Return a noun behind "a", or "an" before a vowel."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
