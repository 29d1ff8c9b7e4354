"""The modules of a UNet by their names in the original Stable Diffusion code, counted block by block.

There a UNet is three lists, `input_blocks`, `middle_block` and `output_blocks`; diffusers has a list of blocks for each
side, and in each block lists of resnets and attentions.
"""

from collections.abc import Iterator
from typing import Any

RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def original_modules(unet: Any) -> dict[str, str]:
    """Return the original name of each linear module and convolution of a UNet by its name in diffusers."""
    blocks = dict(_blocks(unet))
    names = {}
    for name, _ in unet.named_modules():
        prefix = next((each for each in blocks if name.startswith(f"{each}.") or name == each), None)
        if name in OUTSIDE:
            names[name] = OUTSIDE[name]
        elif prefix is not None:
            inner = name[len(prefix) + 1 :]
            inner = RESNET.get(inner, inner) if ".resnets." in prefix else inner
            names[name] = f"{blocks[prefix]}.{inner}" if inner else blocks[prefix]
    return names


def _blocks(unet: Any) -> Iterator[tuple[str, str]]:
    """Yield ("down_blocks.0.resnets.0", "input_blocks.1.0") ..."""
    number = 0  # of the block before; the first is conv_in
    for level, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            number += 1
            yield f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{number}.0"
            if hasattr(block, "attentions"):
                yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{number}.1"
        if block.downsamplers is not None:
            number += 1
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
    middle = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    yield from ((name, f"middle_block.{index}") for index, name in enumerate(middle))
    number = -1
    for level, block in enumerate(unet.up_blocks):
        for layer in range(len(block.resnets)):
            number += 1
            yield f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{number}.0"
            if hasattr(block, "attentions"):
                yield f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{number}.1"
        if block.upsamplers is not None:  # it follows the last layer within the same block
            index = 2 if hasattr(block, "attentions") else 1
            yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{number}.{index}.conv"
