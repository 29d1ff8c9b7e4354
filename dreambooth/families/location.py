"""Find a base's files: in a folder here or, for a hub id, in the hub's cache; and the variants of its weights.

A revision is a branch, tag or commit of a hub id. A variant is a second set of weights in the same folder, by a word in
their names: `unet/diffusion_pytorch_model.fp16.safetensors`.
"""

import os
import re
from functools import partial
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

from dreambooth.errors import ModelError, UserError
from dreambooth.hub import downloaded

VAE_FILES = [f"{folder}{name}" for folder in ("", "vae/") for name in ("config.json", "diffusion_pytorch_model.*")]
WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.safetensors")


def find_folder(base: str, revision: str | None, variant: str | None) -> Path:
    """Return a pipeline's folder; a hub id is downloaded if need be.

    Raises ModelError for one that is not to be had or is no pipeline, UserError for a revision or variant of something
    that has none.
    """
    path = Path(os.path.expanduser(base))
    if os.path.isdir(path) and revision is not None:
        raise UserError(f"model.revision: {revision!r} is one of a hub id, and {base} is a folder here; leave it out")
    download = partial(DiffusionPipeline.download, base, revision=revision, variant=variant)
    folder = path if os.path.isdir(path) else downloaded(base, revision, download)
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{base}: not a diffusers pipeline folder (it has no model_index.json)")
    if variant is not None and variant not in (known := find_variants(folder)):
        raise UserError(f"model.variant: {variant!r} is none of {base}; it has {', '.join(sorted(known)) or 'none'}")
    return folder


def find_variants(folder: Path) -> set[str]:
    """Return the variants of the weights in a folder and the folders in it."""
    matches = (WEIGHTS.fullmatch(path.name) for path in (*folder.glob("*"), *folder.glob("*/*")))
    return {match["variant"] for match in matches if match is not None and match["variant"] is not None}


def find_vae(vae: str) -> Path:
    """Return the folder of a VAE: of a pipeline its vae/; of a hub id downloaded if need be. Raises ModelError."""
    path = Path(os.path.expanduser(vae))
    download = partial(snapshot_download, vae, allow_patterns=VAE_FILES)
    folder = path if os.path.isdir(path) else downloaded(vae, None, download)
    for own in (folder, folder / "vae"):
        if (own / "config.json").is_file():
            return own
    raise ModelError(f"{vae}: holds no VAE (neither config.json nor vae/config.json)")
