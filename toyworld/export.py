"""Puts the trained parts together as a pipeline folder that plain diffusers loads, in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import nn

from dreambooth.exporting.pipeline import save_pipeline
from toyworld.base import BaseSettings, build_modules, load_trained, sampling_scheduler
from toyworld.editions import FIRST, SECOND, Edition
from toyworld.evaluate import add_model_card
from toyworld.judge import Judge, JudgeNet
from toyworld.second.judge import Judge as SecondJudge
from toyworld.second.judge import JudgeNet as SecondJudgeNet
from toyworld.tokenizer import build_tokenizer
from toyworld.training import load_average
from toyworld.vae import build_vae

SECOND_CARD = Path(__file__).parent / "second" / "card.md"


def trained_vae(work: Path, edition: Edition) -> AutoencoderKL:
    """Return the autoencoder with the averaged weights of its training so far; parts not begun are untrained."""
    vae = build_vae(edition)
    assert vae.post_quant_conv is not None
    load_average(nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder}), work / "decoder.pt")
    load_average(nn.ModuleDict({"encoder": vae.encoder}), work / "encoder.pt")
    return vae.eval()


def trained_judge(work: Path, edition: Edition) -> Judge | SecondJudge:
    """Return the judge with the averaged weights of its training so far."""
    if edition is FIRST:
        net = JudgeNet()
        load_average(net, work / "judge.pt")
        return Judge(net)
    second_net = SecondJudgeNet()
    load_average(second_net, work / "judge.pt")
    return SecondJudge(second_net)


def trained_pipeline(work: Path, edition: Edition) -> StableDiffusionPipeline:
    """Return the base with the averaged weights of its training so far, in float32.

    Raises UserError where there is no base.pt.
    """
    modules = build_modules(BaseSettings(work, edition))
    load_trained(modules, work)
    return StableDiffusionPipeline(
        vae=trained_vae(work, edition),
        text_encoder=modules["text_encoder"].eval(),
        tokenizer=build_tokenizer(edition.vocabulary()),
        unet=modules["unet"].eval(),
        scheduler=sampling_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(work: Path, out: Path, edition: Edition) -> None:
    """Write the pipeline folder and the judge beside it; every float is stored in 16 bits.

    A second edition's gets a model card, whose figures `toyworld evaluate` fills in.
    """
    pipeline: Any = trained_pipeline(work, edition)
    save_pipeline(pipeline.to(torch.float16), out)
    if edition is SECOND:
        add_model_card(SECOND_CARD, out)
    if (work / "judge.pt").is_file():
        trained_judge(work, edition).save(out / "judge")
