"""Images of two of the run's subjects, cut out of their photos: data.cut_mix."""

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth.config import Config, subject_key
from dreambooth.data.buckets import Size
from dreambooth.data.cut_mix import Cutting, MixedImage, cut_mix
from dreambooth.data.image_files import load_image
from dreambooth.data.images import grid
from dreambooth.errors import UserError
from dreambooth.files import atomic_file
from dreambooth.prompt_words import find_words, has_words
from dreambooth.prompts import subject_phrase
from dreambooth.randomness import Randomness

RELATIONS = ("{left} to the left of {right}", "{right} to the right of {left}", "{left} and {right}")
NUM_SHOWN = 8  # images of cut-mix.png, four in a row


@dataclass(frozen=True)
class Photo:
    """Hold a photo of a subject with its mask."""

    path: Path
    mask: Image.Image
    caption: str


@dataclass(frozen=True)
class Pair:
    """Hold what an image of two subjects is made of. number: among all pairs. is_left_behind: as in `cut_mix`."""

    number: int
    left: Photo
    right: Photo
    is_left_behind: bool
    caption: str


def plan_pairs(
    photos: Sequence[Sequence[Path]],
    captions: Sequence[Sequence[str]],
    masks: Sequence[Image.Image] | None,
    config: Config,
) -> list[Pair]:
    """Return data.cut_mix pairs: each subject on the left of each other one in turn, their photos drawn at random.

    photos, captions: of each subject. masks: of all photos; None: there are no pairs. The caption of a pair is that of
    the photo behind, which then names both. Raises UserError for a subject that no photo's caption names alone.
    """
    if not config.data.cut_mix or masks is None:
        return []
    known, of_photos = [], iter(masks)
    for number, own in enumerate(zip(photos, captions, strict=True)):
        with_masks = [Photo(path, next(of_photos), caption) for path, caption in zip(*own, strict=True)]
        known.append([photo for photo in with_masks if _names_only(photo.caption, number, config)])
        if not known[-1]:
            raise UserError(
                f"data.cut_mix: {subject_key(config, number)}: each prompt of its photos names another subject, or not "
                f"it: {with_masks[0].caption!r}; write one that names it alone, or set data.cut_mix to 0"
            )
    turns = [*itertools.permutations(range(len(known)), 2)]
    randomness, pairs = Randomness(config.run.seed), []
    for number in range(config.data.cut_mix):
        one, other = turns[number % len(turns)]
        rng = randomness.generator("cut-mix/photos", number)
        left, right = (known[each][rng.integers(len(known[each]))] for each in (one, other))
        is_left_behind = bool(rng.integers(2))
        text = left.caption if is_left_behind else right.caption
        relation = RELATIONS[number // len(turns) % len(RELATIONS)]
        caption = _naming_both(text, one, other, one if is_left_behind else other, relation, config)
        pairs.append(Pair(number, left, right, is_left_behind, caption))
    return pairs


def _names_only(caption: str, number: int, config: Config) -> bool:
    """Return whether a caption names a subject and none of the others."""
    named = [has_words(caption, subject.identifier) for subject in config.subjects]
    return named[number] and sum(named) == 1


def _naming_both(caption: str, left: int, right: int, own: int, relation: str, config: Config) -> str:
    """Return a caption with both subjects in the place of the one that it names first. own: its number."""
    phrases = [subject_phrase(subject) for subject in config.subjects]
    caption = unicodedata.normalize("NFC", caption)
    found = find_words(caption, phrases[own]) or find_words(caption, config.subjects[own].identifier)
    start, end = found[0]
    return caption[:start] + relation.format(left=phrases[left], right=phrases[right]) + caption[end:]


def draw_pairs(pairs: Sequence[Pair], size: Size, randomness: Randomness) -> Iterator[MixedImage]:
    """Yield the image of each pair. Each photo is loaded once."""
    cuttings: dict[Path, Cutting] = {}
    for pair in pairs:
        for photo in (pair.left, pair.right):
            if photo.path not in cuttings:
                cuttings[photo.path] = Cutting.of(load_image(photo.path), photo.mask.convert("L"), size)
        rng = randomness.generator("cut-mix/places", pair.number)
        yield cut_mix(cuttings[pair.left.path], cuttings[pair.right.path], size, rng, pair.is_left_behind)


def show_pairs(path: Path, pairs: Sequence[Pair], size: Size, randomness: Randomness) -> None:
    """Write a grid of the first pairs; remove the file where there are none."""
    if not pairs:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as file:
        grid([mixed.image for mixed in draw_pairs(pairs[:NUM_SHOWN], size, randomness)], columns=4).save(file, "png")
