"""The embedded flow base: its tokenizer knows the world, its recipe trains and goes on, and it is a Z-Image."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from dreambooth.cli import main
from dreambooth.families import load_family
from toyworld import captions, world
from toyworld.base import BaseSettings
from toyworld.dataset import Dataset
from toyworld.editions import FLOW
from toyworld.evaluate import draw, questions
from toyworld.flow_base import (
    TEXT_WIDTH,
    FlowTask,
    build_flow_modules,
    build_transformer,
    encode_captions,
    export_flow,
    flow_tokens,
)
from toyworld.flow_forward import predict
from toyworld.flow_tokenizer import MAX_LENGTH, build_flow_tokenizer, with_template
from toyworld.judge import Judge
from toyworld.tokenizer import build_tokenizer
from toyworld.training import Budget, Plan, fit
from toyworld.vae import fresh_pixels, psnr, round_trip

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "toyworld"
SHIPPED_FLOW = SHIPPED.with_name("toyworld-flow")
MAX_MEGABYTES = 15


@pytest.fixture(scope="module")
def tokenizer():
    return build_flow_tokenizer(captions.vocabulary())


def some_captions(count):
    return [world.sample(seed)[2] for seed in range(count)]


def test_every_word_of_a_caption_is_a_token_and_the_longest_fits(tokenizer):
    texts = some_captions(300)
    for text in texts:
        ids = tokenizer(f" {text}", add_special_tokens=False).input_ids
        assert len(ids) == len(text.replace(",", " ,").split())
        assert tokenizer.decode(ids) == f" {text}"
    longest = max(texts, key=len)
    assert len(tokenizer(with_template(tokenizer, longest), add_special_tokens=False).input_ids) < MAX_LENGTH
    assert len(tokenizer(" sks", add_special_tokens=False).input_ids) == 1


def test_the_data_sets_captions_are_the_same_by_this_tokenizer(tokenizer):
    texts = some_captions(20)
    theirs = np.array(build_tokenizer()(texts, padding="max_length").input_ids, dtype=np.int16)[:, None]
    found = flow_tokens(theirs, tokenizer)
    assert found.shape == (20, 1, MAX_LENGTH)
    assert np.array_equal(found[:, 0], encode_captions(tokenizer, texts))


def test_a_batch_is_predicted_as_the_transformer_predicts_its_images_one_by_one():
    torch.manual_seed(0)
    transformer = build_transformer()
    images, time = torch.randn(3, FLOW.latent_channels, 16, 16), torch.rand(3)
    states, lengths = torch.randn(3, 40, TEXT_WIDTH), torch.tensor([33, 20, 32])
    prompts = [row[:length] for row, length in zip(states, lengths.tolist(), strict=True)]
    with torch.no_grad():
        one_by_one = transformer(list(images.unsqueeze(2).unbind()), time, prompts, return_dict=False)[0]
        together = predict(transformer, images, time, states, lengths)
    assert torch.allclose(together, torch.stack(one_by_one).squeeze(2), atol=1e-5)


def a_dataset(count):
    rng = np.random.default_rng(0)
    tokens = torch.tensor(build_tokenizer()(some_captions(count), padding="max_length").input_ids, dtype=torch.int16)
    latents = rng.standard_normal((count, FLOW.latent_channels, 16, 16)).astype(np.float16)
    masks = rng.random((count, 1, 16, 16)).astype(np.float16)
    return Dataset(torch.from_numpy(latents), torch.from_numpy(masks), tokens[:, None])


def trained(folder, *budgets):
    """Train in goes of so many steps in all; return the state."""
    folder.mkdir()
    settings = BaseSettings(folder, FLOW, batch_size=2)
    for steps in budgets:
        modules = build_flow_modules(settings)
        task = FlowTask(modules, a_dataset(4), settings)
        task.precision = torch.float32
        plan = Plan("flow", Budget(steps=steps), settings.peak_lr, decay_fraction=0)  # without Muon, in half the time
        fit(modules, task, plan, folder / "flow.pt")
    return torch.load(folder / "flow.pt", weights_only=True)


def test_a_training_that_was_stopped_goes_on_to_the_same_bits_and_is_a_small_z_image(tmp_path):
    whole, resumed = trained(tmp_path / "whole", 2), trained(tmp_path / "resumed", 1, 2)
    assert whole["step"] == resumed["step"] == 2
    assert all(torch.equal(weight, resumed["module"][name]) for name, weight in whole["module"].items())
    export_flow(tmp_path / "whole", tmp_path / "base", SHIPPED)
    size = sum(path.stat().st_size for path in (tmp_path / "base").rglob("*") if path.is_file())
    assert size / 1e6 < MAX_MEGABYTES
    family = load_family(str(tmp_path / "base"))
    assert (type(family).__name__, family.resolution) == ("ZImage", 64)
    assert family.tokenize("sks") == [family.tokenizer.convert_tokens_to_ids("\u0120sks")]
    prompt = random.Random(0).choice(some_captions(5))
    assert torch.isfinite(family.encode_prompts([prompt])["prompt"]).all()


@pytest.mark.slow
def test_the_documented_command_trains_and_goes_on_when_run_again(tmp_path, capsys):
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "base"), "--base", str(SHIPPED)]
    for steps in ("1", "2"):
        command = ["toyworld", "flow", "--steps", *3 * [steps], "--num-samples", "64", "--processes", "1", *folders]
        assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "base")
    for stage in ("decoder", "encoder", "flow"):
        assert torch.load(tmp_path / "work" / f"{stage}.pt", weights_only=True)["step"] == 2


# --- the shipped base


def test_the_shipped_autoencoder_returns_images_it_never_saw():
    vae = AutoencoderKL.from_pretrained(SHIPPED_FLOW, subfolder="vae", dtype=torch.float32)
    pixels = fresh_pixels(20)
    assert psnr(pixels, round_trip(vae, pixels)) >= 28.0


@pytest.mark.slow
def test_the_shipped_base_draws_what_its_prompts_name():
    pipeline = DiffusionPipeline.from_pretrained(SHIPPED_FLOW, dtype=torch.float32)
    asked = questions(4)
    verdict = Judge.load(SHIPPED_FLOW / "judge")(draw(pipeline, [question.prompt for question in asked]))
    assert verdict.accuracy("class_noun", [question.class_noun for question in asked]) >= 0.9
    named = [number for number, question in enumerate(asked) if question.place]
    places = [verdict.labels["place"][number] for number in named]
    assert sum(place == asked[number].place for place, number in zip(places, named, strict=True)) >= 0.9 * len(named)
