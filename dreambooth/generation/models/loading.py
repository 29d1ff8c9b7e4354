"""Load a MODEL, as it is typed, into networks that are ready to sample."""

import contextlib
import hashlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dreambooth.devices import find_device, has_bfloat16, kind_of
from dreambooth.errors import ModelError, UserError
from dreambooth.families import Family, ModelSource, half_of, load_family, move
from dreambooth.families.offload import offload as keep_off_device
from dreambooth.families.quantization import check_quantizer, quantize
from dreambooth.families.runtimes import Graph
from dreambooth.generation.memory import offload_for
from dreambooth.generation.models.additions import check_additions, embedding_file, learned_by, lora_file, words_beside
from dreambooth.generation.models.base_source import base_source
from dreambooth.generation.models.location import check_is_there, fill, model_folder
from dreambooth.generation.models.reading import is_own, load_result
from dreambooth.generation.models.reference import EmbeddingRef, LoraRef, ModelRef
from dreambooth.methods import BESIDE_THE_BASE, adapters, embedding_files, lora_files
from dreambooth.plugins import active
from dreambooth.subject_info import ExportCard, LearnedSubject, SubjectInfo, find_card

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """Hold a model that is ready to sample, and what it has learned (None: a plain base).

    ref: loads it again; its dtype is the one that was chosen. subjects: of the model, then of LoRAs over it. networks:
    that were loaded beside it, with the fingerprints of their weights, by name: ControlNets.
    """

    ref: ModelRef
    family: Family
    card: SubjectInfo | None
    subjects: tuple[LearnedSubject, ...] = ()
    networks: dict[str, tuple[Any, str]] = field(default_factory=dict, compare=False, repr=False)

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
        return fill(prompt, self.name, self.subjects)


def load_model(model: ModelRef | str, device: str = "auto", offload: str = "none") -> Model:
    """Load a model as `load_unchanged` does, and let plug-ins change it."""
    found: Model = active().change("change_model", model=load_unchanged(model, device, offload))
    return found


def load_unchanged(model: ModelRef | str, device: str = "auto", offload: str = "none") -> Model:
    """Load a run, pipeline or adapter folder, a hub id or a single file, and what is laid over it.

    device: a name in `devices.DEVICES`, or auto. offload: none, parts, blocks or auto: which networks wait in main
    memory until they compute.

    Raises ModelError, and UserError for a device, revision or variant that is not there.
    """
    ref = ModelRef(model) if isinstance(model, str) else model
    check_is_there(ref.name)
    check_additions(ref.loras, ref.embeddings)
    folder, picked = model_folder(ref.name), find_device(device)
    card = find_card(folder)
    source = _source(ref, folder, card)
    ref = replace(ref, dtype=ref.dtype or usual_dtype(source, picked))
    dtype = getattr(torch, str(ref.dtype))
    if ref.quantize is not None:
        check_quantizer(ref.quantize, picked)
    quantize_early = None if ref.loras or ref.embeddings else ref.quantize  # else before anything is laid over it
    if card is not None and _is_adapter(folder):
        family = load_adapted(folder, card, ref, source, quantize_early)
    else:
        family = load_family(replace(source, dtype=dtype, quantize=quantize_early))
    if ref.loras or ref.embeddings:
        ref = add_to(family, ref)
    for part in (family.denoiser, *family.text_encoders):
        if ref.quantize is not None:
            quantize(part, ref.quantize)
        part.eval().to(dtype)
    if (chosen := offload_for(family, offload, picked, family.num_text_bytes(dtype))) != "none":
        for part in (family.denoiser, *family.text_encoders):
            part.requires_grad_(False)
        keep_off_device(family, chosen, picked, text_too=True)
    move(family, picked)
    return Model(ref, family, card, (() if card is None else card.subjects) + learned_by(ref.loras))


def usual_dtype(source: ModelSource, device: torch.device) -> str:
    """Return the dtype that a base is sampled in where none is asked for: its family's of 16 bits, or the device's."""
    usual = kind_of(device).dtype
    if usual != "float16" or not has_bfloat16(device):
        return usual
    with contextlib.suppress(ModelError):  # loading tells of a base that is not there
        return half_of(source)
    return usual


def _is_adapter(folder: Path) -> bool:
    """Return whether the folder of a result holds no whole model."""
    return not (folder / "model_index.json").is_file()


def _source(ref: ModelRef, folder: Path, card: ExportCard | None) -> ModelSource:
    """Return the source of a whole model, or of the base of a run's adapter in `folder`. Raises ModelError."""
    if card is not None and _is_adapter(folder):
        source = base_source(card, folder, ref.base, ref.revision, ref.variant, ref.vae)
        return source if ref.config is None else replace(source, config=ref.config)
    if ref.base is not None:
        raise UserError(f"--base {ref.base}: {ref.name} is a whole model, not an adapter over a base; leave it out")
    return ModelSource(
        str(folder) if folder.exists() else ref.name,
        config=ref.config,
        revision=ref.revision,
        variant=ref.variant,
        vae=ref.vae,
    )


def add_to(family: Family, ref: ModelRef) -> ModelRef:
    """Lay LoRAs and embeddings over a family, and return what loads them again. Raises ModelError, UserError."""
    if isinstance(family.denoiser, Graph):
        raise UserError(
            f"--lora, --embedding: {ref.name} holds graphs, over which nothing can be laid; export them with it"
        )
    adapters.merge(family)  # what is laid over has the names of a plain model's modules
    loras = tuple(add_lora(family, each) for each in ref.loras)
    return replace(ref, loras=loras, embeddings=tuple(add_embedding(family, each) for each in ref.embeddings))


def add_lora(family: Family, ref: LoraRef) -> LoraRef:
    path = lora_file(ref)
    lora_files.apply(family, path, ref.weight)
    for word in words_beside(path):
        try:
            embedding_files.add_file(family, word)
        except UserError as error:
            raise UserError(
                f"--lora {path}: the word that it has learned is one of this model, or of another --lora, already; "
                "leave one of them out, or train with another subject.identifier"
            ) from error
    return replace(ref, sha256=checked_digest(path, ref.sha256))


def add_embedding(family: Family, ref: EmbeddingRef) -> EmbeddingRef:
    path = embedding_file(ref)
    word = embedding_files.add_file(family, path, ref.word)
    return replace(ref, word=word, sha256=checked_digest(path, ref.sha256))


def checked_digest(path: Path, recorded: str | None) -> str:
    """Return the SHA-256 of a file; warn where a recipe has recorded another."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if recorded not in (None, digest):
        logger.warning(f"{path}: another file than the one that the image was made with; this will be another image")
    return digest


def load_adapted(
    folder: Path, card: ExportCard, ref: ModelRef, source: ModelSource, stored_as: str | None = None
) -> Family:
    """Load the base, `source`, with an adapter's files applied, in float32. Raises ModelError.

    stored_as: how the base is quantized, where the adapter leaves it alone.
    """
    if is_own(folder, card) and card.method in BESIDE_THE_BASE:
        source = replace(source, quantize=stored_as)
    try:
        return load_result(folder, card, source, ref.vae)
    except ModelError as error:
        if str(error).startswith(str(folder)):
            raise
        where = "" if ref.base is not None else "; where it lies elsewhere, name it with --base"
        raise ModelError(
            f"{folder}: a {card.method} of the base {source.base}, which cannot be loaded: {error}{where}"
        ) from error
