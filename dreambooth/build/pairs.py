"""Images of two of the run's subjects, cut out of their photos: data.cut_mix."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth.config import Config
from dreambooth.data.buckets import Size
from dreambooth.data.cut_mix import MaskedPhoto, cut_mix
from dreambooth.data.image_files import load_image
from dreambooth.data.images import grid
from dreambooth.files import atomic_file
from dreambooth.prompt_words import has_words, replace_words
from dreambooth.prompts import subject_phrase
from dreambooth.randomness import Randomness

RELATIONS = ("{left} to the left of {right}", "{right} to the right of {left}")
NUM_SHOWN = 8  # images of cut-mix.png, four in a row


@dataclass(frozen=True)
class Photo:
    """Hold a photo of a subject with its mask."""

    path: Path
    mask: Image.Image
    caption: str

    def load(self) -> MaskedPhoto:
        return MaskedPhoto(load_image(self.path), self.mask.convert("L"))


@dataclass(frozen=True)
class Pair:
    """Hold what an image of two subjects is made of. number: among all pairs. is_left_behind: as in `cut_mix`."""

    number: int
    left: Photo
    right: Photo
    is_left_behind: bool
    caption: str

    def draw(self, size: Size, randomness: Randomness) -> MaskedPhoto:
        """Return the image and its mask."""
        rng = randomness.generator("cut-mix/places", self.number)
        return cut_mix(self.left.load(), self.right.load(), size, rng, self.is_left_behind)


def plan_pairs(
    photos: Sequence[Sequence[Path]],
    captions: Sequence[Sequence[str]],
    masks: Sequence[Image.Image] | None,
    config: Config,
) -> list[Pair]:
    """Return data.cut_mix pairs: each subject on the left of each other one in turn, their photos drawn at random.

    photos, captions: of each subject. masks: of all photos; None: there are no pairs. The caption of a pair is that of
    the photo behind, which then names both.
    """
    if not config.data.cut_mix or masks is None:
        return []
    of_photos = iter(masks)
    known = [
        [Photo(path, next(of_photos), caption) for path, caption in zip(*own, strict=True)]
        for own in zip(photos, captions, strict=True)
    ]
    turns = [*itertools.permutations(range(len(known)), 2)]
    phrases = [subject_phrase(subject) for subject in config.subjects]
    randomness, pairs = Randomness(config.run.seed), []
    for number in range(config.data.cut_mix):
        one, other = turns[number % len(turns)]
        rng = randomness.generator("cut-mix/photos", number)
        left, right = (known[each][rng.integers(len(known[each]))] for each in (one, other))
        is_left_behind = bool(rng.integers(2))
        relation = RELATIONS[number // len(turns) % len(RELATIONS)]
        behind, text = (one, left.caption) if is_left_behind else (other, right.caption)
        named = phrases[behind] if has_words(text, phrases[behind]) else config.subjects[behind].identifier
        caption = replace_words(text, named, relation.format(left=phrases[one], right=phrases[other]))
        pairs.append(Pair(number, left, right, is_left_behind, caption))
    return pairs


def show_pairs(path: Path, pairs: Sequence[Pair], size: Size, randomness: Randomness) -> None:
    """Write a grid of the first pairs."""
    with atomic_file(path) as file:
        grid([pair.draw(size, randomness).image for pair in pairs[:NUM_SHOWN]], columns=4).save(file, "png")
