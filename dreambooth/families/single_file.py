"""Models in one `.safetensors` of the original layout, as most of them are passed around.

Such a file holds weights alone. Their names and shapes tell which built-in config fits. What the network predicts is
not in them; some files say it, in the ways of ComfyUI and of the modelspec metadata.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth.errors import ModelError, first_line
from dreambooth.families.builtin_configs import BUILTIN_CONFIGS, config_folder
from dreambooth.families.inspection import LOADING_ERRORS, read_index
from dreambooth.families.loading import stored_dtype
from dreambooth.families.protocols import Family
from dreambooth.families.quantization import quantize
from dreambooth.families.source import ModelSource
from dreambooth.families.vae import load_other_vae
from dreambooth.home_folder import with_home

UNET = "model.diffusion_model."
VAE_PREFIXES = ("first_stage_model.", "vae.")
CLIP_PREFIXES = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")  # of 1.x, of XL
TEXT_WIDTHS = {768: "sd1", 1024: "sd2", 768 + 1280: "sdxl"}  # of the texts that the UNet attends to
OTHER_KINDS = {  # a name, or the beginning of one, that only models of other kinds have
    "edm_mean": "of the EDM kind (Playground 2.5)",
    "edm_vpred.sigma_max": "of the EDM kind (CosXL)",
    "conditioner.embedders.0.model.": "an SDXL refiner",
}
TRANSFORMERS = {  # a weight of each family's transformer, by the authors' names and by diffusers'
    "cap_embedder.0.weight": "z_image",
    "double_stream_modulation_img.lin.weight": "flux2_klein",
    "double_stream_modulation_img.linear.weight": "flux2_klein",
    "transformer_blocks.0.img_mod.1.weight": "qwen_image",
    "txtfusion.projector.weight": "krea2",
    "text_fusion.projector.weight": "krea2",
    "double_blocks.0.img_mod.lin.weight": "flux1",
    "single_transformer_blocks.0.proj_mlp.weight": "flux1",
    "joint_blocks.0.x_block.attn.qkv.weight": "sd3",
    "pos_embed.proj.weight": "sd3",
}
# Keys and values by which metadata state the UNet's prediction: kohya's scripts, ComfyUI, Stability's own files.
PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key", "modelspec.architecture")
PREDICTIONS = {
    "epsilon": "epsilon",
    "stable-diffusion-v2-512": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "stable-diffusion-v2-768-v": "v_prediction",
}
SCALES = ("scaled_fp8", ".scale_weight", ".weight_scale", ".comfy_quant")  # how names of scales of codes end


@dataclass(frozen=True)
class Header:
    """Hold a single file's header, which is read before its weights."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    @property
    def family(self) -> str:
        """Return the family by names that only its networks have. Raises ModelError for a file of none."""
        plain = {name.removeprefix(UNET) for name in self.shapes}
        for name, family in TRANSFORMERS.items():
            if name in plain:
                return family
        if any(name.startswith("conditioner.embedders.1.") for name in self.shapes):
            return "sdxl"
        if any(name.startswith(UNET) for name in self.shapes):
            return "sd"
        raise ModelError(f"{self.path}: holds no model of a known family (no {UNET}*); is it a LoRA?")

    @property
    def has_vae(self) -> bool:
        """Return whether it holds a VAE; many are passed around without."""
        return any(name.startswith(VAE_PREFIXES) for name in self.shapes)

    @property
    def prediction(self) -> str | None:
        """Return what its UNet predicts, 'epsilon' or 'v_prediction'; None where the file does not say."""
        if "v_pred" in self.shapes:
            return "v_prediction"
        stated = (PREDICTIONS.get(self.metadata.get(key, "")) for key in PREDICTION_KEYS)
        return next(filter(None, stated), None)

    @property
    def config(self) -> str:
        """Return the name of the built-in config that fits the file. Raises ModelError where there is none."""
        for start, kind in OTHER_KINDS.items():
            if any(name.startswith(start) for name in self.shapes):
                raise ModelError(f"{self.path}: {kind}, which cannot be trained here; use a plain text-to-image model")
        channels = self.shapes.get(f"{UNET}input_blocks.0.0.weight", (0, 0))[1]
        if channels not in (4, 9):
            raise ModelError(
                f"{self.path}: its UNet reads {channels} channels, not 4, or 9 as inpainting models do; use its plain "
                "text-to-image sibling"
            )
        widths = {shape[-1] for name, shape in self.shapes.items() if name.endswith(".attn2.to_k.weight")}
        if len(widths) != 1 or (width := widths.pop()) not in TEXT_WIDTHS:
            raise ModelError(
                f"{self.path}: none of the built-in configs ({', '.join(BUILTIN_CONFIGS)}) is of this size; name a "
                "folder or hub id with its configs and tokenizer (model.config, --config)"
            )
        name = TEXT_WIDTHS[width]
        if channels == 9:
            return f"{name}-inpaint"
        if self.prediction != "v_prediction":
            return name
        return f"{name}-v-ztsnr" if name == "sdxl" and "ztsnr" in self.shapes else f"{name}-v"


