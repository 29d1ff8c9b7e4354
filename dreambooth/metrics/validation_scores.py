"""Scores of one validation's images: which prompt is measured how, and the anchors from the untouched base."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL.Image import Image

from dreambooth.metrics import scores
from dreambooth.metrics.log_names import LIKENESS, SCORES, Score
from dreambooth.metrics.selection import Anchors, means_of
from dreambooth.metrics.subject import Encoders, Scores, SubjectScorer
from dreambooth.plugins import active
from dreambooth.prompts import Kind, Prompt

ImageRows = Sequence[Sequence[Image]]  # a row for each prompt, a column for each seed


# The measures of each kind of prompt that are also reported for each subject.
MEASURES: dict[Kind, tuple[str, ...]] = {"subject": ("dino", "clip_i", "clip_t"), "class": ("pres", "div", "drift")}


@dataclass(frozen=True)
class ValidationScorer:
    """Score images of fixed prompts and seeds, each against the photos of the subjects that its prompt names.

    An image of a prompt with two subjects scores the mean of both.
    """

    subjects: Sequence[SubjectScorer]
    prompts: Sequence[Prompt]

    @property
    def encoders(self) -> Encoders:
        return self.subjects[0].encoders

    def __call__(self, rows: ImageRows, base: ImageRows | None = None) -> Scores:
        """Return one number for each image and measure, in the order of the rows. base: the untouched base's images."""
        found = self._of_subjects(rows)
        for number, prompt in enumerate(self.prompts):
            base_row = None if base is None else base[number]
            if prompt.kind == "class":
                _extend(found, _mean(self.subjects[i].of_class(rows[number], base_row) for i in prompt.subjects))
            elif prompt.kind == "other" and base_row is not None:
                _extend(found, self.subjects[0].of_other(rows[number], base_row))
            elif prompt.kind == "subject":
                _extend(found, self.subjects[prompt.subjects[0]].read(rows[number], prompt.text))
        return found | self._to_each(rows) | self._of_plugins(rows)

    def _to_each(self, rows: ImageRows) -> Scores:
        """Return the likeness of each image to every one of several subjects, whichever its prompt names."""
        found: Scores = {}
        for kind in ("subject", "class") if len(self.subjects) > 1 else ():
            if images := [image for _, image in self._shown(rows, kind)]:
                for number, subject in enumerate(self.subjects, start=1):
                    found[LIKENESS[kind].format(number)] = subject.likeness(images)
        return found

    def _of_plugins(self, rows: ImageRows) -> Scores:
        """Score the images of subject prompts as plug-ins do; one that fails is left out."""
        named = [(prompt, row) for prompt, row in zip(self.prompts, rows, strict=True) if prompt.kind == "subject"]
        found: Scores = {}
        for name, score in list(SCORES.items()):
            if name not in SCORES:  # its plug-in has failed with another score, and is left out
                continue
            numbers = active().try_row("scores", name, partial(self._measured, score, named))
            if numbers is not None:
                found[name] = numbers
        return found

    def _measured(self, score: Score, named: Sequence[tuple[Prompt, Sequence[Image]]]) -> list[float]:
        """Return a plug-in's number of each image. Raises ValueError where it gives more or fewer."""
        numbers: list[float] = []
        for prompt, row in named:
            photos = [photo for i in prompt.subjects for photo in self.subjects[i].photos]
            own = [float(number) for number in score.measure(list(row), prompt.text, photos)]
            if len(own) != len(row):
                raise ValueError(f"{len(own)} numbers for {len(row)} images")
            numbers += own
        return numbers

    def _of_subjects(self, rows: ImageRows) -> Scores:
        """Score the images of subject prompts; images of the same subjects are measured together."""
        shown = list(self._shown(rows, "subject"))
        found: Scores = {}
        for subjects in dict.fromkeys(prompt.subjects for prompt, _ in shown):
            indices = [index for index, (prompt, _) in enumerate(shown) if prompt.subjects == subjects]
            images, texts = [shown[index][1] for index in indices], [shown[index][0].text for index in indices]
            for name, numbers in _mean(self.subjects[i].subject(images, texts) for i in subjects).items():
                in_order = found.setdefault(name, [0.0] * len(shown))
                for index, number in zip(indices, numbers, strict=True):
                    in_order[index] = number
        return found

    def means_of_subjects(self, found: Scores) -> dict[str, list[float]]:
        """Return each subject's mean of `found`, by measure, on prompts of it alone; nothing for one subject."""
        means: dict[str, list[float]] = {}
        for kind, names in MEASURES.items() if len(self.subjects) > 1 else ():
            of_kind = [prompt for prompt in self.prompts if prompt.kind == kind]
            for name in names:
                by_subject = [of_prompts(found.get(name, []), of_kind, (i,)) for i in range(len(self.subjects))]
                if all(by_subject):
                    means[name] = [sum(numbers) / len(numbers) for numbers in by_subject]
        return means

    def anchors(self, base: ImageRows, scores_of_base: Scores) -> Anchors | None:
        """Return the anchors of the rule, from the untouched base's images; None without a class prompt."""
        if not {"subject", "class"} <= {prompt.kind for prompt in self.prompts}:
            return None
        of_base = means_of(scores_of_base)
        return Anchors(
            real=sum(subject.real() for subject in self.subjects) / len(self.subjects),
            dino=of_base["dino"] if "dino" in of_base else of_base["clip_i"],
            pres=of_base["pres"],
            div=of_base.get("div"),
            clip_t=of_base.get("clip_t"),
            clip_t_ignored=self._ignored(base),
        )

    def _ignored(self, base: ImageRows) -> float | None:
        """Return CLIP-T of class images under their subjects' prompts: the score of a model that ignores prompts."""
        clip, similarity = self.encoders.clip, []
        if clip is None:
            return None
        of_subject = [prompt for prompt in self.prompts if prompt.kind == "subject"]
        for subjects in dict.fromkeys(prompt.subjects for prompt in of_subject):
            texts = [prompt.text for prompt in of_subject if prompt.subjects == subjects]
            images = [each for prompt, each in self._shown(base, "class") if {*prompt.subjects} & {*subjects}]
            if images:
                similarity.append(scores.similarity(clip.images(images), clip.texts(texts)))
        return float(torch.cat(similarity).mean()) if similarity else None

    def _shown(self, rows: ImageRows, kind: Kind) -> Iterator[tuple[Prompt, Image]]:
        """Yield every image of prompts of a kind, with its prompt."""
        for prompt, row in zip(self.prompts, rows, strict=True):
            if prompt.kind == kind:
                yield from ((prompt, image) for image in row)


def _mean(each: Iterable[Scores]) -> Scores:
    """Return the mean of the scores of the same images, image by image."""
    together = list(each)
    return {
        name: [sum(numbers) / len(numbers) for numbers in zip(*(found[name] for found in together), strict=True)]
        for name in together[0]
    }


def of_prompts(numbers: Sequence[float], prompts: Sequence[Prompt], subjects: tuple[int, ...]) -> list[float]:
    """Return the numbers of the prompts of just these subjects; every prompt has as many."""
    size = len(numbers) // max(1, len(prompts))
    return [number for index, number in enumerate(numbers) if prompts[index // size].subjects == subjects]


def _extend(found: Scores, more: Scores) -> None:
    for name, numbers in more.items():
        found.setdefault(name, []).extend(numbers)
