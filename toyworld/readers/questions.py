"""Captions, questions and answers of a rendering, told by what its renderer knows.

One wording each: a small model spends its weights on what is seen, not on the ways to say it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from toyworld.captions import with_articles
from toyworld.palette import COLOURS
from toyworld.readers.scenes import KnownScene, KnownThing
from toyworld.scenes import PHRASES
from toyworld.second.captions import RELATION_PHRASES
from toyworld.second.look import WORN
from toyworld.second.things import CLASSES
from toyworld.world import PATTERNS

P_OPENING = 0.3  # that a statement begins as prompts do
NUMBERS = ("zero", "one", "two", "three")
PLACE_NOUNS = {"beach": "a beach", "grass": "grass", "snow": "snow", "night": "a night sky"}  # the others' are "a NAME"


@dataclass(frozen=True)
class Question:
    """Hold a question about a rendering and its right answer. kind: what is asked about."""

    kind: str
    text: str
    answer: str


def caption(scene: KnownScene) -> str:
    """Return what a rendering shows: pattern and both colours of one thing, the main colours of several."""
    if len(scene.things) == 1:
        thing = scene.things[0]
        pattern = "" if thing.pattern == "plain" else f"{thing.pattern} "
        told = f"a {pattern}{thing.main} and {thing.second} {thing.class_noun}"
    elif len(scene.things) == 2:
        first, second = map(_short, scene.things)
        told = f"a {first} {RELATION_PHRASES[scene.relation][-1]} a {second}"
    else:
        told = " and ".join(f"a {_short(thing)}" for thing in scene.things)
    return with_articles(f"{told} {place_phrase(scene.place)}")


def _short(thing: KnownThing) -> str:
    return f"{thing.main} {thing.class_noun}"


def place_phrase(place: str) -> str:
    """Return how captions and answers tell a place: on the beach."""
    return PHRASES[place][0]


def place_noun(place: str) -> str:
    """Return what questions call a place: is there a beach?"""
    return PLACE_NOUNS.get(place, f"a {place}")


def questions(rng: random.Random, scene: KnownScene) -> list[Question]:
    """Return one question of each kind about a rendering; of several things, about one of them."""
    thing = rng.choice(scene.things)
    noun = thing.class_noun
    there = {each.class_noun for each in scene.things}
    is_there = rng.random() < 0.5
    asked = noun if is_there else rng.choice([each for each in CLASSES if each not in there])
    is_here = rng.random() < 0.5
    place = scene.place if is_here else rng.choice([each for each in PHRASES if each != scene.place])
    found = [
        Question("colour", f"what colour is the {noun}?", thing.main),
        Question("pattern", f"what pattern has the {noun}?", thing.pattern),
        Question("place", "where is it?", place_phrase(scene.place)),
        Question("number", "how many things are there?", NUMBERS[len(scene.things)]),
        Question("presence", with_articles(f"is there a {asked}?"), "yes" if is_there else "no"),
        Question("setting", f"is there {place_noun(place)}?", "yes" if is_here else "no"),
    ]
    if len(scene.things) == 1:
        found.append(Question("class", "what is it?", with_articles(f"a {noun}")))
    return found


def statements(rng: random.Random, scene: KnownScene) -> tuple[str, str]:
    """Return something true about a rendering, and the same with one thing wrong: its place, a thing of it, or all.

    A model that compares texts with images learns from the short ones what a word means. From whole captions alone a
    small one had learned next to nothing after 1,000 steps.
    """
    number = rng.randrange(len(scene.things))
    scope = rng.choice(("place", "class_noun", "main", "all"))
    faults = ("place", "class_noun", "main", *(("second", "pattern") if len(scene.things) == 1 else ()))
    wrong = _with_fault(rng, scene, number, rng.choice(faults) if scope == "all" else scope)
    texts = [_told(each, number, scope) for each in (scene, wrong)]
    opening = "a photo of " if scope != "place" and rng.random() < P_OPENING else ""
    return with_articles(opening + texts[0]), with_articles(opening + texts[1])


def _told(scene: KnownScene, number: int, scope: str) -> str:
    thing = scene.things[number]
    texts = {"place": place_phrase(scene.place), "class_noun": f"a {thing.class_noun}", "main": f"a {_short(thing)}"}
    return texts[scope] if scope in texts else caption(scene)


def _with_fault(rng: random.Random, scene: KnownScene, number: int, fault: str) -> KnownScene:
    if fault == "place":
        return replace(scene, place=rng.choice([place for place in PHRASES if place != scene.place]))
    thing = scene.things[number]
    there = {each.class_noun for each in scene.things} if fault == "class_noun" else {getattr(thing, fault)}
    known = {"class_noun": CLASSES, "pattern": PATTERNS}.get(fault, tuple(COLOURS))
    change: dict[str, Any] = {fault: rng.choice([name for name in known if name not in there])}
    changed = replace(thing, **change)
    return replace(scene, things=(*scene.things[:number], changed, *scene.things[number + 1 :]))


def vocabulary() -> list[str]:
    """Return every word of captions, questions and answers."""
    texts = ["what colour is the it pattern has where how many things are there a an", "yes no and", "Question Answer"]
    texts += [*CLASSES, *COLOURS, *PATTERNS, *NUMBERS, *WORN]
    texts += [place_noun(place) for place in PHRASES]
    texts += [phrases[0] for phrases in PHRASES.values()] + [phrases[-1] for phrases in RELATION_PHRASES.values()]
    return sorted({word for text in texts for word in text.split()})
