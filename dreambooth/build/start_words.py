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
from dreambooth.data.image_files import load_image
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.looks import COLOURS, MATERIALS, PATTERNS
from dreambooth.methods.base import StartWords
from dreambooth.metrics.encoders import ClipEncoder, load_clip
from dreambooth.metrics.scores import similarity

logger = logging.getLogger(__name__)
KINDS = (PATTERNS, MATERIALS, COLOURS)  # of words, of each of which one is chosen


def choose_start_words(config: Config, family: Family, photos: Sequence[Sequence[Path]]) -> StartWords | None:
    """Return words for each subject's looks, chosen from its photos; None unless method.start_word is auto.

    Raises UserError without a CLIP to choose by, and ModelError for one that cannot be loaded.
    """
    if config.method.start_word != AUTO:
        return None
    name = config.validate.clip
    name = auto_encoder("clip") if name == "auto" else name
    if name is None:
        raise UserError(
            "method.start_word=auto: chooses by a CLIP, and none is here; name one (validate.clip) or words"
        )
    clip, chosen = load_clip(name, str(pick_device(config))), []
    for subject, own in zip(config.subjects, photos, strict=True):
        chosen.append(looks(clip, family, own, subject.class_noun))
        logger.info(f"{subject.identifier!r} starts as {', '.join(chosen[-1])} (method.start_word, by {name})")
    return tuple(chosen)


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
