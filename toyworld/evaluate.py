"""Sample the base, and measure with the judge how often an image shows what its prompt names."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ZImagePipeline
from PIL import Image

from toyworld import world
from toyworld.captions import with_articles
from toyworld.judge import Judge, accuracy
from toyworld.scenes import PHRASES
from toyworld.vae import fresh_pixels, psnr, round_trip

NUM_STEPS = 25
GUIDANCE_SCALE = 4.0  # of Z-Image's pipeline, which counts from the conditional prediction on, 3
FLOW_GATES = {"place right, where named": 97.0, "main colour right, where named": 95.0}  # class as the UNet's
BATCH_SIZE = 30
TABLE_START, TABLE_END = "<!-- figures -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Question:
    """Hold a prompt and what an image of it has to show; None where the prompt leaves the choice to the model."""

    prompt: str
    class_noun: str
    main: str | None = None
    pattern: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Metric:
    """Hold one line of the table: name, value, and the least value that it should have."""

    name: str
    value: float
    gate: float
    unit: str = "%"

    def row(self) -> str:
        return f"| {self.name} | {self.value:.1f} {self.unit} | {self.gate:.0f} {self.unit} |"


def questions(per_class: int, seed: int = 0) -> list[Question]:
    """Return prompts, a third each with the class alone, with colour and place, and with pattern, colour and place."""
    rng = random.Random(f"questions {seed}")
    asked = []
    for class_noun in world.CLASSES:
        for i in range(per_class):
            main, place = rng.choice(world.COLOUR_NAMES), rng.choice(world.PLACES)
            pattern = rng.choice(world.PATTERNS[1:])
            if i % 3 == 0:
                asked.append(Question(f"a photo of a {class_noun}", class_noun))
            elif i % 3 == 1:
                prompt = with_articles(f"a photo of a {main} {class_noun} {PHRASES[place][0]}")
                asked.append(Question(prompt, class_noun, main, None, place))
            else:
                prompt = f"a photo of a {pattern} {main} {class_noun} {PHRASES[place][0]}"
                asked.append(Question(prompt, class_noun, main, pattern, place))
    return asked


@torch.no_grad()
def draw(pipeline: Any, prompts: Sequence[str], seed: int = 0) -> list[Image.Image]:
    """Sample one image a prompt."""
    generator = torch.Generator().manual_seed(seed)
    scale = GUIDANCE_SCALE - isinstance(pipeline, ZImagePipeline)
    images: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = list(prompts[start : start + BATCH_SIZE])
        size = {"height": world.SIZE, "width": world.SIZE}
        steps = {"num_inference_steps": NUM_STEPS, "guidance_scale": scale}
        images += pipeline(batch, generator=generator, **size, **steps).images
    return images


def _agreement(judge: Judge, asked: Sequence[Question], images: Sequence[Image.Image], head: str) -> float:
    """Return on how many percent of the images whose prompt names `head` the judge sees what was named."""
    wanted = [getattr(question, head) for question in asked]
    chosen = [i for i, label in enumerate(wanted) if label is not None]
    verdict = judge([images[i] for i in chosen])
    return 100 * verdict.accuracy(head, [wanted[i] for i in chosen])


def measure(folder: Path, per_class: int, sheet: Path | None) -> list[Metric]:
    """Sample `per_class` images of every class with the base in `folder`, judge them, and measure the autoencoder."""
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    judge = Judge.load(folder / "judge")
    asked = questions(per_class)
    images = draw(pipeline, [question.prompt for question in asked])
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        columns = next(count for count in range(15, 0, -1) if per_class % count == 0)  # no row of two classes
        world.contact_sheet(images, columns).save(sheet)
    renders = fresh_pixels(200)
    truth = accuracy(judge)
    metrics = [
        Metric("class right", _agreement(judge, asked, images, "class_noun"), 97),
        Metric("place right, where named", _agreement(judge, asked, images, "place"), 99),
        Metric("main colour right, where named", _agreement(judge, asked, images, "main"), 97),
        Metric("pattern right, where named", _agreement(judge, asked, images, "pattern"), 85),
        Metric("autoencoder, unseen objects", psnr(renders, round_trip(pipeline.vae, renders)), 28, "dB"),
        Metric("judge on renders: class", 100 * truth["class_noun"], 99),
        Metric("judge on renders: main colour", 100 * truth["main"], 99),
        Metric("judge on renders: pattern", 100 * truth["pattern"], 97),
        Metric("judge on renders: place", 100 * truth["place"], 99),
        Metric("judge on renders: nearest image is the same object", 100 * truth["same object nearest"], 80),
    ]
    gates = FLOW_GATES if isinstance(pipeline, ZImagePipeline) else {}
    return [replace(metric, gate=gates.get(metric.name, metric.gate)) for metric in metrics]


def table(metrics: Sequence[Metric]) -> str:
    """Return the measurements as a Markdown table."""
    head = ["| measured | value | at least |", "|---|---|---|"]
    return "\n".join(head + [metric.row() for metric in metrics])


def add_model_card(card: Path, folder: Path) -> None:
    """Copy a model card into a model's folder, as its README.md, where there is none yet."""
    if not (folder / "README.md").is_file():
        shutil.copyfile(card, folder / "README.md")


def refresh_model_card(card: Path, text: str) -> None:
    """Put `text` between the marks that the model card has for it; a card without marks stays as it is."""
    if card.is_file():
        marked = re.compile(f"({TABLE_START}\n).*?({TABLE_END})", re.DOTALL)
        card.write_text(marked.sub(lambda match: f"{match[1]}{text}\n{match[2]}", card.read_text()))