def read_header(path: Path) -> Header:
    """Read a single file's names, shapes and metadata. Raises ModelError for a file that is damaged."""
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            header = Header(path, shapes, file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as .safetensors ({first_line(error)})") from error
    if any(name.endswith(SCALES) for name in shapes):
        raise ModelError(
            f"{path}: its weights are 8-bit codes with scales (fp8 scaled, of ComfyUI), which are not read here; take "
            "the file in bfloat16 or float16, and model.quantize to store it in less"
        )
    return header


def load_single_file_pipeline(pipeline_class: Any, header: Header, source: ModelSource, **options: Any) -> Any:
    """Load the file as a pipeline: the VAE in float32, the other parts straight in the source's dtype, or quantized.

    Raises ModelError.
    """
    with _configs(source.config or header.config) as configs:
        if os.path.isdir(configs):
            read_index(Path(configs))
        if source.vae is not None:  # a part that is given is not read again with the others
            options["vae"] = load_other_vae(source.vae, configs)
        elif not header.has_vae:
            raise ModelError(
                f"{header.path}: holds no VAE; name one with model.vae (--vae): folder, hub id or single .safetensors"
            )
        dtype = source.dtype if source.quantize is None else stored_dtype(header.path, source.dtype)
        try:
            if (text_encoder := load_flat_text_encoder(header, configs, dtype)) is not None:
                options["text_encoder"] = text_encoder
            if source.vae is None and dtype != torch.float32:
                options["vae"] = AutoencoderKL.from_single_file(
                    str(header.path), config=configs, subfolder="vae", dtype=torch.float32
                )
            pipeline = pipeline_class.from_single_file(str(header.path), config=configs, dtype=dtype, **options)
        except (*LOADING_ERRORS, SingleFileComponentError) as error:
            raise ModelError(
                f"{header.path}: cannot be read as a single-file {pipeline_class.__name__} ({first_line(error)}); "
                "name a local folder with its own configs and tokenizer (model.config, --config)"
            ) from error
    if source.quantize is not None:
        for part in (pipeline.unet, pipeline.text_encoder, pipeline.components.get("text_encoder_2")):
            if part is not None:
                quantize(part, source.quantize)
                part.to(source.dtype)
    return pipeline


def load_flat_text_encoder(header: Header, configs: str, dtype: torch.dtype) -> CLIPTextModel | None:
    """Load a CLIP whose names lack the level "text_model", which diffusers does not find; None where they have it.

    transformers took that level out of the class in 5.6, and some tools write the names of the class as they are.
    """
    first = "embeddings.token_embedding.weight"
    prefix = next((each for each in CLIP_PREFIXES if f"{each}{first}" in header.shapes), None)
    if prefix is None:
        return None
    text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(configs, subfolder="text_encoder"))
    level = "text_model." if hasattr(text_encoder, "text_model") else ""
    with safe_open(header.path, "pt") as file:
        own = [name for name in header.shapes if name.startswith(prefix) and not name.endswith(".position_ids")]
        state = {level + name.removeprefix(prefix): file.get_tensor(name) for name in own}
    text_encoder.load_state_dict(state)
    return text_encoder.to(dtype).eval()


@contextlib.contextmanager
def _configs(config: str) -> Iterator[str]:
    """Yield a folder or hub id as it is, and for a built-in config a folder that holds it."""
    config = with_home(config)
    if config not in BUILTIN_CONFIGS or Path(config).is_dir():
        yield config
        return
    with config_folder(config) as folder:
        yield str(folder)


@torch.no_grad()
def measured_prediction(family: Family) -> str:
    """Measure if a UNet predicts 'epsilon' or 'v_prediction', by its answer y to pure noise x at the last timestep.

    epsilon is the noise, so x comes back: y.x / x.x = 1. v = alpha * noise - sigma * x0 (Salimans & Ho 2022, arXiv
    2202.00512, appendix D) holds hardly any of it there: y.x / x.x is about alpha, 0.07 for Stable Diffusion.
    """
    t_B = torch.tensor([family.schedule.num_timesteps - 1])
    noise_BCHW = torch.randn(1, *family.latent_shape(256, 256), generator=torch.Generator().manual_seed(0))
    answer_BCHW = family.predict(noise_BCHW, t_B, family.encode_prompts([""]))
    projection = (answer_BCHW * noise_BCHW).sum() / noise_BCHW.square().sum()
    return "epsilon" if projection > 0.5 else "v_prediction"
