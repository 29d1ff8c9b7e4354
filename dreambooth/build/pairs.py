"""Images of two of the run's subjects, cut out of their photos: data.cut_mix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.config import Config
from dreambooth.data.buckets import Size
from dreambooth.data.cut_mix import MaskedPhoto, cut_mix
from dreambooth.data.image_files import load_image
from dreambooth.data.images import grid
from dreambooth.files import atomic_file
from dreambooth.prompt_words import has_words, replace_words
from dreambooth.prompts import subject_phrase
from dreambooth.randomness import Randomness

if TYPE_CHECKING:
    from dreambooth.build.subjects import SubjectData

RELATIONS = ("{left} to the left of {right}", "{right} to the right of {left}")
NUM_SHOWN = 8  # images of cut-mix.png, four in a row


@dataclass(frozen=True)
class Pair:
    """Hold what an image of two subjects is made of.

    left, right: numbers of their photos, of all photos of the run. is_left_behind: as in `cut_mix`.
    """

    left: int
    right: int
    is_left_behind: bool
    caption: str


def plan_pairs(captions: Sequence[Sequence[str]], config: Config) -> list[Pair]:
    """Return data.cut_mix pairs: each subject on the left of each other one in turn, their photos drawn at random.

    captions: of each subject's photos; a pair's is that of the photo behind, which then names both.
    """
    numbers = [*itertools.accumulate(map(len, captions), initial=0)]
    turns, texts = [*itertools.permutations(range(len(captions)), 2)], [*itertools.chain(*captions)]
    phrases = [subject_phrase(subject) for subject in config.subjects]
    randomness, pairs = Randomness(config.run.seed), []
    for number in range(config.data.cut_mix):
        turn, (one, other) = number // len(turns), turns[number % len(turns)]
        rng = randomness.generator("cut-mix/photos", number)
        left, right = (int(numbers[each] + rng.integers(len(captions[each]))) for each in (one, other))
        is_left_behind = bool(rng.integers(2))
        both = RELATIONS[turn % len(RELATIONS)].format(left=phrases[one], right=phrases[other])
        behind, photo = (one, left) if is_left_behind else (other, right)
        named = phrases[behind] if has_words(texts[photo], phrases[behind]) else config.subjects[behind].identifier
        pairs.append(Pair(left, right, is_left_behind, replace_words(texts[photo], named, both)))
    return pairs


def draw_pair(data: SubjectData, number: int, size: Size, randomness: Randomness) -> MaskedPhoto:
    """Return a pair's image and its mask."""
    assert data.masks is not None, "data.cut_mix without data.mask"
    pair, paths = data.pairs[number], [*itertools.chain(*data.photos)]
    left, right = (
        MaskedPhoto(load_image(paths[photo]), data.masks[photo].convert("L")) for photo in (pair.left, pair.right)
    )
    return cut_mix(left, right, size, randomness.generator("cut-mix/places", number), pair.is_left_behind)


def show_pairs(path: Path, data: SubjectData, size: Size, randomness: Randomness) -> None:
    """Write a grid of the first pairs."""
    shown = [draw_pair(data, number, size, randomness).image for number in range(min(NUM_SHOWN, len(data.pairs)))]
    with atomic_file(path) as file:
        grid(shown, columns=4).save(file, "png")
