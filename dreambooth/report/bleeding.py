"""Who bleeds into whom: how alike the images of each subject's prompts are to every subject of the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from dreambooth.metrics.log_names import LIKENESS
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord
from dreambooth.metrics.validation_scores import of_prompts
from dreambooth.prompts import Prompt


@dataclass(frozen=True)
class BleedCell:
    """Hold a mean likeness and that of the base's images, as texts. is_own: the prompts name this subject."""

    mean: str
    base: str
    is_own: bool


@dataclass(frozen=True)
class BleedRow:
    """Hold prompts that name the same subjects, or their class, and the likeness to each subject of the run."""

    prompts: str
    cells: Sequence[BleedCell]


def bleed_rows(
    validation_log: ValidationLog, prompts: Sequence[Prompt], names: Sequence[str], nouns: Sequence[str], step: int
) -> list[BleedRow]:
    """Return the table's rows; none for a run of one subject, or of before this was measured.

    prompts: all of the validation's. names, nouns: what the subjects and their classes are called.
    """
    base = validation_log.entries[0] if validation_log.entries else None
    found = next((entry for entry in validation_log.entries if entry.step == step), None)
    if base is None or found is None:
        return []
    rows = []
    for kind, called in (("subject", names), ("class", nouns)):
        of_kind = [prompt for prompt in prompts if prompt.kind == kind]
        for subjects in dict.fromkeys(prompt.subjects for prompt in of_kind):
            cells = [_cell(kind, number, subjects, of_kind, (found, base)) for number in range(len(names))]
            if all(cells):
                rows.append(
                    BleedRow(" and ".join(called[number] for number in subjects), [each for each in cells if each])
                )
    return rows


def _cell(
    kind: str,
    number: int,
    subjects: tuple[int, ...],
    prompts: Sequence[Prompt],
    entries: tuple[ValidationRecord, ValidationRecord],
) -> BleedCell | None:
    """Return the likeness to one subject; None where it was not measured. entries: of the step, and of the base."""
    name = LIKENESS[kind].format(number + 1)
    numbers = [of_prompts(entry.scores.get(name, []), prompts, subjects) for entry in entries]
    if not all(numbers):
        return None
    mean, base = (f"{fmean(own):.2f}" for own in numbers)
    return BleedCell(mean, base, kind == "subject" and number in subjects)
