"""How the text encoders read a request's prompts: plain, as in training, or with weights, blends and any length."""

import re
from collections.abc import Iterable

from dreambooth.errors import UserError
from dreambooth.families import Conditioning, Family
from dreambooth.families.protocols import ReadsWeights
from dreambooth.generation.prompting.weight_syntax import check_blends, parse_weights
from dreambooth.generation.request import PLAIN, ImageRequest
from dreambooth.generation.sampler import Encode
from dreambooth.prompt_weights import Blend
from dreambooth.prompt_words import has_words

WEIGHTED = "weighted"
ESCAPED = re.compile(r"\\([()\[\]])")


def find_encoding(family: Family, prompts: Iterable[str]) -> str:
    """Return how a model reads these prompts: plain if nothing in them asks for more.

    Raises UserError for weights that are wrong, or that this model cannot read, and for a blend in a longer prompt.
    """
    prompts = list(prompts)
    for prompt in prompts:
        check_blends(prompt)
    if isinstance(family, ReadsWeights):
        needs_more = any(_needs_more(family, prompt) for prompt in prompts)
        return WEIGHTED if needs_more else PLAIN
    for prompt in prompts:
        if _is_explicit(prompt):
            raise UserError(
                f"prompt {prompt!r}: {type(family).__name__} reads prompts as plain text; weights and blends are for "
                "families with CLIP's text encoder alone: leave them out"
            )
    return PLAIN


def as_typed(family: Family, prompt: str) -> str:
    """Return a prompt for a recipe; for a model without weights \\( is the parenthesis itself."""
    return prompt if isinstance(family, ReadsWeights) else ESCAPED.sub(r"\1", prompt)


def _needs_more(family: ReadsWeights, prompt: str) -> bool:
    blend = parse_weights(prompt)
    return not blend.is_plain or blend.prompts[0].text != prompt or family.num_parts(blend) > 1


def _is_explicit(prompt: str) -> bool:
    """Return whether a prompt has a weight or a blend in numbers; brackets alone are text to other families."""
    try:
        return parse_weights(prompt).is_explicit
    except UserError:
        return False


def num_parts(family: Family, request: ImageRequest) -> int:
    """Return in how many parts the longer of a request's two prompts is read; images of one batch need the same."""
    if request.text_encoding == PLAIN or not isinstance(family, ReadsWeights):
        return 1
    return max(family.num_parts(parse_weights(prompt)) for prompt in (request.prompt, request.settings.negative_prompt))


def text_of(family: Family, request: ImageRequest) -> str:
    """Return what a model reads of a request's prompt, without weights; of a blend the first of its prompts."""
    if request.text_encoding == PLAIN:
        return family.truncate(request.prompt)[0]
    return parse_weights(request.prompt).prompts[0].text


def encoder(family: Family, text_encoding: str) -> Encode | None:
    """Return what encodes prompts in this way; None: the family's own, as in training. Raises UserError."""
    if text_encoding == PLAIN:
        return None
    if not isinstance(family, ReadsWeights):
        raise UserError(f"text_encoding={text_encoding}: {type(family).__name__} reads prompts as plain text")
    reads: ReadsWeights = family

    def encode(prompts: list[str]) -> Conditioning:
        blends: list[Blend] = [parse_weights(prompt) for prompt in prompts]
        return reads.encode_weighted(blends)

    return encode


def cut_warning(family: Family, name: str, prompt: str, identifiers: Iterable[str] = ()) -> str | None:
    """Return a warning for a prompt that is longer than the model reads, else None.

    Raises UserError where an identifier stands in what is dropped.
    """
    kept, dropped = family.truncate(prompt)
    if not dropped:
        return None
    num_tokens = family.count_tokens(prompt)
    length = f"{name} has {num_tokens} tokens with start and end; this model reads {family.max_tokens}"
    for identifier in identifiers:
        if has_words(prompt, identifier) and not has_words(kept, identifier):
            raise UserError(
                f"{length}, and the identifier {identifier!r} comes later: move it to the front, or shorten it"
            )
    return f"{length} and drops: {dropped!r}"
