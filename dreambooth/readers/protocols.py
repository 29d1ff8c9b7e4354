"""Say what a reader of images can do, and what it returns. Nothing heavy is imported here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dreambooth.readers.text_options import TextOptions

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Box = tuple[float, float, float, float]  # left, top, right, bottom, in fractions of the image


@dataclass(frozen=True)
class PhraseBox:
    """Hold where a phrase of a caption is in the image: fractions of its width and height, 0 to 1."""

    phrase: str
    left: float
    top: float
    right: float
    bottom: float

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom in pixels of an image of that (width, height)."""
        width, height = size
        edges = (self.left * width, self.top * height, self.right * width, self.bottom * height)
        left, top, right, bottom = map(round, edges)
        return left, top, right, bottom

    def placed(self, part: Box) -> "PhraseBox":
        """Return the box in fractions of the image, where its own are of a part of it."""
        width, height = part[2] - part[0], part[3] - part[1]
        left, right = part[0] + width * self.left, part[0] + width * self.right
        top, bottom = part[1] + height * self.top, part[1] + height * self.bottom
        return PhraseBox(self.phrase, left, top, right, bottom)


@dataclass(frozen=True)
class GroundedCaption:
    """Hold a caption, and where what it names is in the image."""

    text: str
    boxes: tuple[PhraseBox, ...]


@dataclass(frozen=True)
class WordMap:
    """Hold a word of a caption with the patches that its writer attended to.

    map_hw: attention to the h rows and w columns of patches, float32, with a sum of 1. share: of the language model's
    attention, how much went to the image instead of to the words before it, 0 to 1.
    """

    word: str
    map_hw: "Tensor"
    share: float


@dataclass(frozen=True)
class AttendedCaption:
    """Hold a caption with its words' maps. seen: the part of the image that the patches cover."""

    text: str
    words: tuple[WordMap, ...]
    seen: Box = (0.0, 0.0, 1.0, 1.0)


class Reader(Protocol):
    """Describe images, and answer questions about them. All texts come in the images' order.

    language: a tag such as `de`; None: the model's own. Raises UserError for what the model cannot do.
    """

    name: str
    network: Any

    def caption(
        self, images: "Sequence[Image.Image]", options: TextOptions, language: str | None = None
    ) -> list[str]: ...

    def answer(self, images: "Sequence[Image.Image]", question: str, options: TextOptions) -> list[str]: ...

    def ground(
        self, images: "Sequence[Image.Image]", options: TextOptions, language: str | None = None
    ) -> list[GroundedCaption]: ...

    def attend(
        self, images: "Sequence[Image.Image]", options: TextOptions, language: str | None = None
    ) -> list[AttendedCaption]: ...

    def likelihood(self, images: "Sequence[Image.Image]", question: str, answer: str) -> list[float]:
        """Return the log-probability with which it would write an answer to a question, 0 at most."""


class Matcher(Protocol):
    """Tell whether a text belongs to an image, by reading both together."""

    name: str
    network: Any

    def match(self, images: "Sequence[Image.Image]", text: str) -> list[float]:
        """Return the probability that a text belongs to each image, 0 to 1."""


class Searcher(Protocol):
    """Tell how well images fit a text, by an embedding that both have in common."""

    name: str

    def likeness(self, images: "Sequence[Image.Image]", text: str) -> list[float]:
        """Return the cosine of each image with the text, -1 to 1."""
