"""A real Stable Diffusion at tiny size with random weights, and pictures to learn from: what most tests run on."""

import contextlib
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image, ImageDraw
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from dreambooth.subject_info import card_in_file, read_card
from toyworld import encoders
from toyworld.readers import blip2
from toyworld.tokenizer import build_tokenizer

CLIP_SIZE = encoders.Size(width=16, num_layers=1, num_heads=2, text_width=16, num_text_layers=1, projection_dim=8)


def make_tiny_base(folder: Path, prediction_type: str = "epsilon") -> Path:
    """Exact classes of Stable Diffusion, 8-fold smaller latents of 4 channels, some 100,000 random weights."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="gelu" if prediction_type == "v_prediction" else "quick_gelu",  # as Stable Diffusion 2.1 has it
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, prediction_type=prediction_type
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def make_tiny_xl_base(folder: Path) -> Path:
    """The same of Stable Diffusion XL: two text encoders, pooled texts, sizes and crops."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text_configs = [
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            projection_dim=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_act=activation,
        )
        for width, activation in ((16, "quick_gelu"), (24, "gelu"))
    ]
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 + 24,
        attention_head_dim=4,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 24,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        scaling_factor=0.13025,
        force_upcast=True,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_configs[0]),
        text_encoder_2=CLIPTextModelWithProjection(text_configs[1]),
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
    )
    pipeline.save_pretrained(folder)
    return folder


def make_blip2(folder: Path) -> Path:
    """A BLIP-2 of random weights that reads the toy world's words, and the model of its first stage in `retrieval`."""
    clip = encoders.build_clip(CLIP_SIZE)
    size = blip2.Size(num_queries=4, width=16, num_layers=2, text_width=16, num_text_layers=1, embedding_dim=8)
    matcher = blip2.Matcher(clip, size)
    blip2.save(matcher.model, folder / "retrieval")
    blip2.save(blip2.build_writer_model(matcher, clip, size), folder)
    return folder


def make_pictures(folder: Path) -> Path:
    """A folder with three different pictures of 64 x 64 pixels and more."""
    folder.mkdir(exist_ok=True)
    for number, colour in enumerate(("red", "green", "blue")):
        image = Image.new("RGB", (64, 64 + 16 * number), "white")
        ImageDraw.Draw(image).ellipse((8, 8 + 4 * number, 40, 48), fill=colour)
        image.save(folder / f"{number}.png")
    return folder


def run_model_card(folder: Path, end: str = "```") -> dict[str, Any]:
    """Run the Python of an export's README.md, up to `end`, in its folder; what that has made, by name."""
    code = re.search(rf"```python\n(.*?){end}", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None, f"{folder / 'README.md'} shows no code"
    made: dict[str, Any] = {}
    cards = [read_card(folder), *(card_in_file(path) for path in folder.glob("*.safetensors"))]
    bases = (each for card in cards if card is not None for each in (card.base, card.base_config, card.base_vae))
    for place in bases:
        if place is not None and Path(place).exists() and not (folder / Path(place).name).exists():
            (folder / Path(place).name).symlink_to(Path(place).resolve())  # the card names it, and not where it lies
    with contextlib.chdir(folder):
        exec(code[1], made)
    return made
