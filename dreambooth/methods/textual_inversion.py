"""New words: rows of the text encoder's embedding, each for a subject, trained while all else stays as it is.

Textual inversion: Gal et al. 2022 (arXiv 2208.01618). Pivotal tuning, the same with a LoRA of the denoiser: Roich et
al. 2021 (arXiv 2106.05744). A word of several vectors is several tokens, `word`, `word_1` ..., as diffusers names them.
Shapes: V vectors, D width of the text encoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from peft import TrainableTokensConfig, inject_adapter_in_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dreambooth.errors import ModelError, UserError, first_line
from dreambooth.families import Family
from dreambooth.methods import adapter_files, adapters, init_from
from dreambooth.methods.base import MethodSettings

CLIP_NAMES = ("clip_l", "clip_g")
WORD_FILE = "learned_embeds.safetensors"  # the name that diffusers looks for


def attach(family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    """Add the words, each vector of a word initialized as the mean of its start words'; nothing else trains.

    Raises UserError for a word that the tokenizer already has, and for a start word of several tokens.
    """
    adapters.freeze(family, settings.base_dtype)
    return _add_words(family, settings)


def attach_pivotal(family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    """Attach the words and a LoRA of the denoiser. Raises UserError as both of them do."""
    without_text = replace(settings, train_text_encoder=False)
    trained = init_from.attach(adapters.lora_config, adapter_files.load_lora, family, without_text)
    return trained | _add_words(family, settings)


def _add_words(family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    ids_by_word = [
        family.add_word(word, settings.num_vectors, start_words)
        for word, start_words in zip(settings.words, settings.start_words, strict=True)
    ]
    for text_encoder, *ids in zip(family.text_encoders, *ids_by_word, strict=True):
        text_encoder.requires_grad_(False)  # the embedding is a new, larger one
        config = TrainableTokensConfig(token_indices=[*chain(*ids)], target_modules=["token_embedding"])
        inject_adapter_in_model(config, text_encoder, adapters.ADAPTER)
    if settings.start is not None:
        _start_from_files(family, settings, settings.start)
    return adapters.prepare_trainable(
        {f"text_encoder_{number}": part for number, part in enumerate(family.text_encoders)}
    )


@torch.no_grad()
def _start_from_files(family: Family, settings: MethodSettings, folder: Path) -> None:
    """Let the words begin as the files have them. Raises UserError for other words, ModelError for another base."""
    learned = read(family, folder)
    if tuple(learned) != settings.words:
        own, found = (", ".join(map(repr, words)) for words in (settings.words, learned))
        raise UserError(f"subject.identifier: {own}, but {folder} has learned {found}")
    num_vectors = len(next(iter(learned.values()))[0])
    if num_vectors != settings.num_vectors:
        raise UserError(f"method.num_vectors: {settings.num_vectors}, but {folder} has {num_vectors}")
    for text_encoder, *vectors in zip(family.text_encoders, *learned.values(), strict=True):
        (layer,) = (module for module in text_encoder.modules() if isinstance(module, TrainableTokensLayer))
        rows_VD = layer.trainable_tokens_delta[adapters.ADAPTER]  # the rows themselves, although it is called a delta
        vectors_VD = torch.cat(vectors)
        if rows_VD.shape != vectors_VD.shape:
            raise ModelError(
                f"{folder / WORD_FILE}: vectors of width {vectors_VD.shape[1]}, this base's have {rows_VD.shape[1]}: "
                "it was trained on another"
            )
        rows_VD.copy_(vectors_VD)


# -------------------------------------------------------------------------------- files


def word_file(number: int) -> str:
    """Return the name of a word's file; the first is the one that diffusers looks for, then learned_embeds_2 ..."""
    return WORD_FILE if number == 0 else WORD_FILE.replace(".", f"_{number + 1}.")


