"""The embedded ControlNet (Zhang et al. 2023, arXiv 2302.05543): the toy world's base, held to edges.

A copy of the denoiser's first half reads a map of Canny's edges and adds to the skip connections of the base, whose
weights stay as they are. Its middle has one residual block of the copy's two and no attention, so that the file stays
below 7 MB. It trains on renderings with their captions, a part of which is left out: then edges alone have to say what
is shown.

Shapes: B batch, C channels, H/W pixels, h/w latent height and width, L tokens, T text width.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from dreambooth.families.control import load_control
from dreambooth.generation.inputs.canny import canny
from toyworld.base import SCHEDULE, autocast_on
from toyworld.editions import Edition
from toyworld.evaluate import GUIDANCE_SCALE, NUM_STEPS, add_model_card
from toyworld.latents import LinearCodec, to_images, to_pixels
from toyworld.outcome import Judge
from toyworld.readers.figures import Figure, mean
from toyworld.training import Budget, Plan, fit, load_average
from toyworld.vae import fresh_pixels, round_trip

NAME = "controlnet"
BATCH_SIZE = 16
CAPTION_DROPOUT = 0.3
MAP_WIDTHS = (16, 32, 64, 128)  # of what reduces the map eightfold, to a latent's height and width
NUM_CODEC_IMAGES = 60
TOLERANCE = 1  # pixels, within which an edge counts as the map's
MIN_F1 = 0.75  # the gate
CARD = Path(__file__).with_name("controlnet_card.md")


def load_base(folder: Path) -> Any:
    """Return the base's pipeline, frozen, whose attention is plain matrix products, the fastest at this size."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        part.requires_grad_(False).eval()
    pipeline.unet.set_attn_processor(AttnProcessor())
    return pipeline


def build_controlnet(unet: Any) -> ControlNetModel:
    """Return a ControlNet that begins as the first half of a denoiser; the same on every call."""
    torch.manual_seed(0)
    whole: Any = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=MAP_WIDTHS)
    network: ControlNetModel = ControlNetModel.from_config({**whole.config, "mid_block_type": "UNetMidBlock2D"})
    known = network.state_dict().keys()
    network.load_state_dict({name: weight for name, weight in whole.state_dict().items() if name in known})
    for module in network.controlnet_cond_embedding.modules():
        if isinstance(module, nn.Conv2d):  # as published, with zeros at its end: nothing was learned in 230 steps
            nn.init.kaiming_normal_(module.weight)
    network.set_attn_processor(AttnProcessor())
    return network


# -------------------------------------------------------------------------------- what it learns from


@dataclass(frozen=True)
class Batch:
    """Hold renderings, their maps and captions. pixels_BCHW: in -1..1. maps_BCHW: in 0..1."""

    pixels_BCHW: Tensor
    maps_BCHW: Tensor
    captions: list[str]


def batch_of(samples: list[tuple[Image.Image, str]]) -> Batch:
    """Return the batch of some renderings with their captions."""
    images = [image for image, _ in samples]
    maps_BCHW = to_pixels([canny(image) for image in images]).add(1).div(2)
    return Batch(to_pixels(images), maps_BCHW, [caption for _, caption in samples])


@torch.no_grad()
def codec_of(vae: Any, edition: Edition) -> LinearCodec:
    """Return the affine map from patches to latents that the base's encoder has learned; it takes no time."""
    pixels_BCHW = fresh_pixels(NUM_CODEC_IMAGES, edition=edition)
    latents_BChw = vae.encode(pixels_BCHW).latent_dist.mean * vae.config.scaling_factor
    patch = pixels_BCHW.shape[-1] // latents_BChw.shape[-1]
    patches_ND = F.pixel_unshuffle(pixels_BCHW, patch).permute(0, 2, 3, 1).flatten(0, 2).double()
    latents_NC = latents_BChw.permute(0, 2, 3, 1).flatten(0, 2).double()
    mean_D, mean_C = patches_ND.mean(0), latents_NC.mean(0)
    encode_DC = torch.linalg.lstsq(patches_ND - mean_D, latents_NC - mean_C, driver="gelsd").solution
    decode_CD = torch.linalg.pinv(encode_DC)
    mean_D = mean_D - mean_C @ decode_CD
    return LinearCodec(mean_D.float(), encode_DC.float(), decode_CD.float())


