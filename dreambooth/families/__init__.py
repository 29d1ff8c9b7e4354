"""Model families by name, and how a base model is found and recognised.

A new family: one file with a class that follows `protocols.Family`, and one row in `FAMILIES`.
"""

import contextlib
import copy
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import diffusers.utils.logging
import torch
import transformers.utils.logging

from dreambooth.errors import ModelError, UserError

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a kernel that nothing here needs
for library in (diffusers, transformers):  # no bars for every file, no notes on torchvision
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
from dreambooth.families import flux1, flux2_klein, krea2, qwen_image, sd, sd3, sd_graphs, sdxl, z_image  # noqa: E402
from dreambooth.families.conditioning import Conditioning, DenoiserInputs  # noqa: E402
from dreambooth.families.inspection import read_index  # noqa: E402
from dreambooth.families.loading import is_small  # noqa: E402
from dreambooth.families.location import find_folder  # noqa: E402
from dreambooth.families.protocols import Family  # noqa: E402
from dreambooth.families.quantization import check_quantizer, quantize  # noqa: E402
from dreambooth.families.single_file import Header, read_header  # noqa: E402
from dreambooth.families.source import ModelSource  # noqa: E402
from dreambooth.families.transformer_file import beside  # noqa: E402
from dreambooth.plugins import Table  # noqa: E402

__all__ = [
    "FAMILIES",
    "Conditioning",
    "DenoiserInputs",
    "Family",
    "ModelSource",
    "components",
    "evaluation_mode",
    "fingerprint",
    "frozen_copy",
    "half_of",
    "is_small",
    "load_family",
    "move",
]


@dataclass(frozen=True)
class FamilyRow:
    """Hold a family's pipeline classes, by which it is recognised, and its loaders.

    half: the 16-bit dtype that it is sampled in. Transformers were trained in bfloat16, and some overflow in float16.
    """

    pipelines: tuple[str, ...]
    load: Callable[[Path, ModelSource], Family]
    load_single_file: Callable[[Header, ModelSource], Family]
    half: str = "float16"


FAMILIES: Table[FamilyRow] = Table(
    "families",
    {
        "sd": FamilyRow(("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"), sd.load, sd.load_single_file),
        "sdxl": FamilyRow(
            ("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"), sdxl.load, sdxl.load_single_file
        ),
        "sd_graphs": FamilyRow(tuple(sd_graphs.PIPELINES.values()), sd_graphs.load, sd_graphs.load_single_file),
        "z_image": FamilyRow(("ZImagePipeline",), z_image.load, beside(z_image.load), "bfloat16"),
        "qwen_image": FamilyRow(("QwenImagePipeline",), qwen_image.load, beside(qwen_image.load), "bfloat16"),
        "krea2": FamilyRow(("Krea2Pipeline",), krea2.load, beside(krea2.load), "bfloat16"),
        "flux1": FamilyRow(("FluxPipeline",), flux1.load, beside(flux1.load), "bfloat16"),
        "sd3": FamilyRow(("StableDiffusion3Pipeline",), sd3.load, beside(sd3.load), "bfloat16"),
        "flux2_klein": FamilyRow(("Flux2KleinPipeline",), flux2_klein.load, beside(flux2_klein.load), "bfloat16"),
    },
)


def load_family(source: ModelSource | str) -> Family:
    """Load a base model. A plain string is a base loaded with the defaults of `ModelSource`.

    Raises UserError for an unknown family, and for a revision or variant that is not there; ModelError for a base that
    is missing or broken.
    """
    if isinstance(source, str):
        source = ModelSource(source)
    if source.family != "auto" and source.family not in FAMILIES:
        raise UserError(f"model.family={source.family}: unknown family; use auto or one of {', '.join(FAMILIES)}")
    if source.quantize is None:
        return _load(source)
    check_quantizer(source.quantize, torch.device("cpu"))
    family = _load(source)
    for part in (family.denoiser, *family.text_encoders):  # those that were not while they were loaded
        quantize(part, source.quantize)
    return family


