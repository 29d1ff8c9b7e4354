"""The embedded flow base: a tiny Z-Image, its VAE, then its text encoder and transformer, trained from scratch.

Rectified flow (Liu et al. 2022, arXiv 2209.03003) between latents and noise, timesteps logit-normal (Esser et al. 2024,
arXiv 2403.03206, eq. 19). Data, draws, weights where the object is, optimizers and loop are those of the UNet's base.
Its latents are of 4 x 4 pixels, since a token is 2 x 2 latents.

Shapes: B batch, C latent channels, h/w latent height and width, L tokens, T text width.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from dreambooth.errors import UserError
from dreambooth.exporting.pipeline import save_pipeline
from toyworld.base import BaseSettings, DenoiserTask, Recipe, train_base
from toyworld.dataset import Dataset, load_or_make_codec
from toyworld.editions import FLOW
from toyworld.evaluate import add_model_card
from toyworld.export import trained_vae
from toyworld.flow_forward import predict
from toyworld.flow_tokenizer import MAX_LENGTH, build_flow_tokenizer, with_template
from toyworld.tokenizer import build_tokenizer
from toyworld.training import Budget, load_average
from toyworld.vae import train_decoder, train_encoder

TEXT_WIDTH = 128
WIDTH, NUM_HEADS, NUM_LAYERS = 160, 5, 6
# sigma = sigmoid(LOCATION + SCALE * normal). A place shows even through nine parts of noise in ten: with 0 and 1, where
# one draw in seventy has more noise than that, 900 steps learned classes and colours, and no places.
LOCATION, SCALE = 0.8, 1.3
SAMPLER_SHIFT = 2.0  # small things far from the object, a moon or a cactus, come a little more often than with 1
CARD = Path(__file__).with_name("flow_card.md")


def build_transformer() -> ZImageTransformer2DModel:
    """Return an untrained transformer."""
    head = WIDTH // NUM_HEADS
    transformer = ZImageTransformer2DModel(
        in_channels=FLOW.latent_channels,
        dim=WIDTH,
        n_layers=NUM_LAYERS,
        n_refiner_layers=1,
        n_heads=NUM_HEADS,
        n_kv_heads=NUM_HEADS,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[head // 4, head // 8 * 3, head // 8 * 3],
        axes_lens=[1024, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # left without numbers by the class
        nn.init.normal_(token, std=0.02)
    return transformer


def build_flow_text_encoder(tokenizer: PreTrainedTokenizerFast) -> Qwen3Model:
    """Return an untrained Qwen3 with one layer more than those that are read: Z-Image reads the last but one."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=FLOW.text_layers + 1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=TEXT_WIDTH // 4,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3Model(config)


def build_flow_modules(settings: BaseSettings) -> nn.ModuleDict:
    """Return text encoder and transformer with random weights."""
    if settings.init_from is not None:
        raise UserError("--init-from: the flow base is trained from scratch; leave it out")
    torch.manual_seed(settings.seed)
    text_encoder = build_flow_text_encoder(build_flow_tokenizer(FLOW.vocabulary()))
    return nn.ModuleDict({"text_encoder": text_encoder, "transformer": build_transformer()})


