"""Scores by models that read images: whether image and prompt match, and how likely the right answers to questions are.

They stand beside CLIP-T and DINO; which step is kept does not depend on them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL.Image import Image

from dreambooth.errors import UserError
from dreambooth.questions import Question, parse_question
from dreambooth.readers.describe import in_batches
from dreambooth.readers.likelihood import answer_probability
from dreambooth.readers.loading import ReaderSource
from dreambooth.readers.protocols import Matcher, Reader
from dreambooth.readers.taught import read_taught

MATCH = "match"
BATCH_SIZE = 8  # images at a time

Scores = dict[str, list[float]]


@dataclass(frozen=True)
class ReaderNames:
    """Name the models that read, by hub id or folder, and what is asked. None: no such score."""

    matcher: str | None = None
    reader: str | None = None
    questions: tuple[str, ...] = ()


NO_READERS = ReaderNames()


@dataclass(frozen=True)
class ReaderScores:
    """Score images of one prompt.

    subject: what the reader calls the subject that it was taught; "": it was taught none.
    """

    matcher: Matcher | None = None
    reader: Reader | None = None
    questions: Sequence[Question] = ()
    subject: str = ""

    @property
    def names(self) -> dict[str, str]:
        """Return which model each measure is by."""
        matched = {} if self.matcher is None else {MATCH: self.matcher.name}
        asked = (
            {} if self.reader is None else dict.fromkeys((each.measure for each in self.questions), self.reader.name)
        )
        return matched | asked

    @property
    def networks(self) -> dict[str, Any]:
        """Return the networks that are held in memory, by what they do."""
        found = {"matcher": self.matcher, "reader": self.reader}
        return {name: model.network for name, model in found.items() if model is not None}

    def __call__(self, images: Sequence[Image], text: str, class_noun: str) -> Scores:
        """Return `match`, and of each question about this prompt the probability of the right answer.

        text: the prompt of the images, without identifiers.
        """
        found: Scores = {}
        if self.matcher is not None:
            found[MATCH] = _batched(images, partial(self.matcher.match, text=text))
        about = [question for question in self.questions if question.is_about(text)]
        return found | self._answers(images, about, class_noun)

    def of_photos(self, photos: Sequence[Image], class_noun: str) -> Scores:
        """Return the same of the subject's photos: of the questions that are about every prompt."""
        return self._answers(photos, [question for question in self.questions if not question.words], class_noun)

    def _answers(self, images: Sequence[Image], questions: Sequence[Question], class_noun: str) -> Scores:
        found: Scores = {}
        if self.reader is None:
            return found
        for question in questions:
            text, answer = question.filled(class_noun, self.subject)
            score = partial(answer_probability, self.reader, question=text, answer=answer)
            found[question.measure] = _batched(images, score)
        return found


def _batched(images: Sequence[Image], score: Callable[[Sequence[Image]], list[float]]) -> list[float]:
    return [number for batch in in_batches(images, BATCH_SIZE, score) for number in batch]


def load_reader_scores(names: ReaderNames, device: str = "cpu") -> ReaderScores | None:
    """Load the models that read; None where none is named.

    Raises ModelError for one that cannot be loaded, UserError where an untaught one is asked for the subject.
    """
    if names.matcher is None and names.reader is None:
        return None
    from dreambooth.readers.table import load_matcher, load_reader  # all kinds of readers, which most runs do not need

    questions = [parse_question(text) for text in names.questions]
    subject = "" if names.reader is None else read_taught(names.reader)
    check_taught(names, questions, subject)
    return ReaderScores(
        None if names.matcher is None else load_matcher(ReaderSource(names.matcher, device)),
        None if names.reader is None else load_reader(ReaderSource(names.reader, device)),
        questions,
        subject,
    )


def check_taught(names: ReaderNames, questions: Sequence[Question], subject: str) -> None:
    """Raise UserError where a reader is asked for a subject that it was not taught."""
    for question in questions:
        if question.names_subject and not subject:
            raise UserError(
                f"question {question.text!r}: {names.reader} has been taught no subject; teach it one (`describe "
                "--teach`), or write the name that it knows in the place of {subject}"
            )
