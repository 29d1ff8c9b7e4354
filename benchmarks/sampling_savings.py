"""Measure what fewer steps, skipped guidance and cached cross-attention keys save in sampling, and what each costs.

    python benchmarks/sampling_savings.py --per-class 12

Draws the same prompts of the toy world with the embedded base in each way, and judges the images by the renderer's
truth. Prints a Markdown table: CPU seconds, how much is right, and how far the images are from those of the first row,
as mean difference of pixels from 0 to 1. Keys and values of the cross-attention depend on the prompt alone, so they are
the same in every step; kept after the first one, they change no bit.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor

from dreambooth.data.images import to_images
from dreambooth.families import Family, load_family
from dreambooth.generation.sampler import sample_pixels
from dreambooth.generation.settings import SamplerSettings
from toyworld.evaluate import Question, questions
from toyworld.judge import Judge

HEADS = {"class_noun": "class", "place": "place", "main": "main colour", "pattern": "pattern"}
GUIDANCE_SCALE = 4.0
BATCH_SIZE = 20


@dataclass(frozen=True)
class Way:
    """Hold a way to sample."""

    scheduler: str
    num_steps: int
    min_noise: float = 0.0
    keeps_keys: bool = False

    def __str__(self) -> str:
        skipped = f", guided from noise {self.min_noise:g} on" if self.min_noise else ""
        return f"{self.scheduler}, {self.num_steps} steps{skipped}{', keys kept' if self.keeps_keys else ''}"


WAYS = (
    Way("ddim", 25),
    Way("ddim", 25, keeps_keys=True),
    Way("ddim", 25, min_noise=0.3),
    Way("ddim", 12),
    Way("dpm++", 12),
    Way("unipc", 12),
    Way("unipc", 6),
    Way("unipc", 4),
)


@contextlib.contextmanager
def keeping_keys(unet: UNet2DConditionModel) -> Iterator[None]:
    """Compute the cross-attention's keys and values once for each shape of prompts in this block."""
    blocks = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    layers = [layer for block in blocks for layer in (block.to_k, block.to_v)]
    for layer in layers:
        layer.forward = kept(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def kept(forward: Any) -> Any:
    found: dict[torch.Size, Tensor] = {}

    def remembered(text_BND: Tensor) -> Tensor:
        if text_BND.shape not in found:
            found[text_BND.shape] = forward(text_BND)
        return found[text_BND.shape]

    return remembered


def draw(family: Family, prompts: Sequence[str], way: Way) -> list[Image.Image]:
    """Sample one image a prompt, image i from seed i."""
    settings = SamplerSettings(way.num_steps, GUIDANCE_SCALE, way.scheduler, guidance_min_noise=way.min_noise)
    size = (family.resolution, family.resolution)
    images: list[Image.Image] = []
    for first in range(0, len(prompts), BATCH_SIZE):
        batch = list(prompts[first : first + BATCH_SIZE])
        with keeping_keys(family.denoiser) if way.keeps_keys else contextlib.nullcontext():
            seeds = range(first, first + len(batch))
            for pixels_B3HW in sample_pixels(family, batch, seeds, size, settings, BATCH_SIZE):
                images += to_images(pixels_B3HW)
    return images


def agreement(judge: Judge, asked: Sequence[Question], images: Sequence[Image.Image], head: str) -> float:
    """Return on how many percent of the images whose prompt names `head` the judge sees what was named."""
    chosen = [(getattr(each, head), image) for each, image in zip(asked, images, strict=True) if getattr(each, head)]
    wanted, shown = zip(*chosen, strict=True)
    return 100 * judge(list(shown)).accuracy(head, list(wanted))


def difference(images: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    each = [np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() for a, b in zip(images, others, strict=True)]
    return statistics.fmean(each) / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("checkpoints/toyworld"))
    parser.add_argument("--per-class", type=int, default=12, help="images of each class")
    args = parser.parse_args()
    family, judge = load_family(str(args.base)), Judge.load(args.base / "judge")
    asked = questions(args.per_class)
    prompts = [each.prompt for each in asked]
    draw(family, prompts[:BATCH_SIZE], WAYS[0])  # warm
    print(f"{len(prompts)} images, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    print(f"| | CPU s | {', '.join(HEADS.values())} right, % | difference |\n|---|---|---|---|")
    first: list[Image.Image] = []
    for way in WAYS:
        started = time.process_time()
        images = draw(family, prompts, way)
        seconds = time.process_time() - started
        first = first or images
        right = ", ".join(f"{agreement(judge, asked, images, head):.1f}" for head in HEADS)
        print(f"| {way} | {seconds:.0f} | {right} | {difference(images, first):.4f} |", flush=True)


if __name__ == "__main__":
    main()