def save(
    family: Family,
    folder: Path,
    words: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    files: Sequence[str] | None = None,
    flat: bool = False,
) -> None:
    """Write each word's vectors, [V, D], into a file that diffusers' `load_textual_inversion` reads.

    With two text encoders they are named as everywhere: clip_l and clip_g; the word itself is in the metadata, and of
    several words their number. words: None for those that were trained. metadata: more of it. files: their names.
    flat: with one text encoder a single vector is written as [D].
    """
    words = words or _trained_words(family)
    of_several = {"num_words": str(len(words))} if len(words) > 1 else {}
    for number, word in enumerate(words):
        rows = vectors(family, word)
        if flat and len(rows) == 1 and len(rows[0]) == 1:
            rows = [rows[0][0]]
        path = folder / (files[number] if files else word_file(number))
        tensors = dict(zip(_tensor_names(family, word), rows, strict=True))
        save_vectors(tensors, path, {"word": word, **of_several, **(metadata or {})})


def save_vectors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path, metadata={"format": "pt", **metadata})


def _tensor_names(family: Family, word: str) -> Sequence[str]:
    return [word] if len(family.text_encoders) == 1 else CLIP_NAMES


@torch.no_grad()
def vectors(family: Family, word: str) -> list[Tensor]:
    """Return the rows of a word's tokens, [V, D], in the embedding of each text encoder."""
    ids_V = torch.tensor(family.tokenize(word))
    embeddings = [cast(Any, text_encoder).get_input_embeddings() for text_encoder in family.text_encoders]
    return [embed(ids_V.to(next(embed.parameters()).device)).cpu().contiguous() for embed in embeddings]


def _trained_words(family: Family) -> list[str]:
    """Return the tokens that train and are the first of their word."""
    layers = (module for module in family.text_encoders[0].modules() if isinstance(module, TrainableTokensLayer))
    tokens = family.pipeline().tokenizer.convert_ids_to_tokens(next(layers).token_indices[adapters.ADAPTER])
    return [token for token in tokens if token.rpartition("_")[0] not in tokens]


def load(family: Family, folder: Path) -> None:
    """Add all words of a folder. Raises ModelError for a file that is missing or does not fit the base."""
    for word, rows in read(family, folder).items():
        insert(family, folder, word, rows)


def insert(family: Family, location: Path, word: str, rows: list[Tensor]) -> None:
    """Add a word that was read from a folder or file. Raises ModelError where it does not fit the base."""
    try:
        put(family, word, rows)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{location}: {word} cannot be loaded into this base: {first_line(error)}") from error


def read(family: Family, folder: Path) -> dict[str, list[Tensor]]:
    """Return words and their vectors, [V, D] for each text encoder.

    Raises ModelError for a file that has not just these.
    """
    words, num_words = _read_word(family, folder / WORD_FILE)
    for number in range(1, num_words):
        words |= _read_word(family, folder / word_file(number))[0]
    return words


def _read_word(family: Family, path: Path) -> tuple[dict[str, list[Tensor]], int]:
    """Read one word's file. Returns its vectors by the word, and how many words were learned together."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            word = metadata["word"]
            rows = [torch.atleast_2d(file.get_tensor(name)) for name in _tensor_names(family, word)]
        return {word: rows}, int(metadata.get("num_words", 1))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be loaded into this base: {first_line(error)}") from error


def put(family: Family, word: str, rows: list[Tensor]) -> None:
    """Add a word with its vectors, [V, D] for each text encoder. Raises ValueError for a word that is there already."""
    pipeline = family.pipeline()
    for number, vectors_VD in enumerate(rows):
        suffix = f"_{number + 1}" if number else ""
        part, tokenizer = pipeline.components[f"text_encoder{suffix}"], pipeline.components[f"tokenizer{suffix}"]
        pipeline.load_textual_inversion({word: vectors_VD}, token=word, text_encoder=part, tokenizer=tokenizer)


def save_pivotal(family: Family, folder: Path) -> None:
    """Write the words' vectors and the LoRA."""
    save(family, folder)
    adapter_files.save_lora(family, folder)


def load_pivotal(family: Family, folder: Path) -> None:
    """Load the words' vectors and the LoRA. Raises ModelError as both of them do."""
    load(family, folder)
    adapter_files.load_lora(family, folder)
