"""Methods by name: what of a model trains, and how the result is kept.

Here are their facts, which need no torch; `table` has what they do. A new method: one file with a function like
`full.attach`, one row here and one there.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth.errors import UserError
from dreambooth.plugins import Table

if TYPE_CHECKING:
    from dreambooth.methods.base import Method

__all__ = ["FACTS", "Facts", "default_lr", "find_facts", "find_method"]


@dataclass(frozen=True)
class Facts:
    """Hold the facts of a method. lr: a learning rate that suits it. adds_tokens: each identifier becomes a new word.

    is_adapter: the result is in files of its own, beside an untouched base.
    """

    lr: float
    is_adapter: bool = True
    adds_tokens: bool = False


FACTS: Table[Facts] = Table(
    "methods",
    {
        "full": Facts(2e-6, is_adapter=False),
        "lora": Facts(1e-4),
        "loha": Facts(1e-4),
        "lokr": Facts(1e-4),
        "textual_inversion": Facts(5e-4, adds_tokens=True),
        "pivotal": Facts(1e-4, adds_tokens=True),
        "custom_diffusion": Facts(1e-5),
    },
    lambda method: method.facts,
)


# Methods whose results are a LoRA, and those that kohya's names hold as LyCORIS writes them.
HAVE_A_LORA = ("lora", "pivotal")
HAVE_FACTORS = ("loha", "lokr")
BESIDE_THE_BASE = (*HAVE_A_LORA, *HAVE_FACTORS, "textual_inversion")  # that leave the base's own weights alone
HAVE_KOHYA_NAMES = (*HAVE_A_LORA, *HAVE_FACTORS)


def find_facts(name: str) -> Facts:
    """Return the facts of a method. Raises UserError for an unknown one."""
    if name not in FACTS:
        raise UserError(f"method.name={name}: unknown method; one of {', '.join(FACTS)}")
    return FACTS[name]


# How much of a method's learning rate, which suits AdamW, an optimizer wants. Defazio et al. 2024 (arXiv 2405.15682)
# found the best rate of schedule-free AdamW at 1 to 10 times AdamW's.
RATES = {"schedulefree": 2.0}


def default_lr(method: str, optimizer: str) -> float:
    """Return the learning rate of a method by an optimizer; Prodigy finds its own, which 1 leaves as it is."""
    return 1.0 if optimizer == "prodigy" else find_facts(method).lr * RATES.get(optimizer, 1.0)


def find_method(name: str) -> "Method":
    """Return a method by name. Raises UserError for an unknown one."""
    find_facts(name)
    from dreambooth.methods.table import METHODS  # loads torch, diffusers and peft

    return METHODS[name]
