"""Ask a model about one photo at a time, as `prepare` does: where is the subject, and what is to be seen?"""

from PIL import Image

from dreambooth.prompt_words import with_article
from dreambooth.readers.likelihood import answer_probability
from dreambooth.readers.loading import ReaderSource
from dreambooth.readers.masks import load_mask_finder
from dreambooth.readers.table import load_reader
from dreambooth.readers.text_options import TextOptions


class SubjectFinder:
    """Find a thing of a class by a model of `masks.FINDERS`, a hub id or folder. Raises ModelError, UserError."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.find = load_mask_finder(name, device)

    def __call__(self, image: Image.Image, class_noun: str) -> Image.Image | None:
        """Return the mask, mode L, as large as the photo, 255 on the subject; None where it is not seen."""
        mask = self.find([image], [class_noun or "subject"])[0]
        return mask if mask.getbbox() else None


class PhotoDescriber:
    """Caption and judge by a BLIP-2, a Kosmos-2 or another image-text-to-text model, a hub id or folder.

    Raises ModelError.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.reader = load_reader(ReaderSource(name, device))

    def __call__(self, image: Image.Image, class_noun: str) -> str:
        """Return the model's caption; it names the class where the model knows it."""
        return self.reader.caption([image], TextOptions())[0]

    def sees(self, image: Image.Image, class_noun: str) -> float:
        """Return the probability of "yes" to whether there is a thing of this class, of "yes" and "no" alone."""
        question = f"is there {with_article(class_noun)}?"
        return answer_probability(self.reader, [image], question, "yes")[0]
