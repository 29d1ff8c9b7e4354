"""Methods by name: what of a model trains, and how the result is kept.

A new method: one file with a function like `full.attach`, and one row here.
"""

from functools import partial

from dreambooth.errors import UserError
from dreambooth.methods import adapters, custom_diffusion, full, init_from, textual_inversion
from dreambooth.methods.base import Method, MethodSettings

__all__ = ["METHODS", "Method", "MethodSettings", "find_method"]

METHODS: dict[str, Method] = {
    "full": Method(full.attach, 2e-6),
    "lora": Method(
        partial(init_from.attach, adapters.lora_config, adapters.load_lora),
        1e-4,
        adapters.save_lora,
        adapters.load_lora,
    ),
    "loha": Method(
        partial(init_from.attach, adapters.loha_config, adapters.load_peft),
        1e-4,
        adapters.save_peft,
        adapters.load_peft,
    ),
    "lokr": Method(
        partial(init_from.attach, adapters.lokr_config, adapters.load_peft),
        1e-4,
        adapters.save_peft,
        adapters.load_peft,
    ),
    "textual_inversion": Method(
        textual_inversion.attach, 5e-4, textual_inversion.save, textual_inversion.load, adds_tokens=True
    ),
    "pivotal": Method(
        textual_inversion.attach_pivotal,
        1e-4,
        textual_inversion.save_pivotal,
        textual_inversion.load_pivotal,
        adds_tokens=True,
    ),
    "custom_diffusion": Method(custom_diffusion.attach, 1e-5, custom_diffusion.save, custom_diffusion.load),
}


def find_method(name: str) -> Method:
    """A method by name. Raises UserError for an unknown one."""
    if name not in METHODS:
        raise UserError(f"method.name: {name!r} is not known; one of {', '.join(METHODS)}")
    return METHODS[name]
