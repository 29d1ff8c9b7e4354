"""Captions of a rendering in four languages, in pieces: which words name which thing.

Colours stand behind the noun, so that no language has to bend them: "ein Roboter in Rot und Blau".
"""

from __future__ import annotations

from dataclasses import dataclass

from toyworld.palette import COLOURS
from toyworld.readers.questions import caption as english_caption
from toyworld.readers.scenes import KnownScene, KnownThing
from toyworld.scenes import PLACES
from toyworld.second.things import CLASSES


@dataclass(frozen=True)
class Language:
    """Hold a language's words. things, colours and places: in the order of the world's own."""

    things: dict[str, str]
    colours: dict[str, str]
    places: dict[str, str]
    patterns: dict[str, str]
    in_colour: str
    conjunction: str


def _named(keys: tuple[str, ...], words: str) -> dict[str, str]:
    return dict(zip(keys, words.split(", "), strict=True))


_COLOURS = tuple(COLOURS)
LANGUAGES = {
    "de": Language(
        _named(
            CLASSES,
            "ein Roboter, ein Hund, eine Katze, ein Auto, ein Haus, ein Rucksack, eine Teekanne, ein Fisch, "
            "eine Blume, eine Rakete, eine Tasse",
        ),
        _named(_COLOURS, "Rot, Orange, Gelb, Grün, Blau, Lila, Rosa, Braun, Weiß, Schwarz, Grau, Türkis"),
        _named(
            PLACES,
            "am Strand, im Gras, im Schnee, bei Nacht, in der Wüste, auf dem Mond, in der Stadt, im Wald, im Studio",
        ),
        {"striped": "mit Streifen", "spotted": "mit Punkten"},
        "in",
        "und",
    ),
    "fr": Language(
        _named(
            CLASSES,
            "un robot, un chien, un chat, une voiture, une maison, un sac à dos, une théière, un poisson, une fleur, "
            "une fusée, une tasse",
        ),
        _named(_COLOURS, "rouge, orange, jaune, vert, bleu, violet, rose, marron, blanc, noir, gris, turquoise"),
        _named(
            PLACES,
            "sur la plage, dans les herbes, dans la neige, de nuit, dans le désert, sur la lune, en ville, "
            "dans la forêt, dans un studio",
        ),
        {"striped": "à rayures", "spotted": "à pois"},
        "en",
        "et",
    ),
    "es": Language(
        _named(
            CLASSES,
            "un robot, un perro, un gato, un coche, una casa, una mochila, una tetera, un pez, una flor, un cohete, "
            "una taza",
        ),
        _named(_COLOURS, "rojo, naranja, amarillo, verde, azul, morado, rosa, marrón, blanco, negro, gris, turquesa"),
        _named(
            PLACES,
            "en la playa, en la hierba, en la nieve, de noche, en el desierto, en la luna, en la ciudad, en el bosque, "
            "en un estudio",
        ),
        {"striped": "a rayas", "spotted": "con lunares"},
        "en",
        "y",
    ),
}


@dataclass(frozen=True)
class Piece:
    """Hold words of a caption. thing: the number of the thing that they name; None: of the place, or between things."""

    text: str
    thing: int | None = None


def pieces(scene: KnownScene, language: str = "en") -> list[Piece]:
    """Return a caption in pieces, which joined by spaces are the whole."""
    if language == "en":
        return _english(scene)
    words = LANGUAGES[language]
    found = [Piece(_thing(words, thing, len(scene.things) == 1), i) for i, thing in enumerate(scene.things)]
    joined = [part for piece in found for part in (Piece(words.conjunction), piece)][1:]
    return [*joined, Piece(words.places[scene.place])]


def _thing(words: Language, thing: KnownThing, is_alone: bool) -> str:
    told = f"{words.things[thing.class_noun]} {words.in_colour} {words.colours[thing.main]}"
    if not is_alone:
        return told
    pattern = "" if thing.pattern == "plain" else f" {words.patterns[thing.pattern]}"
    return f"{told} {words.conjunction} {words.colours[thing.second]}{pattern}"


def _english(scene: KnownScene) -> list[Piece]:
    """Return the pieces of the English caption: each thing's phrase ends with its noun."""
    rest, found = english_caption(scene), []
    for number, thing in enumerate(scene.things):
        before, noun, rest = rest.partition(thing.class_noun)
        start = max(before.rfind(" a "), before.rfind(" an ")) + 1  # 0 where the caption begins with it
        if before[:start].strip():
            found.append(Piece(before[:start].strip()))
        found.append(Piece(before[start:] + noun, number))
        rest = rest.strip()
    return [*found, Piece(rest)]  # the place


def vocabulary() -> set[str]:
    """Return every word of the three languages beside English."""
    texts: list[str] = []
    for words in LANGUAGES.values():
        for table in (words.things, words.colours, words.places, words.patterns):
            texts += table.values()
        texts += [words.in_colour, words.conjunction]
    return {word for text in texts for word in text.split()}
