"""The methods with the functions that attach, save and load them."""

from functools import partial

from dreambooth.methods import FACTS, adapter_files, adapters, custom_diffusion, full, init_from, textual_inversion
from dreambooth.methods.base import Method
from dreambooth.plugins import Table

METHODS: Table[Method] = Table(
    "methods",
    {
        "full": Method(FACTS["full"], full.attach),
        "lora": Method(
            FACTS["lora"],
            partial(init_from.attach, adapters.lora_config, adapter_files.load_lora),
            adapter_files.save_lora,
            adapter_files.load_lora,
        ),
        "loha": Method(
            FACTS["loha"],
            partial(init_from.attach, adapters.loha_config, adapter_files.load_peft),
            adapter_files.save_peft,
            adapter_files.load_peft,
        ),
        "lokr": Method(
            FACTS["lokr"],
            partial(init_from.attach, adapters.lokr_config, adapter_files.load_peft),
            adapter_files.save_peft,
            adapter_files.load_peft,
        ),
        "textual_inversion": Method(
            FACTS["textual_inversion"], textual_inversion.attach, textual_inversion.save, textual_inversion.load
        ),
        "pivotal": Method(
            FACTS["pivotal"],
            textual_inversion.attach_pivotal,
            textual_inversion.save_pivotal,
            textual_inversion.load_pivotal,
        ),
        "custom_diffusion": Method(
            FACTS["custom_diffusion"], custom_diffusion.attach, custom_diffusion.save, custom_diffusion.load
        ),
    },
)
