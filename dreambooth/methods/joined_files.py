"""LoRAs of matrices that a model's authors join and diffusers does not, as FLUX.1's query, key and value.

The change of some rows of a joined matrix is the product of these rows of B with all of A.
Shapes: R rank, I inputs, O outputs of each module, one after another in the file.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.errors import ModelError
from dreambooth.families import Family, components
from dreambooth.families.protocols import NamedByAuthors

SHARED = ("lora_A", "alpha")
BY_ROWS = ("lora_B", "dora_scale", "magnitude")


def authors_names(family: Family) -> dict[str, tuple[str, ...]]:
    """Return, by every name that files have for a matrix of the authors', the transformer's modules that are in it."""
    named: dict[str, tuple[str, ...]] = {}
    if isinstance(family, NamedByAuthors):
        for original, members in family.original_modules().items():
            for name in (original, f"diffusion_model.{original}", f"lora_unet_{original.replace('.', '_')}"):
                named[name] = members
    return named


def split(path: Path, family: Family, part: str, members: tuple[str, ...], own: dict[str, Tensor]) -> dict[str, Any]:
    """Return what a file has for each of the modules that are one matrix there, by module.

    Those whose rows of B are zero are not adapted, unless all are. own: by `lora_files.LEAVES`. Raises ModelError for
    what is no LoRA, or has another number of rows.
    """
    if len(members) == 1:
        return {members[0]: with_swapped_rows(own) if _is_swapped(family, members[0]) else own}
    if other := sorted(own.keys() - {*SHARED, *BY_ROWS}):
        raise ModelError(f"{path}: {members[0]} and others are one matrix in it, whose {other[0]} cannot be divided")
    modules: list[nn.Linear] = [components(family)[part].get_submodule(name) for name in members]  # type: ignore[misc]
    rows = [module.out_features for module in modules]
    split_own: dict[str, dict[str, Tensor]] = {name: {} for name in members}
    for leaf, tensor in own.items():
        if leaf in BY_ROWS and len(tensor) != sum(rows):
            raise ModelError(f"{path}: {members[0]} and others have {len(tensor)} rows in it, {sum(rows)} in this base")
        pieces = tensor.split(rows) if leaf in BY_ROWS else [tensor] * len(rows)
        for name, piece in zip(members, pieces, strict=True):
            split_own[name][leaf] = piece
    changed = {name: each for name, each in split_own.items() if "lora_B" not in each or bool(each["lora_B"].any())}
    return changed or split_own


def with_swapped_rows(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA whose matrix has the second half of its rows first."""
    return {leaf: torch.cat(each.chunk(2)[::-1]) if leaf in BY_ROWS else each for leaf, each in own.items()}


def _is_swapped(family: Family, module: str) -> bool:
    return isinstance(family, NamedByAuthors) and module in family.swapped_modules()
