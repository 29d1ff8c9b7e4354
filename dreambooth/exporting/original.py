"""One `.safetensors` in the layout of the original Stable Diffusion code, which most other tools read.

The layout is CompVis/latent-diffusion's (1.x), Stability-AI/stablediffusion's (2.x: an OpenCLIP text encoder) and
generative-models' (XL: both). Only names differ from diffusers, but for attention in the VAE, which are 1 x 1
convolutions there, and for OpenCLIP's query, key and value, which are one matrix.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dreambooth.exporting import word
from dreambooth.exporting.metadata import file_metadata
from dreambooth.exporting.names import link_old_name, weights_file
from dreambooth.families import Family, components
from dreambooth.methods import find_facts
from dreambooth.subject_info import ExportCard, write_card

MODEL_FILE = "model.safetensors"  # the name of earlier versions
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE_THE_BLOCKS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}
VAE = (
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)
OPEN_CLIP = (
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
)


def write(family: Family, card: ExportCard, folder: Path, name: str) -> None:
    """Write the whole model, adapters merged already, and the card. A learned word gets a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    state = original_state(family)
    if find_facts(card.method).adds_tokens:
        state = without_words(state, [row for each in card.subjects for row in family.tokenize(each.identifier)])
    save_file(state, folder / weights_file(name), metadata=file_metadata(family, card, "sgm"))
    link_old_name(folder, weights_file(name), MODEL_FILE)
    word.write_beside(family, card, folder, name)
    write_card(card, folder)


def without_words(state: dict[str, Tensor], ids: list[int]) -> dict[str, Tensor]:
    """Return the weights without the embedding's rows of new words: readers of the file have the base's vocabulary."""

    def is_longer(name: str) -> bool:
        return name.endswith("token_embedding.weight") and len(state[name]) == ids[-1] + 1

    return {name: tensor[: ids[0]] if is_longer(name) else tensor for name, tensor in state.items()}


def original_state(family: Family) -> dict[str, Tensor]:
    """Return all weights by their names in the original layout."""
    parts: dict[str, Any] = {**components(family), "vae": family.pipeline().vae}
    unet, vae = parts["unet"], parts["vae"]
    state = {f"model.diffusion_model.{original_unet_name(unet, name)}": t for name, t in unet.state_dict().items()}
    state |= {f"first_stage_model.{name}": t for name, t in vae_state(vae).items()}
    state |= text_state(parts)
    state |= prediction_keys(family)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def prediction_keys(family: Family) -> dict[str, Tensor]:
    """Return the empty tensors that tell ComfyUI what a model predicts; without them it assumes epsilon for XL."""
    is_xl = len(family.text_encoders) > 1
    if not is_xl or family.schedule.prediction != "v_prediction":
        return {}
    keys = ["v_pred"]
    if family.scheduler_config.get("rescale_betas_zero_snr"):
        keys.append("ztsnr")
    return {key: torch.zeros(0) for key in keys}


def original_unet_name(unet: Any, name: str) -> str:
    """Return the original name: "down_blocks.0.resnets.1.conv1.weight" is "input_blocks.2.0.in_layers.2.weight"."""
    for outside, original in OUTSIDE_THE_BLOCKS.items():
        if name == outside or name.startswith(f"{outside}."):
            return original + name.removeprefix(outside)
    if found := re.fullmatch(r"mid_block\.(\w+\.\d)(\..*|)", name):
        return MIDDLE[found[1]] + _inside(found[1], found[2])
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(\..*|)", name)
    assert found, name
    side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    per_block = int(unet.config.layers_per_block) + 1  # with the layer that resizes, going down, or one more, going up
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * per_block}.0.op{rest.removeprefix('.conv')}"
    if kind == "upsamplers":
        index = 2 if hasattr(unet.up_blocks[block], "attentions") else 1
        return f"output_blocks.{(block + 1) * per_block - 1}.{index}{rest}"
    number = block * per_block + layer + (side == "down")
    index = 0 if kind == "resnets" else 1
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{index}{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    """Return the original name within a block: names in a resnet differ, those in attention do not.

    rest: with its leading point, or empty.
    """
    inner, point, leaf = rest.removeprefix(".").partition(".")
    return f".{RESNET[inner]}{point}{leaf}" if kind.startswith("resnets") and inner in RESNET else rest


def vae_state(vae: Any) -> dict[str, Tensor]:
    last = len(vae.config.block_out_channels) - 1
    state = {}
    for name, tensor in vae.state_dict().items():
        is_attention = ".attentions." in name and name.endswith(".weight") and "group_norm" not in name
        for pattern, original in VAE:
            name = re.sub(pattern, original, name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{last - int(m[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        state[name] = tensor[:, :, None, None] if is_attention and tensor.ndim == 2 else tensor
    return state


def text_state(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the text encoders' weights by their original names.

    XL has a CLIP and an OpenCLIP encoder, 2.x an OpenCLIP one (which has plain GELU), 1.x a CLIP one.
    """
    first = parts["text_encoder"]
    if "text_encoder_2" in parts:
        state = {f"conditioner.embedders.0.transformer.{name}": t for name, t in clip_state(first).items()}
        second = open_clip_state(parts["text_encoder_2"])
        return state | {f"conditioner.embedders.1.model.{name}": t for name, t in second.items()}
    if first.config.hidden_act == "quick_gelu":
        return {f"cond_stage_model.transformer.{name}": t for name, t in clip_state(first).items()}
    return {f"cond_stage_model.model.{name}": t for name, t in open_clip_state(first).items()}


def clip_state(text_encoder: Any) -> dict[str, Tensor]:
    """Return a CLIP encoder's weights by the names that files have.

    transformers 5.6 took the level "text_model" out of some of its classes; files have it.
    """
    return {f"text_model.{name.removeprefix('text_model.')}": t for name, t in text_encoder.state_dict().items()}


def open_clip_state(text_encoder: Any) -> dict[str, Tensor]:
    plain = {name.removeprefix("text_model."): t for name, t in text_encoder.state_dict().items()}
    state = {}
    for name, tensor in plain.items():
        if name == "text_projection.weight":
            state["text_projection"] = tensor.T
        elif found := re.fullmatch(r"(encoder\.layers\.\d+\.self_attn)\.q_proj\.(weight|bias)", name):
            together = torch.cat([plain[f"{found[1]}.{each}_proj.{found[2]}"] for each in "qkv"])
            state[_open_clip_name(f"{found[1]}.in_proj_{found[2]}").replace("self_attn", "attn")] = together
        elif not re.search(r"self_attn\.[kv]_proj", name):
            state[_open_clip_name(name)] = tensor
    if "text_projection" not in state:  # 2.x reads no pooled text, but diffusers 0.30 learns the width from it
        width = text_encoder.config.hidden_size
        state["text_projection"] = torch.eye(width, dtype=tensor.dtype, device=tensor.device)
    return state


def _open_clip_name(name: str) -> str:
    for pattern, original in OPEN_CLIP:
        name = re.sub(pattern, original, name)
    return name
