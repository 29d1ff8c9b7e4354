"""The models of an evaluation, what they have learned, and the settings to sample them all with.

A row of the table is a MODEL as it was typed; `{name}` in it stands for the subject's name, so that one row can have
a run for each subject.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dreambooth.errors import UserError
from dreambooth.evaluation.subjects import Subject
from dreambooth.generation.models.loading import Model, load_model
from dreambooth.generation.models.location import check_is_there, find_card
from dreambooth.generation.models.reference import ModelRef
from dreambooth.prompts import subject_phrase
from dreambooth.subject_info import LearnedSubject, SubjectInfo

NAME = "{name}"
Cards = Mapping[str, SubjectInfo | None]  # by model; None: a plain base
# Fields of a card on its run's own sampling, and the options that override them.
OPTIONS = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance-scale",
    "scheduler": "--scheduler",
    "resolution": "--size",
}


@dataclass
class Loader:
    """Load one model at a time and keep the last, so that a repeated request loads nothing.

    options: how every model is loaded; its name is filled in. revision and variant are for plain models: an adapter's
    base is loaded as its card says.
    """

    options: ModelRef
    device: str
    _last: Model | None = None

    def __call__(self, model: str) -> Model:
        if self._last is None or self._last.name != model:
            self._last = None  # free its memory before the next one is loaded
            self._last = load_model(self.ref(model), self.device)
        return self._last

    def ref(self, model: str) -> ModelRef:
        """Return the options that load a model."""
        options = self.options if find_card(model) is None else replace(self.options, revision=None, variant=None)
        return replace(options, name=model)


def model_of(row: str, subject: str) -> str:
    """Return the MODEL of a row for a subject."""
    return row.replace(NAME, subject)


def read_cards(models: Iterable[str], load: Loader) -> dict[str, SubjectInfo | None]:
    """Return what each model has learned. Raises ModelError or UserError for one that is not there.

    A whole folder is not loaded for this, so that a typo in the last of thirty is reported in the first seconds.
    """
    models = list(dict.fromkeys(models))
    for model in models:
        check_is_there(model)
        if not _is_whole(Path(model)):
            load(model)  # loads a hub id, or raises
    return {model: find_card(model) for model in models}


def _is_whole(path: Path) -> bool:
    return path.is_file() or any((path / part / "model_index.json").is_file() for part in (".", "model"))


def class_noun_of(subject: Subject, cards: Cards) -> str:
    """Return the subject's class noun, from its data set or else the models' cards. Raises UserError without one."""
    if subject.class_noun is not None:
        return subject.class_noun
    learned = [each for card in cards.values() if card is not None for each in card.subjects]
    nouns = sorted({each.class_noun for each in learned} - {""})
    if not nouns:
        raise UserError(
            f"{subject.name}: unknown class; neither its folder nor {', '.join(cards)} has it: name --class-noun"
        )
    if len(nouns) > 1:
        raise UserError(f"{subject.name}: the models call it {' and '.join(map(repr, nouns))}: name one --class-noun")
    return nouns[0]


def learned_by(card: SubjectInfo, class_noun: str) -> LearnedSubject:
    """Return the subject that a model has learned; of several, the one of this class.

    Raises UserError unless there is exactly one.
    """
    if len(card.subjects) == 1:
        return card.subjects[0]
    own = [learned for learned in card.subjects if learned.class_noun == class_noun]
    if len(own) != 1:
        names = ", ".join(map(subject_phrase, card.subjects))
        raise UserError(
            f"--class-noun: a model has learned {names}; {len(own)} of them are of the class {class_noun!r}, by which "
            "`evaluate` tells them apart"
        )
    return own[0]


def reference_card(cards: Cards, given: Sequence[str]) -> SubjectInfo | None:
    """Return a card whose steps, guidance, scheduler and resolution are those of all models; None if none has a card.

    given: the fields of OPTIONS that the user has set. Raises UserError where the models differ in another.
    """
    known = [card for card in cards.values() if card is not None]
    for field, option in OPTIONS.items():
        values = sorted({getattr(card, field) for card in known})
        if len(values) > 1 and field not in given:
            each = ", ".join(map(str, values))
            raise UserError(f"{option}: the runs sampled with {each}; set one for all, or rows cannot be compared")
    return known[0] if known else None


def common_resolution(models: Iterable[str], load: Loader) -> int:
    """Return the side of the images of plain bases, pixels. Raises UserError where they differ."""
    sides = sorted({load(model).resolution for model in dict.fromkeys(models)})
    if len(sides) > 1:
        raise UserError(f"--size: the models make {' and '.join(map(str, sides))} pixels; set one size for all")
    return sides[0]
