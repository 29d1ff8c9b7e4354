"""How well a reader describes renderings that it has not seen, by what their renderer knows."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from toyworld.palette import COLOURS
from toyworld.readers.figures import Figure, mean
from toyworld.readers.questions import place_phrase, questions
from toyworld.readers.scenes import KnownScene, unseen_scene
from toyworld.second.things import CLASSES

# The least of each, as parts of 1.
GATES = {"class": 0.97, "place": 0.97, "main colour": 0.95}
MIN_ANSWERS = 0.93


def measure(reader: Any, num_images: int = 300, seed: int = 0) -> list[Figure]:
    """Return how often captions and answers are right. reader: of `dreambooth.readers`."""
    from dreambooth.readers.text_options import TextOptions

    rng = random.Random(f"blip2 gate {seed}")
    scenes = [unseen_scene(rng) for _ in range(num_images)]
    images = [scene.image for scene in scenes]
    options = TextOptions(max_tokens=32)
    rights: dict[str, list[bool]] = defaultdict(list)
    for scene, text in zip(scenes, reader.caption(images, options), strict=True):
        for name, is_right in caption_right(scene, text).items():
            rights[name].append(is_right)
    found = [Figure(f"captions: {name}", mean(rights[name]), GATES.get(name)) for name in rights]
    return found + _answers(reader, scenes, rng)


def caption_right(scene: KnownScene, text: str) -> dict[str, bool]:
    """Return what of a caption is right: the classes, the place, each thing's main colour, one thing's pattern."""
    words = text.split()
    nouns = [word for word in words if word in CLASSES]
    right = {
        "class": sorted(nouns) == sorted(thing.class_noun for thing in scene.things),
        "place": text.endswith(place_phrase(scene.place)),
        "main colour": all(thing.main == _colour_of(words, thing.class_noun) for thing in scene.things),
    }
    if len(scene.things) == 1:
        pattern = scene.things[0].pattern
        right["pattern"] = all((name in words) == (name == pattern) for name in ("striped", "spotted"))
    return right


def _colour_of(words: Sequence[str], noun: str) -> str:
    """Return the first colour of those that stand before a noun and belong to it; empty where there is none."""
    if noun not in words:
        return ""
    found = ""
    for word in reversed(words[: words.index(noun)]):
        if word in COLOURS:
            found = word
        elif word != "and" or not found:
            break
    return found


def _answers(reader: Any, scenes: Sequence[KnownScene], rng: random.Random) -> list[Figure]:
    from dreambooth.readers.text_options import TextOptions

    asked = [(scene, question) for scene in scenes for question in questions(rng, scene)]
    by_text: dict[str, list[int]] = defaultdict(list)
    for number, (_, question) in enumerate(asked):
        by_text[question.text].append(number)
    rights: dict[str, list[bool]] = defaultdict(list)
    for text, numbers in by_text.items():
        images = [asked[number][0].image for number in numbers]
        for number, answer in zip(numbers, reader.answer(images, text, TextOptions(max_tokens=8)), strict=True):
            rights[asked[number][1].kind].append(answer == asked[number][1].answer)
    everything = [is_right for kind in rights.values() for is_right in kind]
    each = [Figure(f"answers: {kind}", mean(rights[kind])) for kind in sorted(rights)]
    return [*each, Figure("answers: all", mean(everything), MIN_ANSWERS)]
