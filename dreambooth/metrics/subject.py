"""The paper's measures applied to images of one subject: what validation, `evaluate` and the laboratory all use.

Shapes: B images, N photos, D embedding dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL.Image import Image
from torch import Tensor

from dreambooth.errors import UserError
from dreambooth.metrics import scores
from dreambooth.metrics.encoders import ClipEncoder, ImageEncoder, load_clip, load_image_encoder
from dreambooth.metrics.perceptual import Perceptual, load_lpips
from dreambooth.metrics.reader_scores import NO_READERS, ReaderNames, ReaderScores, load_reader_scores

Scores = dict[str, list[float]]  # dino, clip_i, clip_t, pres, div, drift, drift_other -> one number per image


@dataclass(frozen=True)
class Encoders:
    """Hold the encoders to measure with; at least one of the first two. Without `dino`, `clip` also does its part.

    lpips: measures `among`; None: the encoder's cosine distance. reader: of models that read images; None: none.
    """

    dino: ImageEncoder | None = None
    clip: ClipEncoder | None = None
    lpips: Perceptual | None = None
    reader: ReaderScores | None = None

    @property
    def main(self) -> ImageEncoder:
        """Return the encoder of PRES, drift and DIV."""
        encoder = self.dino or self.clip
        assert encoder is not None, "no encoder"
        return encoder

    @property
    def names(self) -> dict[str, str]:
        """Return which model each measure is by, for tables and reports."""
        dino, clip = (encoder.name if encoder is not None else None for encoder in (self.dino, self.clip))
        div = "LPIPS" if self.lpips is not None else f"cosine distance, {self.main.name}"
        by = {"dino": dino, "clip_i": clip, "clip_t": clip, "pres": self.main.name, "div": div, "drift": self.main.name}
        by["drift_other"] = self.main.name
        named = {measure: name for measure, name in by.items() if name is not None}
        return named if self.reader is None else named | self.reader.names


def load_encoders(
    dino: str | None,
    clip: str | None,
    device: str = "cpu",
    lpips: bool = False,
    read_by: ReaderNames = NO_READERS,
) -> Encoders:
    """Load encoders by hub id or folder; None leaves one out. Raises ModelError for a missing one, UserError for none.

    lpips: measure `SubjectScorer.among` with it where it is installed. read_by: the models that read images.
    """
    if dino is None and clip is None:
        raise UserError("no encoder to measure with: name a DINO or a CLIP")
    return Encoders(
        dino=None if dino is None else load_image_encoder(dino, device),
        clip=None if clip is None else load_clip(clip, device),
        lpips=load_lpips(device) if lpips else None,
        reader=load_reader_scores(read_by, device),
    )


@dataclass
class SubjectScorer:
    """Score images against the photos of one subject, which are embedded once. class_noun: for questions."""

    encoders: Encoders
    photos: Sequence[Image]
    class_noun: str = ""
    _photos_ND: dict[str, Tensor] = field(default_factory=dict)

    def subject(self, images: Sequence[Image], texts: Sequence[str]) -> Scores:
        """Score images of prompts with the subject: `dino`, `clip_i`, and `clip_t` against `texts`.

        texts: an image's prompt with the identifier taken out ("a photo of a dog on the beach"), as it means nothing
        to CLIP.
        """
        found: Scores = {}
        dino, clip = self.encoders.dino, self.encoders.clip
        if dino is not None:
            found["dino"] = self._similarity(dino, dino.images(images))
        if clip is not None:
            embedding_BD = clip.images(images)
            found["clip_i"] = self._similarity(clip, embedding_BD)
            found["clip_t"] = scores.prompt_similarity(embedding_BD, clip.texts(texts)).tolist()
        return found

    def read(self, images: Sequence[Image], text: str) -> Scores:
        """Score images of one prompt with the subject by the models that read: `match`, and a number a question.

        text: as for `subject`.
        """
        reader = self.encoders.reader
        return {} if reader is None else reader(images, text, self.class_noun)

    def of_class(self, images: Sequence[Image], base: Sequence[Image] | None = None) -> Scores:
        """Score images of one class prompt: `pres`, `div` (of two images and more), and `drift` against `base`.

        All three are cosines of one encoder, since quality compares them. base: the untouched base's images of the same
        prompt and seeds.
        """
        main = self.encoders.main
        embedding_BD = main.images(images)
        found = {"pres": self._similarity(main, embedding_BD)}
        if len(images) > 1:
            found["div"] = scores.diversity(scores.cosine_distance(embedding_BD)).tolist()
        if base is not None:
            found["drift"] = scores.drift(embedding_BD, main.images(base)).tolist()
        return found

    def among(self, images: Sequence[Image]) -> list[float]:
        """Return each image's mean distance to the others of its prompt, two and more: by LPIPS where it is there."""
        lpips = self.encoders.lpips
        distance_BB = (
            scores.cosine_distance(self.encoders.main.images(images)) if lpips is None else lpips.distance(images)
        )
        return scores.diversity(distance_BB).tolist()

    def of_other(self, images: Sequence[Image], base: Sequence[Image]) -> Scores:
        """Score images of prompts that name neither subject nor class: `drift_other` against the untouched base's."""
        main = self.encoders.main
        return {"drift_other": scores.drift(main.images(images), main.images(base)).tolist()}

    def likeness(self, images: Sequence[Image]) -> list[float]:
        """Return each image's similarity to the photos, by the encoder that also measures PRES."""
        return self._similarity(self.encoders.main, self.encoders.main.images(images))

    def real(self) -> float:
        """Return `dino` among the photos themselves: what perfect images would reach."""
        return scores.self_similarity(self._photos(self.encoders.main))

    def _similarity(self, encoder: ImageEncoder, embedding_BD: Tensor) -> list[float]:
        return scores.similarity(embedding_BD, self._photos(encoder)).tolist()

    def _photos(self, encoder: ImageEncoder) -> Tensor:
        if encoder.name not in self._photos_ND:
            self._photos_ND[encoder.name] = encoder.images(self.photos)
        return self._photos_ND[encoder.name]
