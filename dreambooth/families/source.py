"""The source of a base model: which one is loaded, and how, passed as one value."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class ModelSource:
    """Hold which base model is loaded, and how.

    base: a diffusers folder, a hub id or a single `.safetensors` file.
    family: a name in `FAMILIES`, or "auto" to read it from the base.
    config: for a single file, a folder or hub id with its configs and tokenizers, and for a transformer alone with the
        other networks too, or the name of a built-in config; None: the built-in one that the file's header names.
    revision: branch, tag or commit of a hub id.
    variant: second set of weights in the folder or hub id ("fp16"); parts that lack it are loaded without.
    dtype: of denoiser and text encoders, which are read straight into it; a VAE is always float32.
    quantize: how the frozen weights are stored, by a name in `quantization.QUANTIZERS`; None: in `dtype`.
    vae: another VAE in the place of the base's own: a folder, a hub id or a single `.safetensors` file.
    transformer: a single file with the transformer alone, in the place of the folder's.
    has_weights: False makes networks of the folder's configs alone, with shapes and no numbers (torch's meta device).
    """

    base: str
    family: str = "auto"
    config: str | None = None
    revision: str | None = None
    variant: str | None = None
    dtype: torch.dtype = torch.float32
    quantize: str | None = None
    vae: str | None = None
    transformer: Path | None = None
    has_weights: bool = True
