"""Hold what `describe` is asked for. Nothing heavy is imported here."""

from dataclasses import dataclass, field

from dreambooth.readers.text_options import TextOptions


@dataclass(frozen=True)
class DescribeRequest:
    """Say what is asked of images.

    ground: captions with boxes. attention: captions with the patches that each word was written from. search: a text to
    compare images with; "": none.
    """

    questions: tuple[str, ...] = ()
    captions: bool = True
    ground: bool = False
    attention: bool = False
    language: str | None = None
    search: str = ""
    options: TextOptions = field(default_factory=TextOptions)

    @property
    def has_captions(self) -> bool:
        """Return whether captions are written, plain or with boxes or maps."""
        return self.captions or self.ground or self.attention

    @property
    def is_read(self) -> bool:
        """Return whether anything is written that needs a reader: a search alone does not."""
        return self.has_captions or bool(self.questions)
