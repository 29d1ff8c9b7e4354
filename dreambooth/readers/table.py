"""Which reader a model needs, by the kind that its config names: one row each."""

from collections.abc import Callable

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from dreambooth.errors import ModelError
from dreambooth.readers.blip2 import Blip2Reader
from dreambooth.readers.chat import ChatReader
from dreambooth.readers.kosmos2 import Kosmos2Reader
from dreambooth.readers.loading import ReaderSource, read_config
from dreambooth.readers.matching import Blip2Matcher
from dreambooth.readers.protocols import Matcher, Reader, Searcher
from dreambooth.readers.search import Blip2Searcher, ClipSearcher

READERS: dict[str, Callable[[ReaderSource], Reader]] = {"blip-2": Blip2Reader, "kosmos-2": Kosmos2Reader}
SEARCHERS: dict[str, Callable[[ReaderSource], Searcher]] = {
    "blip-2": Blip2Searcher,
    "clip": ClipSearcher,
    "siglip": ClipSearcher,
    "siglip2": ClipSearcher,
}
MATCHERS: dict[str, Callable[[ReaderSource], Matcher]] = {"blip-2": Blip2Matcher}


def load_reader(source: ReaderSource) -> Reader:
    """Load a BLIP-2, a Kosmos-2 or any image-text-to-text model of transformers. Raises ModelError for another kind."""
    kind = str(read_config(source.name).model_type)
    if kind in READERS:
        return READERS[kind](source)
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return ChatReader(source)
    raise ModelError(
        f"{source.title}: a {kind} describes no images; name a BLIP-2, a Kosmos-2 or another image-text-to-text model"
    )


def load_searcher(source: ReaderSource) -> Searcher:
    """Load what compares images with a text. Raises ModelError for a model that cannot."""
    kind = str(read_config(source.name).model_type)
    if kind not in SEARCHERS:
        raise ModelError(
            f"{source.title}: a {kind} has no space of images and texts; name one of {', '.join(SEARCHERS)}"
        )
    return SEARCHERS[kind](source)


def load_matcher(source: ReaderSource) -> Matcher:
    """Load what tells whether a text belongs to an image. Raises ModelError for a model that cannot."""
    kind = str(read_config(source.name).model_type)
    if kind not in MATCHERS:
        raise ModelError(f"{source.title}: a {kind} has no matching head; name one of {', '.join(MATCHERS)}")
    return MATCHERS[kind](source)
