"""The optimizers by name: how each is made, what it keeps of a weight, and the package that it comes from.

adamw         Loshchilov & Hutter 2019, arXiv 1711.05101
adamw8bit     its moments in 8-bit numbers, a scale for each block           Dettmers et al. 2022, arXiv 2110.02861
adafactor     the mean square of each row and column, and no mean gradient   Shazeer & Stern 2018, arXiv 1804.04235
prodigy       AdamW that estimates its learning rate                         Mishchenko & Defazio 2024, arXiv 2306.06101
schedulefree  AdamW that averages its weights instead of a falling rate      Defazio et al. 2024, arXiv 2405.15682
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import AdamW, Optimizer

from dreambooth.errors import UserError

Groups = list[dict[str, Any]]
MakeOptimizer = Callable[[Groups, tuple[float, float], float, bool], Optimizer]


@dataclass(frozen=True)
class OptimizerRow:
    """Hold what is known of an optimizer.

    make: makes it from parameter groups, betas, weight decay, and whether it is to be fused. state_bytes: returns the
    bytes that it keeps of a weight. package: that it needs, and its extra; None: what is always installed.
    """

    make: MakeOptimizer
    state_bytes: Callable[[Tensor], int]
    package: tuple[str, str] | None = None


def import_package(name: str) -> Any:
    """Import the package of an optimizer, None where it needs none. Raises UserError where it is not installed."""
    needed = OPTIMIZERS[name].package
    if needed is None:
        return None
    package, extra = needed
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"optim.name={name}: {package} cannot be imported ({error}); pip install 'dreambooth[{extra}]'"
        ) from error


def make_adamw(groups: Groups, betas: tuple[float, float], weight_decay: float, fused: bool) -> Optimizer:
    return AdamW(groups, betas=betas, weight_decay=weight_decay, **({"fused": True} if fused else {}))


def make_adamw8bit(groups: Groups, betas: tuple[float, float], weight_decay: float, fused: bool) -> Optimizer:
    """Make AdamW of 8 bits.

    Its first step would change the channels-last layout of weights, and the first step of a resumed run would round
    otherwise: the layout is changed here. Raises UserError where bitsandbytes is missing.
    """
    for weight in (weight for group in groups for weight in group["params"]):
        weight.data = weight.data.contiguous()
    made: Optimizer = import_package("adamw8bit").optim.AdamW8bit(groups, betas=betas, weight_decay=weight_decay)
    return made


def make_adafactor(groups: Groups, betas: tuple[float, float], weight_decay: float, fused: bool) -> Optimizer:
    """Make Adafactor at the learning rate that is set: neither relative to the step nor to the weights' size."""
    from transformers.optimization import Adafactor

    made: Optimizer = Adafactor(
        groups, lr=groups[0]["lr"], weight_decay=weight_decay, scale_parameter=False, relative_step=False
    )
    return made


def make_prodigy(groups: Groups, betas: tuple[float, float], weight_decay: float, fused: bool) -> Optimizer:
    """Make Prodigy as its authors advise for diffusion models: with Adam's bias correction, and a safe warm-up."""
    decaying = [{"weight_decay": weight_decay, **group} for group in groups]  # as an argument it would print a line
    made: Optimizer = import_package("prodigy").Prodigy(
        decaying, betas=betas, use_bias_correction=True, safeguard_warmup=True
    )
    return made


def make_schedulefree(groups: Groups, betas: tuple[float, float], weight_decay: float, fused: bool) -> Optimizer:
    """Make schedule-free AdamW in training mode, in which it stays (`average.ScheduleFreeAverage`)."""
    optimizer: Any = import_package("schedulefree").AdamWScheduleFree(groups, betas=betas, weight_decay=weight_decay)
    optimizer.train()
    made: Optimizer = optimizer
    return made


def factored_bytes(weight: Tensor) -> int:
    """Return the bytes of a number for each row and each column of a weight's last two dimensions, float32."""
    if weight.ndim < 2:
        return 4 * weight.numel()
    return 4 * (weight.numel() // weight.shape[-1] + weight.numel() // weight.shape[-2])


def bytes_each(num_bytes: int) -> Callable[[Tensor], int]:
    """Return what counts so many bytes for each number of a weight."""
    return lambda weight: num_bytes * weight.numel()


OPTIMIZERS = {
    "adamw": OptimizerRow(make_adamw, bytes_each(8)),  # two moments
    "adamw8bit": OptimizerRow(make_adamw8bit, bytes_each(2), ("bitsandbytes", "8bit")),
    "adafactor": OptimizerRow(make_adafactor, factored_bytes),
    # Two moments, the first weights, and the sum by which the rate is estimated.
    "prodigy": OptimizerRow(make_prodigy, bytes_each(16), ("prodigyopt", "optimizers")),
    # A moment, and the weights that are averaged.
    "schedulefree": OptimizerRow(make_schedulefree, bytes_each(8), ("schedulefree", "optimizers")),
}
