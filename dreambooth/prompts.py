"""Templates of prompts: {subject} stands for a subject's identifier and class noun, {class} for its class noun alone.

Of several subjects {subject_2} and {class_2} are the second's, and so on, so that a prompt can join them. Without a
number they are of the subject whose template it is (its own prompt, a caption of its pictures), else of the first.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from dreambooth.errors import UserError

FIELD = re.compile(r"\{(subject|class)(?:_(\d+))?\}")
Kind = Literal["subject", "class", "other"]


class Named(Protocol):
    """What stands for a subject in prompts."""

    @property
    def identifier(self) -> str: ...

    @property
    def class_noun(self) -> str: ...


def subject_phrase(subject: Named) -> str:
    """What {subject} stands for."""
    return f"{subject.identifier} {subject.class_noun}"


def fill_prompt(template: str, subjects: Sequence[Named], own: int = 0) -> str:
    """A prompt as a model gets it; braces that are no field stay as they are.

    own: number, from 0, of the subject that a field without a number is of. Raises UserError for a field of no subject.
    """
    return _filled(template, [{"subject": subject_phrase(each), "class": each.class_noun} for each in subjects], own)


def plain_prompt(template: str, class_nouns: Sequence[str], own: int = 0) -> str:
    """The same without identifiers, which mean nothing to CLIP or to an untouched base."""
    return _filled(template, [{"subject": noun, "class": noun} for noun in class_nouns], own)


def _filled(template: str, values: Sequence[dict[str, str]], own: int) -> str:
    """values: by the field's name, of each subject."""
    if unknown := unknown_fields(template, len(values)):
        known = ", ".join(["{subject}", *(f"{{subject_{number}}}" for number in range(2, len(values) + 1))])
        raise UserError(f"prompt {template!r}: there is no {unknown[0]}; what has been learned is {known}")
    return FIELD.sub(lambda match: values[_number(match, own)][match[1]], template)


def unknown_fields(template: str, num_subjects: int) -> list[str]:
    """Fields of a template whose number no subject has."""
    return [match[0] for match in FIELD.finditer(template) if not 0 <= _number(match, own=0) < num_subjects]


def _number(match: re.Match[str], own: int) -> int:
    return own if match[2] is None else int(match[2]) - 1


def has_field(template: str, name: Literal["subject", "class"] | None = None) -> bool:
    """Whether a template has {subject} or {class}, with or without a number; of `name` alone, if given."""
    return any(name in (None, match[1]) for match in FIELD.finditer(template))


@dataclass(frozen=True)
class Prompt:
    """A validation prompt, a row of pictures. kind: what these are measured for: {subject} makes it one of the subject,
    {class} alone one of the class. filled: as the model gets it. text: without identifiers, as CLIP reads it. subjects:
    numbers, from 0, of those whose photos the pictures are compared with.
    """

    kind: Kind
    filled: str
    text: str
    subjects: tuple[int, ...] = ()


def expand(templates: Sequence[str], subjects: Sequence[Named]) -> list[Prompt]:
    """A prompt for each subject of a template without numbers, one of a template that has them or names no subject.

    Subjects of one class share the prompt of their class.
    """
    return [prompt for template in templates for prompt in _expand(template, subjects)]


def _expand(template: str, subjects: Sequence[Named]) -> Iterator[Prompt]:
    kind: Kind = "subject" if has_field(template, "subject") else "class" if has_field(template) else "other"
    fields = [match for match in FIELD.finditer(template) if match[1] == kind]
    if fields and all(match[2] is None for match in FIELD.finditer(template)):
        owners: dict[str, list[int]] = {}
        for own in range(len(subjects)):
            owners.setdefault(fill_prompt(template, subjects, own), []).append(own)
    else:
        owners = {fill_prompt(template, subjects): sorted({_number(match, own=0) for match in fields})}
    nouns = [subject.class_noun for subject in subjects]
    for filled, named in owners.items():
        yield Prompt(kind, filled, plain_prompt(template, nouns, named[0] if named else 0), tuple(named))


def examples(num_subjects: int) -> str:
    """What to try a model with, as one types it: a subject, and of several the first two together."""
    together = ' "a photo of {subject} and {subject_2}"' if num_subjects > 1 else ""
    return '"a photo of {subject} on the beach"' + together
