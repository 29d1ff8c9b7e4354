"""Hold what a denoiser reads: noisy latents, their time, and a conditioning, sliced and joined by samples.

Shapes: B batch, C channels, H/W latent height and width, N length of a field.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Hold tensors by name, one row for each sample: [B, ...]. The family decides which names there are.

    lengths: for fields whose rows differ in length (axis 1), the length of each row; behind it the field is padded with
    zeros up to the longest. A field without lengths counts as a whole.
    """

    fields: Mapping[str, Tensor]
    lengths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def from_rows(cls, **rows: Sequence[Tensor]) -> "Conditioning":
        """Stack the tensors of each sample, which may differ in their first axis."""
        padded = {name: _pad([row[None] for row in own]) for name, own in rows.items()}
        lengths = {name: tuple(map(len, own)) for name, own in rows.items() if len(set(map(len, own))) > 1}
        return cls(padded, lengths)

    @classmethod
    def cat(cls, parts: Sequence["Conditioning"]) -> "Conditioning":
        """Concatenate the samples of several conditionings, which have the same fields."""
        names = parts[0].fields
        fields = {name: _pad([part.fields[name] for part in parts]) for name in names}
        lengths = {name: tuple(n for part in parts for n in part.lengths_of(name)) for name in names}
        return cls(fields, {name: own for name, own in lengths.items() if len(set(own)) > 1})

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.fields.values())))

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    def __or__(self, other: "Conditioning") -> "Conditioning":
        """Join the fields of two conditionings of the same samples."""
        return Conditioning({**self.fields, **other.fields}, {**self.lengths, **other.lengths})

    def select(self, indices: Sequence[int]) -> "Conditioning":
        """Pick samples, in this order and repeatedly if asked. Padding that none of them needs is cut off."""
        fields, lengths = {}, {}
        for name, tensor in self.fields.items():
            fields[name] = tensor[list(indices)]
            if name in self.lengths:
                own = tuple(self.lengths[name][index] for index in indices)
                fields[name] = fields[name][:, : max(own)]
                if len(set(own)) > 1:
                    lengths[name] = own
        return Conditioning(fields, lengths)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """Copy to a device and a dtype; integers keep theirs."""
        return Conditioning(
            {name: t.to(device, dtype if t.is_floating_point() else None) for name, t in self.fields.items()},
            self.lengths,
        )

    def lengths_of(self, name: str) -> tuple[int, ...]:
        """Return the length of each row of a field without its padding; 1 where a row is a single number."""
        tensor = self.fields[name]
        return self.lengths.get(name, (tensor.shape[1] if tensor.ndim > 1 else 1,) * len(tensor))

    def rows(self, name: str) -> list[Tensor]:
        """Return each sample's tensor of a field without its padding."""
        return [row[:length] for row, length in zip(self.fields[name], self.lengths_of(name), strict=True)]

    def mask(self, name: str) -> Tensor:
        """Return which positions of a field are no padding: bool [B, N]."""
        tensor = self.fields[name]
        lengths_B = torch.tensor(self.lengths_of(name), device=tensor.device)
        return torch.arange(tensor.shape[1], device=tensor.device) < lengths_B[:, None]


@dataclass(frozen=True)
class DenoiserInputs:
    """Hold what the denoiser reads in a step, and ControlNets beside it. t_B: as `Denoiser.predict` has it."""

    noisy_BCHW: Tensor
    t_B: Tensor
    conditioning: Conditioning

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.noisy_BCHW)

    def last(self, number: int) -> "DenoiserInputs":
        """Return those of the last samples, of which there are at least so many."""
        return DenoiserInputs(
            self.noisy_BCHW[-number:], self.t_B[-number:], self.conditioning.select(range(-number, 0))
        )


def _pad(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors [B, N, ...] along B, padded with zeros up to the largest N."""
    if tensors[0].ndim == 1:
        return torch.cat(list(tensors))
    longest = max(tensor.shape[1] for tensor in tensors)
    padded = []
    for tensor in tensors:
        missing = longest - tensor.shape[1]
        # F.pad counts axes from the last one on.
        padded.append(F.pad(tensor, [0, 0] * (tensor.ndim - 2) + [0, missing]) if missing else tensor)
    return torch.cat(padded)
