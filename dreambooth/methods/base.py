"""The interface of a method: what trains, and how the result is kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dreambooth.families import Family
from dreambooth.methods import Facts

StartWords = tuple[tuple[str, ...], ...]  # by identifier


@dataclass(frozen=True)
class MethodSettings:
    """Hold the settings of a method; each reads those that concern it.

    rank, alpha, dropout, dora, rslora, targets: of adapters (`adapters`).
    words: the identifiers. start_words: by identifier, those whose mean embedding it starts as; none: its own.
    num_vectors: of an identifier that is a new token (`textual_inversion`).
    trains_identifier_rows_only: of the token embedding only their rows train.
    start: a file, or a folder with a result's own files, that the adapter or the words begin from (`init_from`).
    base_dtype: of weights that an adapter does not change. seed: of the adapters' initial values.
    """

    train_text_encoder: bool = True
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    dora: bool = False
    rslora: bool = False
    targets: tuple[str, ...] = ("attention",)
    words: tuple[str, ...] = ()
    num_vectors: int = 1
    start_words: StartWords = ()
    trains_identifier_rows_only: bool = False
    start: Path | None = None
    base_dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """Hold a method's facts and functions.

    attach: makes what trains trainable and returns the networks that hold it: "denoiser", "text_encoder_0" ...

    save, load: the result's own files in a folder, and back into an untouched base; None where the result is a model.
    """

    facts: Facts
    attach: Callable[[Family, MethodSettings], dict[str, nn.Module]]
    save: Callable[[Family, Path], None] | None = None
    load: Callable[[Family, Path], None] | None = None