class FlowTask(DenoiserTask):
    """Train a transformer that predicts noise - x0, as Z-Image counts: its time goes from noise to image."""

    def __init__(self, modules: nn.ModuleDict, dataset: Dataset, settings: BaseSettings) -> None:
        tokenizer = build_flow_tokenizer(FLOW.vocabulary())
        own = replace(dataset, tokens=torch.from_numpy(flow_tokens(dataset.tokens.numpy(), tokenizer)))
        super().__init__(own, settings, torch.from_numpy(encode_captions(tokenizer, [""])[0]).long())
        self.transformer, self.text_encoder = modules["transformer"], modules["text_encoder"]
        self.pad_id = tokenizer.pad_token_id

    def error(self, latents_BChw: Tensor, noise_BChw: Tensor, normal_B: Tensor, tokens_BL: Tensor) -> Tensor:
        sigma_B = torch.sigmoid(LOCATION + SCALE * normal_B)
        sigma_B111 = sigma_B[:, None, None, None]
        noisy_BChw = (1 - sigma_B111) * latents_BChw + sigma_B111 * noise_BChw
        length_B = (tokens_BL != self.pad_id).sum(1).cpu()
        tokens_BL = tokens_BL[:, : int(length_B.max())]
        with self.autocast:
            read = self.text_encoder(tokens_BL, attention_mask=tokens_BL != self.pad_id, output_hidden_states=True)
            found = predict(self.transformer, noisy_BChw, 1 - sigma_B, read.hidden_states[-2], length_B)
        predicted_BChw = -found.float()
        return (predicted_BChw - (noise_BChw - latents_BChw)) ** 2


def encode_captions(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> np.ndarray:
    """Return the tokens of captions in the template, padded, int16 [n, L]."""
    texts = [with_template(tokenizer, caption) for caption in captions]
    read = tokenizer(texts, add_special_tokens=False, padding="max_length", truncation=True)
    return np.array(read.input_ids, dtype=np.int16)


def flow_tokens(tokens: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return the data set's captions by this tokenizer, in the same shape but for the number of tokens.

    tokens: int16 [N, K, 32] or [N, 32] of the UNet's tokenizer, which decodes them to the words that they were.
    """
    theirs = build_tokenizer(FLOW.vocabulary())
    rows, inverse = np.unique(tokens.reshape(-1, tokens.shape[-1]), axis=0, return_inverse=True)
    captions = theirs.batch_decode(rows, skip_special_tokens=True)
    return encode_captions(tokenizer, captions)[inverse.reshape(-1)].reshape(*tokens.shape[:-1], MAX_LENGTH)


RECIPE = Recipe("flow", build_flow_modules, FlowTask, "transformer.", decay_fraction=0.6)


def train_flow_base(settings: BaseSettings, budgets: dict[str, Budget]) -> None:
    """Train, or resume training, the flow base; its states are in `settings.folder`.

    budgets: of decoder, encoder and flow (text encoder and transformer).
    """
    codec = load_or_make_codec(settings.folder, FLOW)
    train_decoder(FLOW, codec, budgets["decoder"], settings.folder, settings.device)
    train_encoder(FLOW, codec, budgets["encoder"], settings.folder, settings.device)
    train_base(replace(settings, budget=budgets["flow"]), RECIPE)


def load_flow_vae(work: Path) -> AutoencoderKL:
    """Return the VAE with the averaged weights of its training so far, and the shift that Z-Image's pipeline wants."""
    vae = trained_vae(work, FLOW)
    vae.register_to_config(shift_factor=0.0)
    return vae


def trained_flow_pipeline(work: Path) -> ZImagePipeline:
    """Return the flow base with the averaged weights of its training so far. Raises UserError if it has not begun."""
    if not (work / "flow.pt").is_file():
        raise UserError(f"nothing to export in {work}: flow.pt is missing; `toyworld flow` makes it")
    modules: Any = build_flow_modules(BaseSettings(work, FLOW))
    load_average(modules, work / "flow.pt")
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SAMPLER_SHIFT),
        vae=load_flow_vae(work),
        text_encoder=modules["text_encoder"].eval(),
        tokenizer=build_flow_tokenizer(FLOW.vocabulary()),
        transformer=modules["transformer"].eval(),
    )


def export_flow(work: Path, out: Path, base: Path) -> None:
    """Write the pipeline folder, its model card and the judge of `base` beside it; every float is stored in 16 bits."""
    pipeline: Any = trained_flow_pipeline(work)
    save_pipeline(pipeline.to(torch.float16), out)
    add_model_card(CARD, out)
    shutil.copytree(base / "judge", out / "judge", dirs_exist_ok=True)
