"""The words that an identifier's embedding starts as: named in the config, or chosen from the photos by a CLIP.

To the denoiser a subject differs from its class through the identifier alone. A row of the embedding that no caption
ever used says nothing, and what it starts as is where the subject is looked for.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from dreambooth.build.method import AUTO
from dreambooth.build.networks import pick_device
from dreambooth.build.validation_inputs import auto_encoder
from dreambooth.config import Config
from dreambooth.config.fields import SubjectConfig
from dreambooth.data.image_files import load_image
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.looks import COLOURS, MATERIALS, PATTERNS
from dreambooth.methods import find_facts
from dreambooth.methods.base import StartWords
from dreambooth.metrics.encoders import ClipEncoder, load_clip
from dreambooth.metrics.scores import similarity

logger = logging.getLogger(__name__)
KINDS = (PATTERNS, MATERIALS, COLOURS)  # of words, of each of which one is chosen


def choose_start_words(
    config: Config, family: Family, photos: Sequence[Sequence[Path]], clip: ClipEncoder | None = None
) -> StartWords | None:
    """Return words for each subject's looks, chosen from its photos; None where there is nothing to choose.

    That is unless method.start_word is auto, after method.start, and for text encoders that stay frozen. clip: that is
    loaded already. Raises UserError without a CLIP to choose by, and ModelError for one that cannot be loaded.
    """
    if config.method.start_word != AUTO or config.method.start is not None or not family.text_encoders:
        return None
    clip = clip or _load_clip(config)
    return tuple(
        _chosen(clip, family, own, subject, is_new=find_facts(config.method.name).adds_tokens)
        for subject, own in zip(config.subjects, photos, strict=True)
    )


def told_start_words(config: Config, start_words: StartWords | None) -> list[str]:
    """Return words that were chosen, a text for each subject that has some: "sks: striped, purple"."""
    chosen = zip(config.subjects, start_words or (), strict=False)
    return [f"{subject.identifier}: {', '.join(words)}" for subject, words in chosen if words]


def _load_clip(config: Config) -> ClipEncoder:
    name = config.validate.clip
    name = auto_encoder("clip") if name == "auto" else name
    if name is None:
        raise UserError(
            "method.start_word=auto: chooses by a CLIP, and none is here; name one (validate.clip) or words"
        )
    return load_clip(name, str(pick_device(config)))


def _chosen(
    clip: ClipEncoder, family: Family, photos: Sequence[Path], subject: SubjectConfig, is_new: bool
) -> tuple[str, ...]:
    """Return the words of a subject, and say which; none for an identifier of several tokens that the base knows."""
    word = subject.identifier
    if not is_new and (number := len(family.tokenize(word))) != 1:
        logger.warning(
            f"subject.identifier: {word!r} is {number} tokens, which other words have too, so it starts as it is; one "
            "of a single token would start as words for the subject's looks (method.start_word=auto)"
        )
        return ()
    chosen = looks(clip, family, photos, subject.class_noun)
    logger.info(f"{word!r} starts as {', '.join(chosen)} (method.start_word, by {clip.name})")
    return chosen


def looks(clip: ClipEncoder, family: Family, photos: Sequence[Path], class_noun: str) -> tuple[str, ...]:
    """Return the pattern, the material and the colour most like the photos, of words that are one token of the base.

    "A photo of a {word} {class_noun}" is compared with the photos: mean cosine of CLIP's embeddings. A second colour is
    wrong too often: with three the backpack lost its own (benchmarks/RESULTS.md).
    """
    images_ND = clip.images([load_image(path) for path in photos])
    found = []
    for words in filter(None, (_single_tokens(family, kind) for kind in KINDS)):
        texts_KD = clip.texts([f"a photo of a {word} {class_noun}" for word in words])
        found.append(words[int(similarity(texts_KD, images_ND).argmax())])
    if not found:
        raise UserError("method.start_word=auto: this base has no word for a colour that is one token; name words")
    return tuple(found)


def _single_tokens(family: Family, words: Collection[str]) -> list[str]:
    return [word for word in sorted(words) if len(family.tokenize(word)) == 1]