class ControlTask:
    """Compute the loss of one training step; everything random follows from the step."""

    def __init__(self, base: Any, edition: Edition, network: ControlNetModel, batch_size: int = BATCH_SIZE) -> None:
        self.base, self.edition, self.network, self.batch_size = base, edition, network, batch_size
        for part in (base.unet, network):
            part.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        self.codec = codec_of(base.vae, edition)
        self.schedule = DDPMScheduler(**SCHEDULE)
        self.autocast = autocast_on("cpu")

    def __call__(self, step: int) -> Tensor:
        """Return the mean squared error of the base's prediction of v with what the ControlNet adds."""
        rng = random.Random(f"{NAME} {step}")
        batch = batch_of([self._sample(rng) for _ in range(self.batch_size)])
        captions = ["" if rng.random() < CAPTION_DROPOUT else each for each in batch.captions]
        generator = torch.Generator().manual_seed(step)
        t_B = torch.randint(self.schedule.config.num_train_timesteps, (self.batch_size,), generator=generator)
        with torch.no_grad(), self.autocast:
            text_BLT = self.base.text_encoder(self._tokens(captions)).last_hidden_state
        latents_BChw = self.codec.encode(batch.pixels_BCHW)
        noise_BChw = torch.randn(latents_BChw.shape, generator=generator)
        noisy_BChw = self.schedule.add_noise(latents_BChw, noise_BChw, t_B)
        target_BChw = self.schedule.get_velocity(latents_BChw, noise_BChw, t_B)
        with self.autocast:
            predicted_BChw = self.predict(noisy_BChw, t_B, text_BLT, batch.maps_BCHW)
        return ((predicted_BChw.float() - target_BChw) ** 2).mean()

    def _sample(self, rng: random.Random) -> tuple[Image.Image, str]:
        sample = self.edition.sample(rng.getrandbits(60))
        return sample.image, sample.captions[0]

    def predict(self, noisy_BChw: Tensor, t_B: Tensor, text_BLT: Tensor, maps_BCHW: Tensor) -> Tensor:
        """Return the base's prediction, held to maps."""
        down, middle = self.network(noisy_BChw, t_B, text_BLT, maps_BCHW, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted_BChw: Tensor = self.base.unet(noisy_BChw, t_B, text_BLT, **residuals).sample
        return predicted_BChw

    def _tokens(self, captions: list[str]) -> Tensor:
        """Return the tokens of captions, [B, L]."""
        return torch.tensor(self.base.tokenizer(captions, padding="max_length").input_ids)


def train(base: Any, edition: Edition, steps: int, work: Path) -> None:
    """Train the ControlNet, or resume; its state is in `work`/controlnet.pt."""
    network = build_controlnet(base.unet)
    plan = Plan(
        NAME, Budget(steps=steps), peak_lr=2e-3, muon_lr=0.02, warmup_steps=20, ema_decay=0.99, save_every_seconds=30.0
    )
    fit(network, ControlTask(base, edition, network), plan, work / f"{NAME}.pt")


def trained(base: Any, work: Path) -> ControlNetModel:
    """Return the ControlNet with the averaged weights of its training so far."""
    network = build_controlnet(base.unet)
    load_average(network, work / f"{NAME}.pt")
    return network.eval()


def save(network: ControlNetModel, folder: Path) -> None:
    """Write the ControlNet in half precision, with its model card if there is none yet."""
    stored = copy.deepcopy(network).half()
    stored.register_to_config(_name_or_path="")
    stored.save_pretrained(folder)
    add_model_card(CARD, folder)


def load(folder: Path) -> ControlNetModel:
    """Return a stored ControlNet in float32. Raises ModelError."""
    return load_control(str(folder), torch.float32)


# -------------------------------------------------------------------------------- what it has learned


def edge_f1(found: Image.Image, wanted: Image.Image) -> float:
    """Return how well two maps of edges agree, 0 to 1, if each edge may lie a pixel away.

    F1 = 2 P R / (P + R): P is the part of the found edges that the wanted map has, R the part of the wanted that was
    found. 1 where neither has edges.
    """
    found_HW, wanted_HW = (np.asarray(each.convert("L")) > 127 for each in (found, wanted))
    if not found_HW.any() or not wanted_HW.any():
        return float(found_HW.any() == wanted_HW.any())
    near = np.ones((2 * TOLERANCE + 1, 2 * TOLERANCE + 1), dtype=bool)
    precision = ndimage.binary_dilation(wanted_HW, near)[found_HW].mean()
    recall = ndimage.binary_dilation(found_HW, near)[wanted_HW].mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def unseen_samples(edition: Edition, num: int, seed: int = 0) -> tuple[list[tuple[Image.Image, str]], list[str]]:
    """Return renderings with captions of things in colours that no training image shows on their class; and classes."""
    rng = random.Random(f"{NAME} gate {seed}")
    samples: list[tuple[Image.Image, str]] = []
    classes: list[str] = []
    while len(samples) < num:
        spec = edition.random_spec(rng, None)
        if edition.is_held_out(spec):
            alone = edition.alone(rng, spec, None)
            samples.append((alone.image(), alone.caption(rng)))
            classes.append(spec.class_noun)
    return samples, classes


@torch.no_grad()
def draw(pipeline: Any, captions: list[str], maps: list[Image.Image], weight: float, seed: int = 0) -> list[Any]:
    """Return an image of each caption that is held to its map, by a pipeline with a ControlNet."""
    return list(
        pipeline(
            captions,
            maps,
            num_inference_steps=NUM_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            controlnet_conditioning_scale=weight,
            generator=torch.Generator().manual_seed(seed),
        ).images
    )


def measure(base: Any, edition: Edition, network: ControlNetModel, judge: Judge, num_images: int = 100) -> list[Figure]:
    """Return how well edges of images agree with the maps that they are held to, beside images that are not."""
    samples, classes = unseen_samples(edition, num_images)
    batch = batch_of(samples)
    maps = to_images(batch.maps_BCHW * 2 - 1)
    parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
    pipeline: Any = StableDiffusionControlNetPipeline(**parts, controlnet=network, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    held, free = (draw(pipeline, batch.captions, maps, weight) for weight in (1.0, 0.0))
    through_vae = to_images(round_trip(base.vae, batch.pixels_BCHW))
    return [
        Figure("F1 of edges with the map, weight 1", _agreement(held, maps), MIN_F1),
        Figure("without the ControlNet (weight 0)", _agreement(free, maps)),
        Figure("of the renderings themselves through the autoencoder", _agreement(through_vae, maps)),
        Figure("class right, weight 1", judge(held).accuracy("class_noun", classes, "")),
    ]


def _agreement(images: list[Image.Image], maps: list[Image.Image]) -> float:
    return mean(edge_f1(canny(image), wanted) for image, wanted in zip(images, maps, strict=True))
