"""Questions whose answers score an image: what is asked, what is the right answer, and about which prompts.

is there a beach?             of every prompt with {subject}; the right answer is yes
where is it? on the beach     the right answer is what follows the question mark
beach: is there a beach?      of the prompts alone that have the words before the colon
is this {subject}?            {subject}: the name that the reader was taught; {class}: the class noun
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dreambooth.errors import UserError
from dreambooth.prompt_words import has_words
from dreambooth.prompts import Field, parse_template

FORM = re.compile(r"\s*(?:(?P<words>[^:?]*):)?\s*(?P<text>[^:?]*\?)\s*(?P<answer>[^?]*)")
OPPOSITES = {"yes": "no", "no": "yes"}
MEASURE = "question_"  # begins the name of a question's measure


@dataclass(frozen=True)
class Question:
    """Hold a question. text, answer: templates of {class} and {subject}. words: of the prompts that it is about."""

    text: str
    answer: str = "yes"
    words: str = ""

    @property
    def measure(self) -> str:
        """Return the name of its measure: question_is_there_a_beach."""
        parts = [self.text, self.answer, self.words] if self.words else [self.text, self.answer]
        if len(parts) == 2 and self.answer == "yes":
            parts.pop()
        return MEASURE + "__".join(map(_slug, parts))

    @property
    def names_subject(self) -> bool:
        """Return whether it asks for the subject itself."""
        return any(isinstance(piece, Field) and piece.name == "subject" for piece in self._pieces())

    def is_about(self, prompt: str) -> bool:
        """Return whether it is asked of images of a prompt. prompt: without identifiers."""
        return not self.words or has_words(prompt, self.words)

    def filled(self, class_noun: str, subject: str) -> tuple[str, str]:
        """Return what is asked and the right answer, with the class noun and the subject's name in their places."""
        values = {"class": class_noun, "subject": subject}
        text, answer = (
            "".join(piece if isinstance(piece, str) else values[piece.name] for piece in parse_template(template))
            for template in (self.text, self.answer)
        )
        return text, answer

    def _pieces(self) -> list[str | Field]:
        return [*parse_template(self.text), *parse_template(self.answer)]


def parse_question(text: str) -> Question:
    """Return the question that a text of the form `WORDS: QUESTION? ANSWER` is. Raises UserError for another form."""
    match = FORM.fullmatch(text)
    if match is None or not _slug(match["text"]):
        raise UserError(
            "must be a question with one question mark, and the right answer after it where that is not yes"
        )
    answer = match["answer"].strip() or "yes"
    answer = answer.lower() if answer.lower() in OPPOSITES else answer
    question = Question(match["text"], answer, (match["words"] or "").strip())
    if (match["words"] is not None and not _slug(question.words)) or not _slug(question.answer):
        raise UserError("needs words of prompts before a colon, and a word as the right answer")
    for piece in question._pieces():
        if isinstance(piece, Field) and piece.number is not None:
            raise UserError(f"{piece}: a question has no numbers of subjects; write the name")
    return question


def question_problem(text: str) -> str | None:
    """Return what is wrong with a question, in words; None for a sound one."""
    try:
        parse_question(text)
    except UserError as error:
        return str(error)
    return None


def problems_of_questions(texts: Sequence[str], prompts: Sequence[str] | None) -> list[str]:
    """Return what is wrong with questions, each with its text.

    prompts: those with {subject}, without identifiers; None: not known.
    """
    problems = [f"{text!r}: {problem}" for text in texts if (problem := question_problem(text))]
    if problems:
        return problems
    questions = [parse_question(text) for text in texts]
    measures = [question.measure for question in questions]
    for number, (text, question) in enumerate(zip(texts, questions, strict=True)):
        if question.measure in measures[:number]:
            problems.append(f"{text!r}: is there twice; leave one")
        if prompts is not None and not any(map(question.is_about, prompts)):
            words = f" has the words {question.words!r}" if question.words else ""
            problems.append(f"{text!r}: no prompt with {{subject}}{words or ' is there'}, so it would never be asked")
    return problems


def question_of(measure: str) -> str | None:
    """Return the question of a measure's name, as far as the name tells it; None for another measure."""
    if not measure.startswith(MEASURE):
        return None
    text, *more = (part.replace("_", " ") for part in measure.removeprefix(MEASURE).split("__"))
    answer = f" {more[0]}" if more and more[0] != "yes" else ""
    words = f"{more[1]}: " if len(more) > 1 else ""
    return f"{words}{text}?{answer}"


def _slug(text: str) -> str:
    return re.sub(r"[\W_]+", "_", text.lower()).strip("_")