def half_of(source: ModelSource) -> str:
    """Return the 16-bit dtype that a base is sampled in. Raises as `load_family` for one that is missing."""
    path = Path(os.path.expanduser(source.base))
    if os.path.isfile(path):
        return FAMILIES[_family_of_file(_header(path, source), source)].half
    folder = find_folder(source.base, source.revision, source.variant)
    return FAMILIES[_family_of_folder(folder, source)].half


def _load(source: ModelSource) -> Family:
    path = Path(os.path.expanduser(source.base))
    if os.path.isfile(path):
        header = _header(path, source)
        return FAMILIES[_family_of_file(header, source)].load_single_file(header, source)
    folder = find_folder(source.base, source.revision, source.variant)
    return FAMILIES[_family_of_folder(folder, source)].load(folder, source)


def _header(path: Path, source: ModelSource) -> Header:
    base = source.base
    if path.suffix != ".safetensors":
        raise ModelError(f"{base}: a single file must be .safetensors (other formats can run code when they are read)")
    for key, value in (("revision", source.revision), ("variant", source.variant)):
        if value is not None:
            raise UserError(f"model.{key}: {value!r} is set, and {base} is a single file, which has none; leave it out")
    return read_header(path)


def _family_of_file(header: Header, source: ModelSource) -> str:
    return header.family if source.family == "auto" else source.family


def _family_of_folder(folder: Path, source: ModelSource) -> str:
    pipeline = read_index(folder).get("_class_name")
    if source.family != "auto":
        return source.family
    for name, row in FAMILIES.items():
        if pipeline in row.pipelines:
            return name
    known = ", ".join(pipeline for row in FAMILIES.values() for pipeline in row.pipelines)
    raise ModelError(f"{folder}: a {pipeline} is of no known family; known are {known}")


def move(family: Family, device: torch.device) -> None:
    """Move all networks of a family, the VAE too, and its schedule to a device."""
    family.schedule = family.schedule.to(device)
    for part in vars(family).values():
        if isinstance(part, torch.nn.Module):
            part.to(device)


def components(family: Family) -> dict[str, torch.nn.Module]:
    """Return the denoiser and the text encoders by their names in the pipeline's folder: "unet", "text_encoder" ..."""
    return family.components()


@contextlib.contextmanager
def evaluation_mode(family: Family) -> Iterator[None]:
    """Put denoiser and text encoders in evaluation mode (no dropout), and each back as it was afterwards."""
    parts = [family.denoiser, *family.text_encoders]
    modes = [part.training for part in parts]
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.train(mode)


def frozen_copy(family: Family, dtype: torch.dtype) -> Family:
    """Copy a model: frozen denoiser and text encoders of its own, in `dtype`; whatever never trains is shared."""
    frozen = copy.deepcopy(family, {id(part): part for part in vars(family).values() if _is_shared(part, family)})
    for part in (frozen.denoiser, *frozen.text_encoders):
        part.requires_grad_(False).eval().to(dtype)
    return frozen


def _is_shared(part: object, family: Family) -> bool:
    return isinstance(part, torch.nn.Module) and all(
        part is not own for own in (family.denoiser, *family.text_encoders)
    )


def fingerprint(family: Family) -> str:
    """Return the SHA-256 over every weight of the denoiser and the text encoders, hexadecimal.

    It tells which base model this is. A text encoder that is not loaded is told by its files.
    """
    weights = digest_weights(part.state_dict() for part in (family.denoiser, *family.text_encoders))
    return hashlib.sha256((weights + family.text_digest).encode()).hexdigest() if family.text_digest else weights


def digest_weights(state_dicts: Iterable[Mapping[str, torch.Tensor]]) -> str:
    """Return the SHA-256 over names and values of weights, hexadecimal."""
    digest = hashlib.sha256()
    for weights in state_dicts:
        for name, tensor in weights.items():
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
