"""Templates of prompts: {subject} stands for a subject's identifier and class noun, {class} for its class noun alone.

Of several subjects {subject_2} and {class_2} are the second's, and so on, so that a prompt can join them. Without a
number they are of the subject whose template it is (its own prompt, a caption of its images), else of the first.
{{ and }} stand for a brace; any other brace is an error.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from dreambooth.errors import UserError
from dreambooth.prompt_words import has_words, replace_words

PIECE = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")
FIELD = re.compile(r"\{(subject|class)(?:_(\d+))?\}")
Name = Literal["subject", "class"]
Kind = Literal["subject", "class", "other"]


class Named(Protocol):
    """Name a subject in prompts."""

    @property
    def identifier(self) -> str: ...

    @property
    def class_noun(self) -> str: ...


@dataclass(frozen=True)
class Field:
    """Hold a field of a template. number: of its subject, from 1; None: of the subject whose template it is."""

    name: Name
    number: int | None

    def __str__(self) -> str:
        return f"{{{self.name}}}" if self.number is None else f"{{{self.name}_{self.number}}}"

    def subject(self, own: int) -> int:
        """Return the number, from 0, of the field's subject in a template of subject `own`."""
        return own if self.number is None else self.number - 1


def parse_template(template: str) -> list[str | Field]:
    """Split a template into texts and fields. Raises UserError, without the template, for a brace that is neither."""
    pieces: list[str | Field] = []
    for match in PIECE.finditer(template):
        piece = match[0]
        field = FIELD.fullmatch(piece)
        if field is not None:
            pieces.append(Field(cast(Name, field[1]), None if field[2] is None else int(field[2])))
        elif piece in ("{{", "}}"):
            pieces.append(piece[0])
        elif piece in ("{", "}"):
            raise UserError(f"a single {piece!r} stands for nothing; write {piece * 2} for a brace")
        elif piece[0] == "{":
            raise UserError(_unknown_field(piece))
        else:
            pieces.append(piece)
    return pieces


def _unknown_field(piece: str) -> str:
    word = piece[1:-1]
    near = difflib.get_close_matches(word.strip().lower(), ["subject", "class", "subject_2", "class_2"], n=1)
    hint = f"did you mean {{{near[0]}}}?" if near else "known are {subject} and {class}."
    return f"{piece} is unknown; {hint} For braces as text write {{{piece}}}"


def template_problem(template: str, num_subjects: int | None = None) -> str | None:
    """Return what is wrong with a template, in words; None for a sound one.

    num_subjects: how many there are; None: not known yet, and any number passes.
    """
    try:
        parsed = fields(template)
    except UserError as error:
        return str(error)
    for field in parsed:
        if num_subjects is not None and not 0 <= field.subject(own=0) < num_subjects:
            known = ["{subject}", *(f"{{subject_{number}}}" for number in range(2, num_subjects + 1))][:num_subjects]
            return f"there is no {field}" + (f"; what is learned is {', '.join(known)}" if known else " here")
    return None


def check_template(template: str, num_subjects: int | None = None) -> None:
    """Raise UserError, with the template, for one that is not sound."""
    if problem := template_problem(template, num_subjects):
        raise UserError(f"prompt {template!r}: {problem}")


def fields(template: str) -> list[Field]:
    """Return the fields of a template, in their order. Raises UserError as `parse_template` does."""
    return [piece for piece in parse_template(template) if isinstance(piece, Field)]


def has_field(template: str, name: Name | None = None) -> bool:
    """Return whether a template has {subject} or {class}, with or without a number; of `name` alone, if given."""
    return any(name in (None, field.name) for field in fields(template))


def subject_phrase(subject: Named) -> str:
    """Return the text that replaces {subject}: identifier and class noun; a style has no class noun."""
    return f"{subject.identifier} {subject.class_noun}".strip()


def fill_prompt(template: str, subjects: Sequence[Named], own: int = 0) -> str:
    """Return a prompt as a model gets it.

    own: number, from 0, of the subject that a field without a number is of. Raises UserError for an unknown field.
    """
    return _filled(template, [{"subject": subject_phrase(each), "class": each.class_noun} for each in subjects], own)


def plain_prompt(template: str, class_nouns: Sequence[str], own: int = 0) -> str:
    """Return the same without identifiers, which mean nothing to CLIP or to an untouched base."""
    return _filled(template, [{"subject": noun, "class": noun} for noun in class_nouns], own)


def _filled(template: str, values: Sequence[dict[Name, str]], own: int) -> str:
    """Return a template with its fields replaced by `values`, of each subject by the field's name."""
    check_template(template, len(values))
    pieces = parse_template(template)
    return "".join(piece if isinstance(piece, str) else values[piece.subject(own)][piece.name] for piece in pieces)


def without_identifiers(prompt: str, subjects: Sequence[Named]) -> str:
    """Return a prompt with the class noun alone wherever an identifier is spelled out, with or without its noun."""
    for subject in subjects:
        prompt = replace_words(prompt, subject_phrase(subject), subject.class_noun)
        prompt = replace_words(prompt, subject.identifier, subject.class_noun)
    return prompt


@dataclass(frozen=True)
class Prompt:
    """Hold a validation prompt, which is sampled into a row of images.

    kind: decides what the images are measured for; {subject} makes it "subject", {class} alone "class". filled: as the
    model gets it. text: without identifiers, as CLIP reads it. subjects: numbers, from 0, of those whose photos the
    images are compared with.
    """

    kind: Kind
    filled: str
    text: str
    subjects: tuple[int, ...] = ()


def expand(templates: Sequence[str], subjects: Sequence[Named]) -> list[Prompt]:
    """Return a prompt for each subject of a template without numbers, one of a template that has them or no field.

    Subjects of one class share the prompt of their class. A template that spells a subject out ("sks dog", as other
    trainers want it) is of that subject.
    """
    return [prompt for template in templates for prompt in _expand(template, subjects)]


def _expand(template: str, subjects: Sequence[Named]) -> Iterator[Prompt]:
    parsed = fields(template)
    names = {field.name for field in parsed}
    if "subject" not in names and (spelled := _spelled_out(fill_prompt(template, subjects), subjects, bool(names))):
        filled = fill_prompt(template, subjects)
        yield Prompt("subject", filled, without_identifiers(filled, subjects), spelled)
        return
    kind: Kind = "subject" if "subject" in names else "class" if names else "other"
    if names and all(field.number is None for field in parsed):
        owners: dict[str, list[int]] = {}
        for own in range(len(subjects)):
            owners.setdefault(fill_prompt(template, subjects, own), []).append(own)
    else:
        owners = {fill_prompt(template, subjects): sorted({each.subject(0) for each in parsed if each.name == kind})}
    nouns = [subject.class_noun for subject in subjects]
    for filled, named in owners.items():
        yield Prompt(kind, filled, plain_prompt(template, nouns, named[0] if named else 0), tuple(named))


def _spelled_out(prompt: str, subjects: Sequence[Named], has_class: bool) -> tuple[int, ...]:
    """Return the numbers of the subjects that a prompt names by their identifiers.

    has_class: the prompt asks for {class}; an identifier that is also a word of it ("photo") is then none alone.
    """
    names = [subject_phrase(each) if has_class else each.identifier for each in subjects]
    return tuple(number for number, name in enumerate(names) if has_words(prompt, name))


def examples(num_subjects: int) -> str:
    """Return prompts to try a model with, quoted for a shell: a subject, and of several the first two together."""
    together = ' "a photo of {subject} and {subject_2}"' if num_subjects > 1 else ""
    return '"a photo of {subject} on the beach"' + together
