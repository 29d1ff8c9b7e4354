"""Sample a base of the second edition, and measure with its judge how often an image shows what its prompt names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from toyworld import world
from toyworld.captions import with_articles
from toyworld.editions import SECOND
from toyworld.evaluate import Metric, draw
from toyworld.scenes import PHRASES
from toyworld.second import picture
from toyworld.second.captions import EYE_PHRASES, RELATION_PHRASES
from toyworld.second.judge import Judge, Verdict
from toyworld.second.judge_training import accuracy
from toyworld.second.look import HEADS, NUM_EYES, WORN
from toyworld.second.things import CLASSES, CREATURES
from toyworld.vae import fresh_pixels, psnr, round_trip

PAIRS_PER_CLASS = 2 / 3  # prompts of two things: this times `per_class` for each class
PROMPTS_OF_CREATURES = 4  # for each prompt of an object: fewer would name too few heads, eyes and clothes to tell


@dataclass(frozen=True)
class Question:
    """Hold a prompt and what an image of it has to show; what it does not name is left to the model."""

    prompt: str
    class_nouns: tuple[str, ...]
    place: str = ""
    named: dict[str, str] = field(default_factory=dict)  # of one thing: the judge's question and the right answer
    colours: tuple[str, ...] = ()  # of two things: each one's main colour
    relation: str = ""


def questions(per_class: int, seed: int = 0) -> list[Question]:
    """Return prompts of each class alone, of two things, and of creatures that face a side.

    There are `per_class` of each object, four times as many of each creature, and `per_class` of each with a side.
    The first name, in turn: colour; pattern and colour; and of creatures head and eyes; what they wear.
    """
    rng = random.Random(f"second questions {seed}")
    numbers = {noun: per_class * (PROMPTS_OF_CREATURES if noun in CREATURES else 1) for noun in CLASSES}
    singles = [_single(rng, noun, i) for noun, number in numbers.items() for i in range(number)]
    number = round(PAIRS_PER_CLASS * per_class * len(CLASSES))
    pairs = [_pair(rng, picture.RELATIONS[i % len(picture.RELATIONS)]) for i in range(number)]
    return singles + pairs + [_facing(rng, noun, i) for noun in CREATURES for i in range(per_class)]


def _single(rng: random.Random, noun: str, i: int) -> Question:
    place, main = rng.choice(picture.PLACES), rng.choice(world.COLOUR_NAMES)
    kind = i % (4 if noun in CREATURES else 2)
    named = {"main": main}
    before, after = main, ""
    if kind == 1:
        named["pattern"] = rng.choice(world.PATTERNS[1:])
        before = f"{named['pattern']} {main}"
    elif kind == 2:
        head, eyes = rng.choice(HEADS), rng.choice(NUM_EYES)
        named |= {"head": head, "num_eyes": str(eyes)}
        after = f" with a {head} head and {EYE_PHRASES[eyes]}"
    elif kind == 3:
        named["worn"] = rng.choice(WORN[1:])
        after = f" wearing a {named['worn']}"
    prompt = with_articles(f"a photo of a {before} {noun}{after} {PHRASES[place][0]}")
    return Question(prompt, (noun,), place, named)


def _pair(rng: random.Random, relation: str) -> Question:
    nouns = picture.random_classes(rng, 2, relation)
    colours = rng.sample(world.COLOUR_NAMES, 2)
    place = rng.choice(picture.PLACES)
    first, second = (f"a {colour} {noun}" for colour, noun in zip(colours, nouns, strict=True))
    prompt = f"a photo of {first} {RELATION_PHRASES[relation][0]} {second} {PHRASES[place][0]}"
    return Question(with_articles(prompt), tuple(nouns), place, {}, tuple(colours), relation)


def _facing(rng: random.Random, noun: str, i: int) -> Question:
    place, main, side = rng.choice(picture.PLACES), rng.choice(world.COLOUR_NAMES), ("left", "right")[i % 2]
    prompt = f"a photo of a {main} {noun} facing {side} {PHRASES[place][0]}"
    return Question(with_articles(prompt), (noun,), place, {"main": main, "facing": side})


def _percent(rights: Sequence[bool]) -> float:
    return 100 * sum(rights) / len(rights) if rights else float("nan")


def agreement(verdict: Verdict, asked: Sequence[Question]) -> dict[str, float]:
    """Return on how many percent of the images that name something the judge sees what was named."""
    rights: dict[str, list[bool]] = {}
    for i, question in enumerate(asked):
        seen, nouns = verdict.seen(i), question.class_nouns
        rights.setdefault("place", []).append(verdict.place(i) == question.place)
        if len(nouns) == 1:
            rights.setdefault("class", []).append(seen[0] == nouns[0])
            for name, answer in question.named.items():
                rights.setdefault(name, []).append(verdict.answer(i, nouns[0], name) == answer)
            continue
        both = set(nouns) == set(seen[:2])
        pairs = zip(nouns, question.colours, strict=True)
        coloured = all(verdict.answer(i, noun, "main") == colour for noun, colour in pairs)
        rights.setdefault("both", []).append(both)
        rights.setdefault("own colours", []).append(both and coloured)
        rights.setdefault("relation", []).append(both and verdict.relation(i, *nouns) == question.relation)
    return {name: _percent(values) for name, values in rights.items()}


def measure(folder: Path, per_class: int, sheet: Path | None) -> list[Metric]:
    """Sample images of every class and of pairs with the base in `folder`, judge them, and measure its autoencoder."""
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    judge = Judge.load(folder / "judge")
    asked = questions(per_class)
    images = draw(pipeline, [question.prompt for question in asked])
    if sheet is not None:
        write_sheet(images, sheet)
    right = agreement(judge(images), asked)
    renders = fresh_pixels(200, edition=SECOND)
    truth = {name: 100 * value for name, value in accuracy(judge).items()}
    return [
        Metric("class right", right["class"], 99),
        Metric("place right", right["place"], 99),
        Metric("main colour right", right["main"], 98),
        Metric("pattern right, where named", right["pattern"], 95),
        Metric("head shape right, where named", right["head"], 95),
        Metric("number of eyes right, where named", right["num_eyes"], 95),
        Metric("what is worn right, where named", right["worn"], 95),
        Metric("side that it faces right, where named", right["facing"], 95),
        Metric("two things: both classes right", right["both"], 92),
        Metric("two things: each in its own colour", right["own colours"], 88),
        Metric("two things: relation right", right["relation"], 85),
        Metric("autoencoder, unseen things", psnr(renders, round_trip(pipeline.vae, renders)), 33, "dB"),
        *_of_judge(truth),
    ]


def write_sheet(images: Sequence[Image.Image], path: Path) -> None:
    """Write the images as a contact sheet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    world.contact_sheet(list(images), 16).save(path)


def _of_judge(truth: dict[str, float]) -> list[Metric]:
    gates = {"class_noun": 98, "place": 99, "main": 98, "pattern": 97, "head": 97, "num_eyes": 97, "worn": 97}
    gates |= {"relation": 98, "same thing nearest": 80}
    return [Metric(f"judge on renders: {name.replace('_', ' ')}", truth[name], gate) for name, gate in gates.items()]
