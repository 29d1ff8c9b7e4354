"""Scores of one validation's pictures: which prompt is measured how, and what the untouched base sets as the scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL.Image import Image

from dreambooth.metrics import scores
from dreambooth.metrics.selection import Anchors, means_of
from dreambooth.metrics.subject import Scores, SubjectScorer

PictureRows = Sequence[Sequence[Image]]  # a row a prompt, a column a seed


@dataclass(frozen=True)
class Prompt:
    """A validation prompt. kind: what its pictures are measured for. text: without the identifier, as CLIP reads it."""

    kind: Literal["subject", "class", "other"]
    text: str


def make_prompt(template: str, class_noun: str) -> Prompt:
    """`{subject}` makes a prompt one of the subject, `{class}` alone one of the class."""
    kind: Literal["subject", "class", "other"] = "other"
    if "{subject}" in template:
        kind = "subject"
    elif "{class}" in template:
        kind = "class"
    return Prompt(kind, template.replace("{subject}", class_noun).replace("{class}", class_noun))


@dataclass(frozen=True)
class ValidationScorer:
    """Scores the pictures of always the same prompts and seeds."""

    subject: SubjectScorer
    prompts: Sequence[Prompt]

    def __call__(self, rows: PictureRows, base: PictureRows | None = None) -> Scores:
        """One number per picture and measure, in the order of the rows. base: the untouched base's pictures."""
        found: Scores = {}
        if pictures := self._pictures(rows, "subject"):
            found |= self.subject.subject(pictures, self._texts(rows))
        for number, prompt in enumerate(self.prompts):
            base_row = None if base is None else base[number]
            if prompt.kind == "class":
                _extend(found, self.subject.of_class(rows[number], base_row))
            elif prompt.kind == "other" and base_row is not None:
                _extend(found, self.subject.of_other(rows[number], base_row))
        return found

    def anchors(self, base: PictureRows) -> Anchors | None:
        """What the rule measures between, from the untouched base's pictures; None without a class prompt."""
        of_base = means_of(self(base))
        class_pictures = self._pictures(base, "class")
        if not class_pictures or not self._pictures(base, "subject"):
            return None
        return Anchors(
            real=self.subject.real(),
            dino=of_base["dino"] if "dino" in of_base else of_base["clip_i"],
            pres=of_base["pres"],
            div=of_base.get("div"),
            clip_t=of_base.get("clip_t"),
            clip_t_ignored=self._ignored(class_pictures),
        )

    def _ignored(self, class_pictures: Sequence[Image]) -> float | None:
        """CLIP-T of class pictures under the subject prompts: what a model scores that does not listen."""
        clip = self.subject.encoders.clip
        if clip is None:
            return None
        texts = [prompt.text for prompt in self.prompts if prompt.kind == "subject"]
        return float(scores.similarity(clip.images(class_pictures), clip.texts(texts)).mean())

    def _pictures(self, rows: PictureRows, kind: str) -> list[Image]:
        return [
            picture for prompt, row in zip(self.prompts, rows, strict=True) if prompt.kind == kind for picture in row
        ]

    def _texts(self, rows: PictureRows) -> list[str]:
        return [
            prompt.text for prompt, row in zip(self.prompts, rows, strict=True) if prompt.kind == "subject" for _ in row
        ]


def _extend(found: Scores, more: Scores) -> None:
    for name, numbers in more.items():
        found.setdefault(name, []).extend(numbers)
