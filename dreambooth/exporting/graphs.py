"""Export to ONNX and OpenVINO: Stable Diffusion's networks as graphs, which `sample` runs without their weights.

torch.export traces each network, so a graph does what is done here, with batch, size and number of tokens left open.
Optimum's exporters (optimum-onnx 0.1, optimum-intel 2.2) ask for transformers before 4.58 and 5.6.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from dreambooth.errors import ModelError, first_line
from dreambooth.exporting.pipeline import save_tokenizer
from dreambooth.families import Family
from dreambooth.families.runtimes import import_extra
from dreambooth.families.sd_graphs import PIPELINES
from dreambooth.files import write_text
from dreambooth.subject_info import ExportCard, write_card

OPEN = torch.export.Dim.AUTO  # an axis whose length is not fixed


@dataclass(frozen=True)
class Part:
    """Hold a network's part to export. network: takes and returns float32. open_axes: of each input, by name."""

    name: str
    network: nn.Module
    inputs: dict[str, Tensor]
    open_axes: dict[str, tuple[int, ...]]
    output: str


class InFloat32(nn.Module):
    """A network in any dtype whose inputs and output are float32, so that a runtime needs to know of none.

    Timesteps stay float32: between whole ones, as Karras' are, they would lose digits.
    """

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, *inputs: Tensor) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        cast = [each.to(dtype) if each.is_floating_point() and each.ndim > 1 else each for each in inputs]
        return self.call(self.network, *cast).float()


def _unet(unet: Any, sample_BCHW: Tensor, t_B: Tensor, texts_BND: Tensor) -> Tensor:
    prediction_BCHW: Tensor = unet(sample_BCHW, t_B, encoder_hidden_states=texts_BND).sample
    return prediction_BCHW


def _text_encoder(text_encoder: Any, ids_BN: Tensor) -> Tensor:
    states_BND: Tensor = text_encoder(ids_BN).last_hidden_state
    return states_BND


def _encode(vae: Any, pixels_BCHW: Tensor) -> Tensor:
    """Return mean and logarithm of the variance, [B, 2 C, H, W]."""
    moments_BCHW: Tensor = vae.encode(pixels_BCHW).latent_dist.parameters
    return moments_BCHW


def _decode(vae: Any, z_BCHW: Tensor) -> Tensor:
    pixels_BCHW: Tensor = vae.decode(z_BCHW).sample
    return pixels_BCHW


def parts_of(family: Any) -> list[Part]:
    """Return the networks of Stable Diffusion with example inputs."""
    num_tokens, width = family.max_tokens, family.unet.config.cross_attention_dim
    side = family.unet.config.sample_size
    noisy_BCHW = torch.zeros(2, family.unet.config.in_channels, side, side)
    z_BCHW = torch.zeros(2, family.vae.config.latent_channels, side, side)
    pixels_BCHW = torch.zeros(2, 3, side * family.vae_scale_factor, side * family.vae_scale_factor)
    inputs = {
        "sample": noisy_BCHW,
        "timestep": torch.zeros(2),
        "encoder_hidden_states": torch.zeros(2, num_tokens, width),
    }
    open_axes = {"sample": (0, 2, 3), "timestep": (0,), "encoder_hidden_states": (0, 1)}
    ids_BN = torch.ones(2, num_tokens, dtype=torch.int64)
    size = (0, 2, 3)
    return [
        Part("unet", InFloat32(family.unet, _unet), inputs, open_axes, "out_sample"),
        Part(
            "text_encoder",
            InFloat32(family.text_encoder, _text_encoder),
            {"input_ids": ids_BN},
            {"input_ids": (0,)},
            "last_hidden_state",
        ),
        Part(
            "vae_encoder",
            InFloat32(family.vae, _encode),
            {"sample": pixels_BCHW},
            {"sample": size},
            "latent_parameters",
        ),
        Part(
            "vae_decoder", InFloat32(family.vae, _decode), {"latent_sample": z_BCHW}, {"latent_sample": size}, "sample"
        ),
    ]


def write_onnx_graph(part: Part, path: Path) -> None:
    """Write one graph. Raises ModelError for a network that cannot be traced."""
    shapes = (dict.fromkeys(part.open_axes[name], OPEN) for name in part.inputs)
    try:
        with torch.no_grad():
            torch.onnx.export(
                part.network.eval(),
                tuple(part.inputs.values()),
                str(path),
                dynamo=True,
                input_names=[*part.inputs],
                output_names=[part.output],
                dynamic_shapes=(tuple(shapes),),
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"{part.name}: cannot be written as ONNX: {first_line(error)}") from error


def write(form: str, family: Family, card: ExportCard, folder: Path, name: str) -> None:
    """Write a pipeline's folder with graphs in the place of weights. form: onnx or openvino.

    Raises UserError where openvino is not installed, ModelError for a network that cannot be traced.
    """
    openvino = import_extra("openvino", form) if form == "openvino" else None
    networks: Any = family
    networks.unet.set_attn_processor(AttnProcessor2_0())
    networks.unet.to(memory_format=torch.contiguous_format)
    _write_settings(networks, folder, form)
    for part in parts_of(family):
        path = folder / part.name / "model.onnx"
        path.parent.mkdir(exist_ok=True)
        write_onnx_graph(part, path)
        if openvino is not None:
            openvino.save_model(openvino.convert_model(str(path)), path.parent / "openvino_model.xml", False)
            for onnx_file in path.parent.glob("model.onnx*"):
                onnx_file.unlink()
    write_card(replace(card, method="full"), folder)


def _write_settings(networks: Any, folder: Path, form: str) -> None:
    """Write tokenizer, sampler and the networks' configs: a pipeline's folder without its weights."""
    networks.unet.save_config(folder / "unet")
    for half in ("vae_encoder", "vae_decoder"):
        networks.vae.save_config(folder / half)
    networks.text_encoder.config.save_pretrained(folder / "text_encoder")
    networks.scheduler().save_pretrained(folder / "scheduler")
    save_tokenizer(networks.tokenizer, folder / "tokenizer")
    index = {
        "_class_name": PIPELINES[form],
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(networks.scheduler()).__name__],
        "tokenizer": ["transformers", type(networks.tokenizer).__name__],
    }
    write_text(folder / "model_index.json", json.dumps(index, indent=2) + "\n")


write_onnx, write_openvino = partial(write, "onnx"), partial(write, "openvino")
