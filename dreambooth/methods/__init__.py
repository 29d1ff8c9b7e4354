"""Methods by name: what of a model trains.

A new method: one file with a function like `full.attach`, and one row here.
"""

from collections.abc import Callable

from torch import nn

from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.methods import full

Attach = Callable[[Family, bool], dict[str, nn.Module]]

METHODS: dict[str, Attach] = {"full": full.attach}


def attach_method(name: str, family: Family, train_text_encoder: bool) -> dict[str, nn.Module]:
    """Set `requires_grad` over the family and return what trains, by name. Raises UserError for an unknown method."""
    if name not in METHODS:
        raise UserError(f"method.name: {name!r} is not known; one of {', '.join(METHODS)}")
    return METHODS[name](family, train_text_encoder)
