"""New words: rows of the text encoder's embedding that mean the subject, trained while all else stays as it is.

Textual inversion: Gal et al. 2022 (arXiv 2208.01618). Pivotal tuning, the same with a LoRA of the denoiser: Roich et
al. 2021 (arXiv 2106.05744). A word of several vectors is several tokens, `word`, `word_1` ..., as diffusers names them.
Shapes: V vectors, D width of the text encoder.
"""

from collections.abc import Mapping
from dataclasses import replace
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
from dreambooth.methods import adapters, start
from dreambooth.methods.base import MethodSettings

CLIP_NAMES = ("clip_l", "clip_g")
WORD_FILE = "learned_embeds.safetensors"  # the name that diffusers looks for


def attach(family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    """Add the word, each of its vectors starting as that of `start_word`, and make it all that trains.

    Raises UserError for a word that the tokenizer already has, and for a start word of several tokens.
    """
    adapters.freeze(family, settings.base_dtype)
    return _add_word(family, settings)


def attach_pivotal(family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    """The word, and a LoRA of the denoiser. Raises UserError as both of them do."""
    without_text = replace(settings, train_text_encoder=False)
    trained = start.attach(adapters.lora_config, adapters.load_lora, family, without_text)
    return trained | _add_word(family, settings)


def _add_word(family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    ids_by_encoder = family.add_word(settings.word, settings.num_vectors, settings.start_word)
    for text_encoder, ids in zip(family.text_encoders, ids_by_encoder, strict=True):
        text_encoder.requires_grad_(False)  # the embedding is a new, larger one
        config = TrainableTokensConfig(token_indices=ids, target_modules=["token_embedding"])
        inject_adapter_in_model(config, text_encoder, adapters.ADAPTER)
    if settings.start is not None:
        _start_word(family, settings, settings.start)
    return adapters.finish({f"text_encoder_{number}": part for number, part in enumerate(family.text_encoders)})


@torch.no_grad()
def _start_word(family: Family, settings: MethodSettings, folder: Path) -> None:
    """Let the word begin as the files have it. Raises UserError for another word, ModelError for another base."""
    word, vectors = read(family, folder)
    if word != settings.word:
        raise UserError(f"subject.identifier: {settings.word!r}, but {folder} has learned {word!r}")
    if (num_vectors := len(vectors[0])) != settings.num_vectors:
        raise UserError(f"method.num_vectors: {settings.num_vectors}, but {folder} has {num_vectors}")
    for text_encoder, vectors_VD in zip(family.text_encoders, vectors, strict=True):
        (layer,) = (module for module in text_encoder.modules() if isinstance(module, TrainableTokensLayer))
        rows_VD = layer.trainable_tokens_delta[adapters.ADAPTER]  # the rows themselves, for all its name
        if rows_VD.shape != vectors_VD.shape:
            raise ModelError(
                f"{folder / WORD_FILE}: vectors of width {vectors_VD.shape[1]}, this base's have {rows_VD.shape[1]}: "
                "it was trained on another"
            )
        rows_VD.copy_(vectors_VD)


# -------------------------------------------------------------------------------- files


def save(family: Family, folder: Path, word: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
    """Write a word's vectors, [V, D], into the file that diffusers' `load_textual_inversion` reads.

    With two text encoders they are named as everywhere: clip_l and clip_g; the word itself is in the metadata.
    word: None for the one that was trained. metadata: more of it.
    """
    word = word or _trained_word(family)
    rows = vectors(family, word)
    names = [word] if len(rows) == 1 else CLIP_NAMES
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        dict(zip(names, rows, strict=True)),
        folder / WORD_FILE,
        metadata={"format": "pt", "word": word, **(metadata or {})},
    )


@torch.no_grad()
def vectors(family: Family, word: str) -> list[Tensor]:
    """The rows of a word's tokens, [V, D], in the embedding of each text encoder."""
    ids_V = torch.tensor(family.token_ids(word))
    embeddings = [cast(Any, text_encoder).get_input_embeddings() for text_encoder in family.text_encoders]
    return [embed(ids_V.to(next(embed.parameters()).device)).cpu().contiguous() for embed in embeddings]


def _trained_word(family: Family) -> str:
    layers = (module for module in family.text_encoders[0].modules() if isinstance(module, TrainableTokensLayer))
    return family.pipeline().tokenizer.convert_ids_to_tokens(next(layers).token_indices[adapters.ADAPTER][0])


def read(family: Family, folder: Path) -> tuple[str, list[Tensor]]:
    """A word and its vectors, [V, D], for each text encoder. Raises ModelError for a file that has not just these."""
    path = folder / WORD_FILE
    try:
        with safe_open(path, "pt") as file:
            word = file.metadata()["word"]
            names = [word] if len(family.text_encoders) == 1 else CLIP_NAMES
            return word, [file.get_tensor(name) for name in names]
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be loaded into this base: {first_line(error)}") from error


def load(family: Family, folder: Path) -> None:
    """Raises ModelError for a file that is missing or does not fit the base."""
    word, rows = read(family, folder)
    try:
        put(family, word, rows)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder / WORD_FILE}: cannot be loaded into this base: {first_line(error)}") from error


def put(family: Family, word: str, rows: list[Tensor]) -> None:
    """Add a word with its vectors, [V, D] for each text encoder. Raises ValueError for a word that is there already."""
    pipeline = family.pipeline()
    for number, vectors_VD in enumerate(rows):
        suffix = f"_{number + 1}" if number else ""
        part, tokenizer = pipeline.components[f"text_encoder{suffix}"], pipeline.components[f"tokenizer{suffix}"]
        pipeline.load_textual_inversion({word: vectors_VD}, token=word, text_encoder=part, tokenizer=tokenizer)


def save_pivotal(family: Family, folder: Path) -> None:
    """Two files: the word's vectors and the LoRA."""
    save(family, folder)
    adapters.save_lora(family, folder)


def load_pivotal(family: Family, folder: Path) -> None:
    """Raises ModelError as both of them do."""
    load(family, folder)
    adapters.load_lora(family, folder)
