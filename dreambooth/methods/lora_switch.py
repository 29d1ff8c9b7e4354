"""Lay other LoRAs over a model, or the same with other weights, without loading its base again."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dreambooth.families import Family, components
from dreambooth.methods.lora_files import read_changes


class LoraSwitch:
    """Keep the weights beneath the LoRAs of a family, on the CPU: of those modules only that one has changed.

    What is laid over has the bits that `lora_files.apply` gives a fresh copy: it is computed on the CPU, and in the
    dtype of the weights.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._originals: dict[tuple[str, str], Tensor] = {}  # by network and module

    @torch.no_grad()
    def lay_over(self, loras: Sequence[tuple[Path, float]]) -> None:
        """Lay these files over the family, each with its weight, in the place of those before. Raises ModelError."""
        changed: dict[tuple[str, str], Tensor] = {}
        for path, weight in loras:
            for part_name, changes in read_changes(self._family, path).items():
                for name, change in changes.items():
                    key = (part_name, name)
                    if key not in self._originals:
                        self._originals[key] = self._weight(key).detach().cpu().clone()
                    value = changed.setdefault(key, self._originals[key].clone())
                    value.add_((weight * (change.applied_to(value) - value)).to(value.dtype))
        for key, original in self._originals.items():
            self._weight(key).copy_(changed.get(key, original))

    def _weight(self, key: tuple[str, str]) -> Tensor:
        part_name, name = key
        return components(self._family)[part_name].get_parameter(f"{name}.weight")
