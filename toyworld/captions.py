"""Captions of images in many wordings, often with colours, pattern and place.

A caption that says more leaves less for the model to guess: naming the main colour in most captions made a tiny model
learn several times faster per image. Proportions and accessories have no words at all, so nothing but images can
teach what one particular object looks like.
"""

from __future__ import annotations

import random
import re

from toyworld.classes import CLASSES
from toyworld.palette import COLOURS
from toyworld.scenes import PHRASES

OPENINGS = (
    "a photo of a",
    "a photo of a",
    "a photo of a",
    "a picture of a",
    "an image of a",
    "a photo of the",
    "a photo of one",
    "a",
)
PLURAL_PATTERN = {"striped": "stripes", "spotted": "spots"}

# Probabilities.
P_COLOUR = 0.75  # that a caption names the main colour
P_SECOND = 0.6  # that it then also names the second colour
P_PATTERN = 0.75  # that a patterned object's pattern is named
P_PATTERN_COLOUR = 0.6  # that it is then named with its colour: "with yellow stripes"
P_PLACE = 0.85  # that a caption names the place


def caption(rng: random.Random, class_noun: str, main: str, second: str, accent: str, pattern: str, place: str) -> str:
    """Return one of the many captions of an object in a place, drawn from `rng`."""
    words = [rng.choice(OPENINGS)]
    tail = ""
    if pattern in PLURAL_PATTERN and rng.random() < P_PATTERN:
        if rng.random() < P_PATTERN_COLOUR:
            tail = f"with {accent} {PLURAL_PATTERN[pattern]}"
        else:
            words.append(pattern)
    if rng.random() < P_COLOUR:
        words.append(f"{main} and {second}" if rng.random() < P_SECOND else main)
    words.append(class_noun)
    if tail:
        words.append(tail)
    if rng.random() < P_PLACE:
        words.append(rng.choice(PHRASES[place]))
    return with_articles(" ".join(words))


def with_articles(text: str) -> str:
    """Return `text` with "a" turned into "an" before a vowel: "a orange car" becomes "an orange car"."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def vocabulary() -> set[str]:
    """Return every word that a caption can hold."""
    words = {"a", "an", "and", "with", *CLASSES, *COLOURS, *PLURAL_PATTERN, *PLURAL_PATTERN.values()}
    for text in OPENINGS + tuple(phrase for phrases in PHRASES.values() for phrase in phrases):
        words.update(text.split())
    return words
