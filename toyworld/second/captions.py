"""Captions of the second edition's pictures: things with colours, pattern, head, eyes, clothes, facing, and relations.

A caption that says more leaves less for the model to guess. Proportions and accessories have no words at all, so
nothing but images can teach what one particular thing looks like.
"""

from __future__ import annotations

import random

from toyworld.captions import OPENINGS, PLURAL_PATTERN, with_articles
from toyworld.palette import COLOURS
from toyworld.scenes import PHRASES
from toyworld.second.look import HEADS, WORN
from toyworld.second.picture import Picture, Spec, Thing
from toyworld.second.things import CLASSES

MAX_WORDS = 28  # of a caption; with begin and end it fits the text encoder's 32 tokens
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "in front of": ("in front of",),
    "on": ("on", "on top of"),
}
# The same, told from the second thing.
INVERSE_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("to the right of", "right of"),
    "right of": ("to the left of", "left of"),
    "in front of": ("behind",),
    "on": ("under",),
}
NEUTRAL = ("and", "beside", "next to")  # of things side by side
EYE_PHRASES = {1: "one eye", 2: "two eyes", 3: "three eyes"}

# Probabilities, by what a picture shows: one thing, or several, of which less is said.
P_MAIN = {1: 0.75, 2: 0.8, 3: 0.8}  # that the main colour is named
P_SECOND = {1: 0.5, 2: 0.2, 3: 0.0}  # that then the second is
P_PATTERN = {1: 0.75, 2: 0.4, 3: 0.2}
P_PATTERN_COLOUR = {1: 0.6, 2: 0.0, 3: 0.0}  # that it is then named with its colour: "with yellow stripes"
P_HEAD = {1: 0.4, 2: 0.15, 3: 0.0}
P_EYES = {1: 0.5, 2: 0.2, 3: 0.0}
P_WORN = {1: 0.75, 2: 0.4, 3: 0.2}
P_WORN_COLOUR = {1: 0.5, 2: 0.2, 3: 0.0}
P_FACING = {1: 0.3, 2: 0.0, 3: 0.0}
P_PLACE = 0.85
P_NEUTRAL = 0.3  # that of two things side by side it is not told which is where
P_INVERSE = 0.3  # that a relation is told from the second thing


def caption(rng: random.Random, picture: Picture) -> str:
    """Return one of the many captions of a picture, drawn from `rng`; of at most MAX_WORDS words."""
    while True:
        text = _caption(rng, picture)
        if len(text.split()) <= MAX_WORDS:
            return text


def _caption(rng: random.Random, picture: Picture) -> str:
    number = len(picture.things)
    opening = rng.choice(OPENINGS)
    article = opening.split()[-1]
    phrases = [describe(rng, thing, number) for thing in picture.things]
    first = opening.removesuffix(article)
    if number == 1:
        text = f"{first}{article} {phrases[0]}"
    elif number == 2:
        text = first + _related(rng, picture.relation, f"{article} {phrases[0]}", f"a {phrases[1]}")
    else:
        text = first + _three(rng, [f"a {phrase}" for phrase in phrases])
    if rng.random() < P_PLACE:
        text += " " + rng.choice(PHRASES[picture.place])
    return with_articles(text)


def _related(rng: random.Random, relation: str, first: str, second: str) -> str:
    if relation in ("left of", "right of") and rng.random() < P_NEUTRAL:
        pair = [first, second]
        rng.shuffle(pair)
        return f"{pair[0]} {rng.choice(NEUTRAL)} {pair[1]}"
    if rng.random() < P_INVERSE:
        return f"{second} {rng.choice(INVERSE_PHRASES[relation])} {first}"
    return f"{first} {rng.choice(RELATION_PHRASES[relation])} {second}"


def _three(rng: random.Random, phrases: list[str]) -> str:
    """Return "A between B and C" or "A, B and C" in any order; the things stand in a row from left to right."""
    if rng.random() < 0.4:
        return f"{phrases[1]} between {phrases[0]} and {phrases[2]}"
    shuffled = rng.sample(phrases, 3)
    return f"{shuffled[0]} and {shuffled[1]} and {shuffled[2]}"


def describe(rng: random.Random, thing: Thing, number: int) -> str:
    """Return a thing's noun with some of its colours and parts, without article; `number` things are in the picture."""
    spec = thing.spec

    def happens(probability: dict[int, float]) -> bool:
        return rng.random() < probability[number]

    words, tail = [], []
    if spec.pattern in PLURAL_PATTERN and happens(P_PATTERN):
        if happens(P_PATTERN_COLOUR):
            tail.append(f"with {spec.accent} {PLURAL_PATTERN[spec.pattern]}")
        else:
            words.append(spec.pattern)
    if happens(P_MAIN):
        words.append(f"{spec.main} and {spec.second}" if happens(P_SECOND) else spec.main)
    words.append(spec.class_noun)
    if spec.head:
        tail += _of_creature(spec, happens(P_HEAD), happens(P_EYES), happens(P_WORN), happens(P_WORN_COLOUR))
    if happens(P_FACING):
        tail.append(f"facing {thing.facing}")
    return " ".join(words + tail)


def _of_creature(spec: Spec, head: bool, eyes: bool, worn: bool, worn_colour: bool) -> list[str]:
    named = [f"a {spec.head} head"] if head else []
    if eyes:
        named.append(EYE_PHRASES[spec.num_eyes])
    phrases = [f"with {' and '.join(named)}"] if named else []
    if worn and spec.worn != "nothing":
        phrases.append(f"wearing a {spec.worn_colour + ' ' if worn_colour else ''}{spec.worn}")
    return phrases


def vocabulary() -> set[str]:
    """Return every word that a caption can hold."""
    texts = [*OPENINGS, *CLASSES, *COLOURS, *HEADS, *WORN, *NEUTRAL, *PLURAL_PATTERN, *PLURAL_PATTERN.values()]
    texts += [*EYE_PHRASES.values(), "a an and with between wearing facing left right head"]
    for phrases in (*PHRASES.values(), *RELATION_PHRASES.values(), *INVERSE_PHRASES.values()):
        texts += phrases
    return {word for text in texts for word in text.split()} - {"nothing"}
