"""Embeddings under the names of every tool, read into one form: a word's vectors for each text encoder.

    AUTOMATIC1111, .pt        string_to_param: {"*": [V, D]}
    AUTOMATIC1111, kohya      emb_params [V, D]; of XL clip_l [V, 768] and clip_g [V, 1280]
    diffusers, this toolkit   the word itself: [D] or [V, D]

The word of a prompt is the one in the file or, as in AUTOMATIC1111, the file's name.
Shapes: V vectors, D width of the text encoder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.errors import ModelError, UserError, first_line
from dreambooth.families import Family
from dreambooth.methods.textual_inversion import CLIP_NAMES, put
from dreambooth.methods.weight_files import read_weights

EMB_PARAMS, STRING_TO_PARAM, ANY_WORD = "emb_params", "string_to_param", "*"


def add_file(family: Family, path: Path, word: str | None = None) -> str:
    """Add the word of a file to a family, and return it. word: in the place of the file's own.

    Raises ModelError for a file that is no embedding or of another base, UserError for a word that the model has.
    """
    own_word, vectors = read_vectors(path)
    word = word or own_word or path.stem
    check_fit(family, path, vectors)
    added = {token.lower() for token in family.tokenizer.get_added_vocab()}  # it tells no capitals from small letters
    if len(family.tokenize(word)) == 1 or word.lower() in added:
        other = f"<{word.strip('<>')}-2>"
        raise UserError(f"{path}: {word!r} is a word of this model already; name another: --embedding {path}:{other}")
    try:
        put(family, word, vectors)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{path}: {word} cannot be loaded into this base: {first_line(error)}") from error
    return word


def read_vectors(path: Path) -> tuple[str | None, list[Tensor]]:
    """Return a file's own word, if it has one, and its vectors, [V, D] for each text encoder. Raises ModelError."""
    content, metadata = read_weights(path)
    word, found = _find(content)
    if not found or not all(isinstance(each, Tensor) and each.ndim in (1, 2) and each.numel() for each in found):
        held = ", ".join(map(repr, [*content][:3])) or "nothing"
        raise ModelError(f"{path}: no embedding of a word (it holds {held})")
    vectors = [torch.atleast_2d(each.detach().float()) for each in found]
    if not all(bool(each.isfinite().all()) for each in vectors):
        raise ModelError(f"{path}: holds numbers that are not finite")
    return metadata.get("word", word), vectors


def _find(content: Mapping[str, Any]) -> tuple[str | None, list[Any]]:
    """Return the word that is named, and what should be its vectors; none for a file of another kind."""
    if STRING_TO_PARAM in content:
        params = content[STRING_TO_PARAM]
        return None, [*params.values()][:1] if isinstance(params, Mapping | nn.ParameterDict) else []
    if EMB_PARAMS in content:
        return None, [content[EMB_PARAMS]]
    if set(CLIP_NAMES) <= content.keys():
        return None, [content[name] for name in CLIP_NAMES]
    if len(content) == 1:
        ((word, vectors),) = content.items()
        return (str(word) if word != ANY_WORD else None), [vectors]
    return None, []


def check_fit(family: Family, path: Path, vectors: list[Tensor]) -> None:
    """Raise ModelError for vectors of another base's text encoders, by their number and widths."""
    encoders: list[Any] = family.text_encoders
    here = [encoder.get_input_embeddings().weight.shape[1] for encoder in encoders]
    theirs = [each.shape[1] for each in vectors]
    if here != theirs:
        raise ModelError(
            f"{path}: vectors of width {_listed(theirs)}, where this base's text encoders have {_listed(here)}; it was "
            "trained on another (768 is Stable Diffusion 1.x, 1024 2.x, 768 and 1280 XL)"
        )


def _listed(widths: list[int]) -> str:
    return " and ".join(map(str, widths))
