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


def find_method(name: str) -> Attach:
    """The function that sets `requires_grad` over a family and returns what trains, by name.

    Raises UserError for an unknown method.
    """
    if name not in METHODS:
        raise UserError(f"method.name: {name!r} is not known; one of {', '.join(METHODS)}")
    return METHODS[name]
