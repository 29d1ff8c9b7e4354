"""Extract a LoRA from fully trained weights: the best approximation of lower rank of each matrix's change.

The truncated singular value decomposition leaves the least squared error of all matrices of that rank (Eckart & Young
1936, Psychometrika 1(3)). Shapes: O and I outputs and inputs of a module (of a convolution with its kernel), R rank.
"""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dreambooth.errors import ModelError, UserError
from dreambooth.families import Family, components, fingerprint, load_family
from dreambooth.generation.models.base_source import base_source
from dreambooth.methods import adapters, textual_inversion
from dreambooth.subject_info import ExportCard, LearnedSubject


@dataclass(frozen=True)
class ChangeSums:
    """Hold sums of squared changes of weights: all, what a LoRA can adapt, what the LoRA and the word hold."""

    everything: float
    adaptable: float
    lora: float
    word: float

    def __str__(self) -> str:
        """Return each part as a percentage of the whole squared change."""
        cut_off, elsewhere = max(0.0, self.adaptable - self.lora), self.everything - self.adaptable - self.word
        named = {"in the LoRA": self.lora, "in the word": self.word}
        dropped = {"cut off by the rank": cut_off, "in norms, biases, embeddings, first and last layers": elsewhere}
        kept, lost = (", ".join(f"{x / self.everything:.1%} {name}" for name, x in e.items()) for e in (named, dropped))
        return f"of the squared change {kept}; left out: {lost}"


def load_base(card: ExportCard, folder: Path, base: str | None) -> Family:
    """Load the very base that the result in `folder` was trained on, as its run loaded it. Raises ModelError.

    base: where it is now, if elsewhere.
    """
    source = base_source(card, folder, base)
    family = load_family(source)
    if card.base_fingerprint not in (None, fingerprint(family)):
        raise ModelError(
            f"{source.base}: not the base that this was trained on (its weights differ); name that one with --base"
        )
    return family


@torch.no_grad()
def extract(tuned: Family, base: Family, card: ExportCard, rank: int) -> tuple[ExportCard, ChangeSums]:
    """Give `base` a LoRA of at most `rank` of what `tuned` has learned. Returns the new card, and how much it holds.

    It adapts the linear and convolutional modules of all `target_groups`. Where rows of identifiers have changed
    each becomes a new word, "<sks>" for "sks", as no LoRA holds them; the new card says so.

    Raises UserError where nothing has changed.
    """
    adapters.merge(tuned)
    pairs = [(part, components(tuned)[name]) for name, part in components(base).items()]
    ends = tuple(chain(*base.target_groups.values()))
    everything = sum(
        _squared(_change(part, other, name)) for part, other in pairs for name, _ in part.named_parameters()
    )
    if not everything:
        raise UserError("--rank: the weights are those of the base, so there is no LoRA in them")
    adaptable, lora = map(sum, zip(*(_adapt(part, other, rank, ends) for part, other in pairs), strict=True))
    subjects, kept_by_words = _take_words(tuned, base, card.subjects)
    method = "lora" if subjects == card.subjects else "pivotal"
    card = replace(card, method=method, subjects=subjects, extracted_rank=rank)
    return card, ChangeSums(everything, adaptable, lora, kept_by_words)


def low_rank(change_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return `up` [O, R] and `down` [R, I], whose product is the nearest to `change` of all matrices of rank R.

        change = U diag(s) V, s falling;  up = U diag(sqrt(s)), down = diag(sqrt(s)) V, of both the first R.

    The error, squared, is the sum of the squares of all further s. R is at most what the matrix can have.
    """
    if change_OI.shape[0] < change_OI.shape[1]:  # LAPACK takes 3 seconds for 11520 x 1280, and 17 for 1280 x 11520
        down_IR, up_RO = low_rank(change_OI.T, rank)
        return up_RO.T, down_IR.T
    u_OK, s_K, v_KI = torch.linalg.svd(change_OI, full_matrices=False)
    root_R = s_K[:rank].sqrt()
    return u_OK[:, :rank] * root_R, root_R[:, None] * v_KI[:rank]


def _adapt(part: nn.Module, tuned: nn.Module, rank: int, ends: tuple[str, ...]) -> tuple[float, float]:
    """Give a network of the base its LoRA. Returns the squared change of its modules, and how much the LoRA holds."""
    adaptable, products = 0.0, {}
    for name in adapters.adaptable(part, ends):
        change_OI = _change(part, tuned, f"{name}.weight").flatten(1)
        if change_OI.any():
            adaptable += _squared(change_OI)
            products[name] = low_rank(change_OI, rank)
    if not products:
        return 0.0, 0.0
    ranks = {name: len(down_RI) for name, (_, down_RI) in products.items() if len(down_RI) < rank}
    config = LoraConfig(
        r=rank, lora_alpha=rank, rank_pattern=ranks, alpha_pattern=dict(ranks), target_modules=list(products)
    )
    inject_adapter_in_model(config, part, adapters.ADAPTER)
    for name, (up_OR, down_RI) in products.items():
        layer = cast(LoraLayer, part.get_submodule(name))
        for matrices, values in ((layer.lora_A, down_RI), (layer.lora_B, up_OR)):
            weight = cast(Any, matrices[adapters.ADAPTER]).weight
            weight.copy_(values.reshape(weight.shape))
    part.eval()
    return adaptable, sum(_squared(up_OR @ down_RI) for up_OR, down_RI in products.values())


def _change(part: nn.Module, tuned: nn.Module, name: str) -> Tensor:
    """Return what training has added to a weight."""
    return tuned.get_parameter(name) - part.get_parameter(name)


def _squared(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _take_words(
    tuned: Family, base: Family, subjects: tuple[LearnedSubject, ...]
) -> tuple[tuple[LearnedSubject, ...], float]:
    """Add the identifiers' rows, where any has changed, to the base as new words.

    Returns the subjects under these, and how much the rows have changed.
    """
    rows = [textual_inversion.vectors(tuned, subject.identifier) for subject in subjects]
    before = [textual_inversion.vectors(base, subject.identifier) for subject in subjects]
    pairs = zip(chain(*rows), chain(*before), strict=True)
    change = sum(_squared(after_VD - before_VD) for after_VD, before_VD in pairs)
    if not change:
        return subjects, 0.0
    renamed = tuple(replace(each, identifier=f"<{each.identifier.strip('<>')}>") for each in subjects)
    for subject, own in zip(renamed, rows, strict=True):
        textual_inversion.put(base, subject.identifier, own)
    return renamed, change
