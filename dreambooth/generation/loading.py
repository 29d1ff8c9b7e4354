"""From a MODEL as it is typed to networks that are ready to sample."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dreambooth.errors import ModelError, UserError
from dreambooth.export.base_source import base_source
from dreambooth.export.reading import load_result
from dreambooth.export.subject_info import ExportCard, SubjectInfo, find_card
from dreambooth.families import Family, ModelSource, load_family, move
from dreambooth.generation.location import check_is_there, fill, model_folder
from dreambooth.generation.request import ModelRef


@dataclass(frozen=True)
class Model:
    """A model that is ready to sample, and what it has learned (None: a plain base).

    ref: what loads it again; its dtype is the one that was picked.
    """

    ref: ModelRef
    family: Family
    card: SubjectInfo | None

    @property
    def name(self) -> str:
        """Return the MODEL as it was typed."""
        return self.ref.name

    @property
    def resolution(self) -> int:
        """Return the side of the images that it was trained at, pixels."""
        return self.card.resolution if self.card is not None else self.family.resolution

    def fill(self, prompt: str) -> str:
        """Replace {subject}, {class}, {subject_2} ... Raises UserError where the model does not say what that is."""
        return fill(prompt, self.name, self.card)


def load_model(model: ModelRef | str, device: str = "auto") -> Model:
    """Load a run, pipeline or adapter folder, a hub id or a single file. device: auto, cpu or cuda.

    Raises ModelError, and UserError for a device, revision or variant that is not there.
    """
    ref = ModelRef(model) if isinstance(model, str) else model
    check_is_there(ref.name)
    folder, picked = model_folder(ref.name), pick_device(device)
    ref = replace(ref, dtype=ref.dtype or ("float16" if picked.type == "cuda" else "float32"))
    dtype = getattr(torch, str(ref.dtype))
    card = find_card(folder)
    if card is not None and not (folder / "model_index.json").is_file():
        family = load_adapted(folder, card, ref)
    else:
        name = str(folder) if folder.exists() else ref.name
        family = load_family(
            ModelSource(name, config=ref.config, revision=ref.revision, variant=ref.variant, dtype=dtype)
        )
    move(family, picked)
    for part in (family.denoiser, *family.text_encoders):
        part.eval().to(dtype)
    return Model(ref, family, card)


def pick_device(device: str) -> torch.device:
    """Return the device of this name; of auto the GPU where there is one. Raises UserError for cuda without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU; use cpu or auto")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def load_adapted(folder: Path, card: ExportCard, ref: ModelRef) -> Family:
    """Load the base with an adapter's files laid over it, in float32. Raises ModelError."""
    source = base_source(card, folder, ref.base, ref.revision, ref.variant)
    if ref.config is not None:
        source = replace(source, config=ref.config)
    try:
        return load_result(folder, card, source)
    except ModelError as error:
        if str(error).startswith(str(folder)):
            raise
        where = "" if ref.base is not None else "; where it lies elsewhere, name it with --base"
        raise ModelError(
            f"{folder}: a {card.method} of the base {source.base}, which cannot be loaded: {error}{where}"
        ) from error
