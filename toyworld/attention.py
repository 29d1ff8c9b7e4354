"""Measure where the words of a prompt act on an image, against the renderer's mask of the object.

Rendered scenes of the subject get noise as in training, and the model predicts it with a prompt that names the scene.
The cross-attention to each word (`generation/attention_maps.py`) is read on the way. A word acts where its map exceeds
a part of its highest value, as in DAAM (arXiv 2210.04885, section 3.1); the overlap with the mask is the intersection
over the union (IoU).
Shapes: B images, C channels, H/W latent height and width, N tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreambooth.data.images import to_tensor
from dreambooth.generation.attention_maps import AttentionRecorder, word_maps
from dreambooth.generation.models.loading import Model
from dreambooth.generation.request import ImageRequest
from dreambooth.generation.settings import SamplerSettings
from dreambooth.randomness import Randomness
from toyworld.editions import Edition
from toyworld.outcome import UNSEEN_PLACES, number_of
from toyworld.scenes import PHRASES

THRESHOLD = 0.4  # of the highest value of a map; DAAM's best of .3 to .5
TIMESTEPS = (0.2, 0.4, 0.6, 0.8)  # parts of the schedule at which attention is read


@dataclass(frozen=True)
class Overlap:
    """Hold the mean IoU of words' maps with the object's mask, and that of a map of everything, for comparison."""

    by_word: Mapping[str, float]
    whole_image: float


def measure(model: Model, spec: Any, edition: Edition, num_images: int) -> Overlap:
    """Return the overlap for each word of the subject's name, over renderings of it in places it was not trained in."""
    rng = random.Random(f"attention {spec}")
    places = [UNSEEN_PLACES[number % len(UNSEEN_PLACES)] for number in range(num_images)]
    shown = [edition.alone(rng, spec, place) for place in places]
    name = model.fill(f"{{subject_{number_of(model, spec.class_noun)}}}")
    prompts = [f"a photo of {name} {PHRASES[place][0]}" for place in places]
    masks_BHW = np.stack([each.mask() for each in shown])
    maps = attention(model, [each.image() for each in shown], prompts)
    words = name.split()
    found = {
        word: float(np.mean([_iou(own[word], mask) for own, mask in zip(maps, masks_BHW, strict=True)]))
        for word in words
    }
    return Overlap(found, float(masks_BHW.mean((1, 2)).mean()))


@torch.no_grad()
def attention(model: Model, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Return the map [H, W] of each word, for each image with its prompt, as the model reads noisy versions of it."""
    family = model.family
    mean_BCHW, _ = family.encode_images(torch.stack([to_tensor(image) for image in images]))
    conditioning = family.encode_prompts(list(prompts))
    steps = [int(part * family.schedule.num_timesteps) for part in TIMESTEPS]
    with AttentionRecorder(family.denoiser, len(images), (mean_BCHW.shape[2], mean_BCHW.shape[3])) as recorder:
        for number, t in enumerate(steps):
            noise_BCHW = Randomness(number).normal("attention", range(len(images)), tuple(mean_BCHW.shape[1:]))
            t_B = torch.full((len(images),), t)
            family.predict(family.schedule.add_noise(mean_BCHW, noise_BCHW, t_B), t_B, conditioning)
    size = images[0].size
    requests = [ImageRequest(model.ref, prompt, 0, size[1], size[0], SamplerSettings()) for prompt in prompts]
    return [word_maps(family, request, own) for request, own in zip(requests, recorder.maps, strict=True)]


def _iou(map_HW: Tensor, mask_HW: np.ndarray) -> float:
    """Return the overlap of a map, upscaled to the mask's size, with the mask."""
    height, width = mask_HW.shape
    upscaled = Image.fromarray(map_HW.numpy(), mode="F").resize((width, height), Image.Resampling.BICUBIC)
    is_high_HW = np.asarray(upscaled) > THRESHOLD * float(map_HW.max())
    return float((is_high_HW & mask_HW).sum() / (is_high_HW | mask_HW).sum())
