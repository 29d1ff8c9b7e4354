"""Cut prompts to the number of tokens that a text encoder reads, by whole words."""

import bisect
import re
from collections.abc import Callable


def split_at_limit(prompt: str, limit: int, count: Callable[[str], int]) -> tuple[str, str]:
    """Split a prompt into the first whole words that have at most `limit` tokens, and the rest, which is not read."""
    if count(prompt) <= limit:
        return prompt, ""
    ends = [match.end() for match in re.finditer(r"\S+", prompt)]
    num_words = bisect.bisect_right(ends, limit, key=lambda end: count(prompt[:end]))
    kept = prompt[: ends[num_words - 1]] if num_words else ""
    return kept, prompt[len(kept) :].strip()
