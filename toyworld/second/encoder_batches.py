"""Training batches of the second edition's metric encoders: pictures, captions, and which captions are true of which.

As in the first edition no held-out pair of colours is shown, so metrics on subjects are of things that the encoders
never saw.

Shapes: B images, T texts, H/W pixels.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from toyworld.captions import OPENINGS, PLURAL_PATTERN, with_articles
from toyworld.judge import NO_ANSWER, half_alike
from toyworld.latents import to_pixels
from toyworld.scenes import PHRASES
from toyworld.second import captions, picture
from toyworld.second.judge import QUESTIONS as JUDGE_QUESTIONS
from toyworld.second.judge_training import answers_of, near_miss
from toyworld.second.look import HEADS, WORN
from toyworld.second.picture import Picture, Spec, Thing
from toyworld.second.things import CLASSES
from toyworld.world import COLOUR_NAMES

QUESTIONS = {"class_noun": CLASSES, "place": picture.PLACES, **JUDGE_QUESTIONS}
PARTS = ("head", "num_eyes", "worn", "worn_colour", "facing")  # of which a caption mostly says nothing
P_COMPANY = 0.3  # that a picture for CLIP shows two things
P_PLAIN = 0.5  # of a caption of one thing without colours and parts, as prompts are when measuring
P_PLACE = 0.6  # that such a caption, or one of two things, names the place: the others have the class alone to tell
P_COLOUR = 0.5  # that a caption of two things names the colour of each
P_RELATION = 0.7  # that a caption of two things says how they stand
PLACE_OF = {phrase: place for place, phrases in PHRASES.items() for phrase in phrases}
EYES_OF = {phrase: str(number) for number, phrase in captions.EYE_PHRASES.items()}
PATTERN_OF = {plural: pattern for pattern, plural in PLURAL_PATTERN.items()}
_COLOUR = "|".join(COLOUR_NAMES)
CAPTION = re.compile(  # of one thing
    rf"(?:(?P<pattern>striped|spotted) )?(?:(?P<main>{_COLOUR})(?: and (?P<second>{_COLOUR}))? )?"
    rf"\b(?P<class_noun>{'|'.join(CLASSES)})\b"
    rf"(?: with (?P<accent>{_COLOUR}) (?P<plural>stripes|spots))?"
    rf"(?: with (?:an? (?P<head>{'|'.join(HEADS)}) head)?(?: and )?(?P<eyes>{'|'.join(EYES_OF)})?)?"
    rf"(?: wearing an? (?:(?P<worn_colour>{_COLOUR}) )?(?P<worn>{'|'.join(WORN[1:])}))?"
    r"(?: facing (?P<facing>left|right))?(?: (?P<place>.+))?$"
)


@dataclass(frozen=True)
class Claim:
    """Hold what a caption says: of each thing its class and looks, how the first stands to the second, and the place.

    What it does not say is missing, or "".
    """

    things: tuple[dict[str, str], ...]
    relation: str
    place: str


@dataclass(frozen=True)
class Batch:
    """Hold pictures; 2i and 2i + 1 show one thing, alone or, for CLIP, beside another."""

    pictures: list[Picture]
    pixels_BCHW: Tensor  # crisp, in -1..1

    def truth(self) -> dict[str, Tensor]:
        """Return the right answer to every question, [B]; NO_ANSWER of looks where two things are in the picture."""
        answers = [_answers(shown) for shown in self.pictures]
        return {name: torch.tensor([own.get(name, NO_ANSWER) for own in answers]) for name in QUESTIONS}

    def captions(self, rng: random.Random) -> tuple[list[str], Tensor]:
        """Return a caption of each picture, and whether a caption is true of a picture, bool [B, T]."""
        said = [caption(rng, shown) for shown in self.pictures]
        seen = [{thing.spec.class_noun: (thing, looks(thing)) for thing in shown.things} for shown in self.pictures]
        rows = [
            [holds(claim, things, shown.place) for _, claim in said]
            for things, shown in zip(seen, self.pictures, strict=True)
        ]
        return [text for text, _ in said], torch.tensor(rows)


def _answers(shown: Picture) -> dict[str, int]:
    place = picture.PLACES.index(shown.place)
    if len(shown.things) > 1:
        return {"place": place}
    (thing,) = shown.things
    return {"class_noun": CLASSES.index(thing.spec.class_noun), "place": place, **answers_of(thing)}


def draw(rng: random.Random, num_things: int, p_company: float = 0.0) -> Batch:
    """Draw two pictures each of `num_things` things, none of them held out.

    The things are `half_alike`.
    """
    focus = rng.choice(CLASSES)
    specs = half_alike(
        num_things,
        focus,
        lambda class_noun: _not_held_out(partial(picture.random_spec, rng, class_noun)),
        lambda spec: _not_held_out(partial(near_miss, rng, spec)),
    )
    shown = [_in_some_picture(rng, spec, p_company) for spec in specs for _ in range(2)]
    return Batch(shown, to_pixels([picture.render(each) for each in shown]))


draw_for_texts = partial(draw, p_company=P_COMPANY)


def _not_held_out(make: Callable[[], Spec]) -> Spec:
    spec = make()
    while picture.is_held_out(spec):
        spec = make()
    return spec


def _in_some_picture(rng: random.Random, spec: Spec, p_company: float) -> Picture:
    if rng.random() >= p_company:
        return picture.picture_of(rng, spec)
    other = rng.choice([noun for noun in CLASSES if noun != spec.class_noun])
    specs = [spec, _not_held_out(partial(picture.random_spec, rng, other))]
    return picture.random_picture(rng, specs, picture.possible_relation(rng, specs))


def caption(rng: random.Random, shown: Picture) -> tuple[str, Claim]:
    """Return a caption of a picture of one or two things, and what it says."""
    if len(shown.things) == 2:
        return _of_two(rng, shown)
    if rng.random() >= P_PLAIN:
        text = captions.caption(rng, shown)
        return text, claim_of(text)
    text = f"{rng.choice(OPENINGS)} {shown.things[0].spec.class_noun}"
    return _in_place(rng, text, shown, ({"class_noun": shown.things[0].spec.class_noun},), "")


def _of_two(rng: random.Random, shown: Picture) -> tuple[str, Claim]:
    things = tuple(
        {"class_noun": thing.spec.class_noun} | ({"main": thing.spec.main} if rng.random() < P_COLOUR else {})
        for thing in shown.things
    )
    first, second = (
        " ".join(["a", *([said["main"]] if "main" in said else []), said["class_noun"]]) for said in things
    )
    is_told = rng.random() < P_RELATION
    # Of things side by side "beside" would be true, too.
    neutral = captions.NEUTRAL if shown.relation in ("left of", "right of") else ("and",)
    between = rng.choice(captions.RELATION_PHRASES[shown.relation] if is_told else neutral)
    text = f"{rng.choice(('a photo of', 'a picture of', 'an image of'))} {first} {between} {second}"
    return _in_place(rng, text, shown, things, shown.relation if is_told else "")


def _in_place(
    rng: random.Random, text: str, shown: Picture, things: tuple[dict[str, str], ...], relation: str
) -> tuple[str, Claim]:
    place = shown.place if rng.random() < P_PLACE else ""
    if place:
        text = f"{text} {rng.choice(PHRASES[place])}"
    return with_articles(text), Claim(things, relation, place)


def claim_of(text: str) -> Claim:
    """Return what a caption of one thing says."""
    found = CAPTION.search(text)
    assert found is not None, f"not a caption of one thing: {text}"
    said = found.groupdict()
    place, eyes, plural = said.pop("place"), said.pop("eyes"), said.pop("plural")
    said["pattern"] = said["pattern"] or PATTERN_OF.get(plural)
    said["num_eyes"] = EYES_OF.get(eyes)
    thing = {name: value for name, value in said.items() if value is not None}
    return Claim((thing,), "", PLACE_OF[place] if place else "")


def looks(thing: Thing) -> dict[str, str]:
    """Return what a caption can say of a thing."""
    known = {name: QUESTIONS[name][number] for name, number in answers_of(thing).items() if number != NO_ANSWER}
    return {"class_noun": thing.spec.class_noun, **known}


def holds(claim: Claim, seen: dict[str, tuple[Thing, dict[str, str]]], place: str) -> bool:
    """Return whether everything that a caption says holds for a picture. seen: its things and their looks by class."""
    if claim.place not in ("", place):
        return False
    shown: list[Thing] = []
    for said in claim.things:
        thing, own = seen.get(said["class_noun"], (None, {}))
        if thing is None or not said.items() <= own.items():
            return False
        shown.append(thing)
    return not claim.relation or _relation(shown) == claim.relation


def _relation(things: Sequence[Thing]) -> str:
    (x, ground), (other_x, other_ground) = ((thing.center_x, thing.ground) for thing in things)
    return picture.relation_between((x, ground), (other_x, other_ground))
