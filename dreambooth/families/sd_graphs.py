"""Stable Diffusion whose networks are graphs, as `export --format onnx` and `openvino` write them: to sample alone.

The folder is diffusers' pipeline, with graphs in the place of the weights, under the names that Optimum gives them:

    model_index.json  scheduler/  tokenizer/  text_encoder/  unet/  vae_encoder/  vae_decoder/

Shapes: B batch, C channels, H/W height and width, N tokens, D width of the text encoder.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn
from transformers import CLIPTextConfig

from dreambooth.errors import ModelError, UserError
from dreambooth.families.conditioning import Conditioning
from dreambooth.families.inspection import LOADING_ERRORS, read_json
from dreambooth.families.loading import load_scheduler_config, load_tokenizer
from dreambooth.families.runtimes import Graph
from dreambooth.families.sd import StableDiffusion
from dreambooth.families.single_file import Header
from dreambooth.families.source import ModelSource
from dreambooth.families.unet import input_of

PIPELINES = {"onnx": "ORTStableDiffusionPipeline", "openvino": "OVStableDiffusionPipeline"}  # of model_index.json


class GraphUNet(Graph):
    """A UNet's graph."""

    @property
    def num_upsamplers(self) -> int:
        return len(self.config.up_block_types) - 1


class GraphTextEncoder(Graph):
    """A text encoder's graph, called as `CLIPTextModel` is."""

    def forward(self, ids_BN: Tensor) -> Any:  # type: ignore[override]
        return SimpleNamespace(last_hidden_state=super().forward(input_ids=ids_BN))


class GraphVAE(nn.Module):
    """Two graphs of a VAE, called as `AutoencoderKL` is."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.config = read_config(folder / "vae_decoder")
        self.encoder = Graph(folder / "vae_encoder", self.config)
        self.decoder = Graph(folder / "vae_decoder", self.config)

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def encode(self, pixels_BCHW: Tensor) -> Any:
        mean_BCHW, log_var_BCHW = self.encoder(sample=pixels_BCHW).chunk(2, dim=1)
        std_BCHW = torch.exp(0.5 * log_var_BCHW.clamp(-30.0, 20.0))  # as diffusers' DiagonalGaussianDistribution
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean_BCHW, std=std_BCHW))

    def decode(self, z_BCHW: Tensor) -> Any:
        return SimpleNamespace(sample=self.decoder(latent_sample=z_BCHW))


@dataclass
class StableDiffusionGraphs(StableDiffusion):
    """Graphs behind the `Family` protocol. What changes a network's inside is not for them."""

    # The protocols of controls, styles and inpainting ask for these: None says that they are not followed.
    control = None  # type: ignore[assignment]
    shared_attention = None  # type: ignore[assignment]
    image_prompt = None  # type: ignore[assignment]

    def predict(self, noisy_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        texts_BND = conditioning["encoder_hidden_states"]
        inputs = {"sample": input_of(noisy_BCHW, conditioning), "timestep": t_B, "encoder_hidden_states": texts_BND}
        prediction_BCHW: Tensor = self.unet(**inputs)
        return prediction_BCHW


def read_config(folder: Path) -> Any:
    """Return the config of a network of diffusers, whose keys are attributes. Raises ModelError."""
    return FrozenDict(read_json(folder / "config.json"))


def load(folder: Path, source: ModelSource) -> StableDiffusionGraphs:
    """Load a folder of graphs.

    Raises ModelError for one that is not whole, UserError where the library is missing or another VAE or weights of
    another size are asked for.
    """
    if source.vae is not None:
        raise UserError(f"--vae {source.vae}: {source.base} holds graphs, its VAE among them; export with another one")
    if source.quantize is not None:
        raise UserError(
            f"--quantize {source.quantize}: {source.base} holds graphs, whose weights are stored as they were exported"
        )
    try:
        text_config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder / 'text_encoder'}: has no config.json that can be read") from error
    parts: dict[str, Any] = {
        "vae": GraphVAE(folder),
        "unet": GraphUNet(folder / "unet", read_config(folder / "unet")),
        "text_encoder": GraphTextEncoder(folder / "text_encoder", text_config),
    }
    tokenizer = load_tokenizer(folder, "tokenizer")
    return StableDiffusionGraphs(scheduler_config=load_scheduler_config(folder), tokenizer=tokenizer, **parts)


def load_single_file(header: Header, source: ModelSource) -> StableDiffusionGraphs:
    raise ModelError(f"{header.path}: graphs come as folders")
