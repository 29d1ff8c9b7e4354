"""The configs of Stable Diffusion 1.x, 2.x and XL, and CLIP's tokenizer: what a single file lacks to be a model.

The numbers are those of the published pipeline folders; where none is given, the class has the right default.
"""

import contextlib
import gzip
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, T5TokenizerFast

MERGES = Path(__file__).with_name("clip_merges.txt.gz")  # its licence is beside it
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77  # with start and end

CHAT_TEMPLATE = (  # of Qwen's models, as far as one message of the user goes
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Config = dict[str, Any]

SAMPLER: Config = {  # of all models; samplers of other kinds that are made from it need the last four
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
}
VAE: Config = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
VAE_XL = VAE | {"scaling_factor": 0.13025, "force_upcast": True}
UNET: Config = {  # that of 1.x; the classes' own defaults are its kinds of blocks and its 8 heads
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
UNET_2 = UNET | {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],  # diffusers means the number of heads
    "use_linear_projection": True,
    "upcast_attention": True,
}
SIZE_2_V = 96
UNET_2_V = UNET_2 | {"sample_size": SIZE_2_V}
UNET_XL = UNET | {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 768 + 1280,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 1280,
}
CLIP_L: Config = {  # OpenAI's ViT-L/14
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "max_position_embeddings": MAX_TOKENS,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
CLIP_H = CLIP_L | {  # OpenCLIP's ViT-H/14 without its last layer, as 2.x reads it
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
CLIP_BIG_G = CLIP_L | {  # OpenCLIP's ViT-bigG/14
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
PNDM = SAMPLER | {"_class_name": "PNDMScheduler"}
DDIM = SAMPLER | {"_class_name": "DDIMScheduler"}
EULER = SAMPLER | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
PREDICTS_V: Config = {"prediction_type": "v_prediction"}
READS_MASK: Config = {"in_channels": 2 * 4 + 1}  # noisy latents, the mask, and the latents of what is kept
ENDS_IN_NOISE: Config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}  # zero terminal SNR


@dataclass(frozen=True)
class BuiltinConfig:
    """Hold a pipeline folder without weights: its index, its parts' configs, and the pad token of each tokenizer.

    stand_ins: of tokenizers that are not shipped, the kind of each (`make_stand_in`).
    """

    pipeline: Config
    parts: dict[str, Config]
    pad_tokens: dict[str, str]
    stand_ins: dict[str, str] = field(default_factory=dict)


SD = {"_class_name": "StableDiffusionPipeline"}
SD_1 = {"unet": UNET, "vae": VAE, "text_encoder": CLIP_L, "scheduler": PNDM}
SD_2 = {"unet": UNET_2, "vae": VAE, "text_encoder": CLIP_H, "scheduler": DDIM}
SDXL = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
SDXL_1 = {"unet": UNET_XL, "vae": VAE_XL, "text_encoder": CLIP_L, "text_encoder_2": CLIP_BIG_G, "scheduler": EULER}
PADS_XL = {"tokenizer": END, "tokenizer_2": "!"}

BUILTIN_CONFIGS = {  # -v: predicts v
    "sd1": BuiltinConfig(SD, SD_1, {"tokenizer": END}),
    "sd1-v": BuiltinConfig(SD, SD_1 | {"scheduler": PNDM | PREDICTS_V}, {"tokenizer": END}),
    "sd2": BuiltinConfig(SD, SD_2, {"tokenizer": "!"}),  # 2.0-base, 2.1-base
    "sd2-v": BuiltinConfig(
        SD, SD_2 | {"unet": UNET_2_V, "scheduler": DDIM | PREDICTS_V}, {"tokenizer": "!"}
    ),  # 2.0, 2.1
    "sdxl": BuiltinConfig(SDXL, SDXL_1, PADS_XL),
    "sdxl-v": BuiltinConfig(SDXL, SDXL_1 | {"scheduler": EULER | PREDICTS_V}, PADS_XL),
    "sdxl-v-ztsnr": BuiltinConfig(SDXL, SDXL_1 | {"scheduler": EULER | PREDICTS_V | ENDS_IN_NOISE}, PADS_XL),
    "sd1-inpaint": BuiltinConfig(SD, SD_1 | {"unet": UNET | READS_MASK}, {"tokenizer": END}),
    "sd2-inpaint": BuiltinConfig(SD, SD_2 | {"unet": UNET_2 | READS_MASK}, {"tokenizer": "!"}),
    "sdxl-inpaint": BuiltinConfig(SDXL, SDXL_1 | {"unet": UNET_XL | READS_MASK}, PADS_XL),
}


@contextlib.contextmanager
def config_folder(name: str, known: Mapping[str, BuiltinConfig] = BUILTIN_CONFIGS) -> Iterator[Path]:
    """Yield a temporary folder with all of a pipeline folder but the weights. name: a key of `known`."""
    builtin = known[name]
    index = dict(builtin.pipeline)
    with tempfile.TemporaryDirectory() as created:
        folder = Path(created)
        for part, config in builtin.parts.items():
            index[part] = (
                ["transformers", *config["architectures"]]
                if "architectures" in config
                else ["diffusers", config["_class_name"]]
            )
            (folder / part).mkdir()
            file = "scheduler_config.json" if part == "scheduler" else "config.json"
            (folder / part / file).write_text(json.dumps(config))
        for part, pad in builtin.pad_tokens.items():
            index[part] = ["transformers", "CLIPTokenizer"]
            make_tokenizer(pad).save_pretrained(folder / part)
        for part, kind in builtin.stand_ins.items():
            stand_in = make_stand_in(kind)
            index[part] = ["transformers", type(stand_in).__name__]
            stand_in.save_pretrained(folder / part)
        (folder / "model_index.json").write_text(json.dumps(index))
        yield folder


def make_tokenizer(pad: str) -> CLIPTokenizer:
    """Make CLIP's tokenizer (Radford et al. 2021, arXiv 2103.00020); the models' tokenizers differ only in padding.

    Token ids: 256 bytes, each also as the end of a word, a token a merge, start and end.
    """
    merges = [tuple(line.split(" ")) for line in gzip.decompress(MERGES.read_bytes()).decode().splitlines()]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), BEGIN, END]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS, pad_token=pad)


def make_stand_in(kind: str) -> CLIPTokenizer | T5TokenizerFast:
    """Return a tokenizer in the place of one that is not shipped. kind: "qwen" or "t5".

    It counts some more tokens than that one, and knows no word of its.
    """
    if kind == "qwen":
        tokenizer = make_tokenizer(END)
        tokenizer.chat_template = CHAT_TEMPLATE
        return tokenizer
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    return T5TokenizerFast(vocab=pieces + [(letter, -3.0) for letter in ascii_lowercase], extra_ids=0)
