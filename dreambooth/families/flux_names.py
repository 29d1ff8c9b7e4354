"""The names by which Black Forest Labs knows the modules of FLUX.1's and FLUX.2's blocks.

Query, key and value are one matrix there, whose outputs are theirs one after another.
"""

from typing import Any

SIDES = {  # of a double block: query, key, value, the way out of attention, and the feed-forward
    "img": (("to_q", "to_k", "to_v"), "to_out.0", "ff"),
    "txt": (("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
}
Joined = dict[str, tuple[str, ...]]


def block_modules(transformer: Any, feed_forward: tuple[str, str], linear1: tuple[str, ...], linear2: str) -> Joined:
    """Return, by the authors' name of a matrix, the modules of diffusers whose outputs it has one after another.

    feed_forward: the names of both layers in diffusers. linear1, linear2: what a single block's matrices are there.
    """
    found: Joined = {}
    for number in range(len(transformer.transformer_blocks)):
        here, block = f"transformer_blocks.{number}", f"double_blocks.{number}"
        for side, (query_key_value, out, ff) in SIDES.items():
            found[f"{block}.{side}_attn.qkv"] = tuple(f"{here}.attn.{name}" for name in query_key_value)
            found[f"{block}.{side}_attn.proj"] = (f"{here}.attn.{out}",)
            for layer, name in zip(("0", "2"), feed_forward, strict=True):
                found[f"{block}.{side}_mlp.{layer}"] = (f"{here}.{ff}.{name}",)
    for number in range(len(transformer.single_transformer_blocks)):
        here, block = f"single_transformer_blocks.{number}", f"single_blocks.{number}"
        found[f"{block}.linear1"] = tuple(f"{here}.{name}" for name in linear1)
        found[f"{block}.linear2"] = (f"{here}.{linear2}",)
    return found
