"""The record of a run's validations, `logs/scores.jsonl`: one line for each, one number per image and measure.

The best step, and whether to continue, follow from this record alone; so a resumed run decides as an uninterrupted one
does.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dreambooth.errors import UserError
from dreambooth.files import whole_lines, write_text
from dreambooth.metrics import selection
from dreambooth.metrics.selection import Anchors, Quality
from dreambooth.metrics.verdict import Verdict, judge

# Names in the file, which stay as earlier versions wrote them, and the fields of `Quality`.
STORED_FACTORS = {"fidelity": "fidelity", "obedience": "prompt_fidelity", "kept": "prior_preservation"}


@dataclass(frozen=True)
class ValidationRecord:
    """Hold one validation. That of step 0, the untouched base, also has the anchors, and which encoders measured."""

    step: int
    loss: float
    scores: dict[str, list[float]]  # one number per image
    quality: Quality | None = None
    anchors: Anchors | None = None
    measured_by: dict[str, str] | None = None

    def metrics(self) -> dict[str, float]:
        """Return means by log name: eval/dino ..., eval/quality, eval/loss."""
        means = selection.means_of(self.scores)
        if self.quality is not None:
            means["quality"] = self.quality.value
        return {f"eval/{name}": value for name, value in {**means, "loss": self.loss}.items()}


class ValidationLog:
    """Hold the validations of a run up to a step; what is added is written to the file at once.

    The file is read back as far as it is whole: a line torn by a kill, and lines after `last_step`, are dropped.
    Raises UserError for a line that cannot be read.
    """

    def __init__(self, path: Path, last_step: int | None = None) -> None:
        self.path = path
        entries = _read_all(path)
        self.entries = [entry for entry in entries if last_step is None or entry.step <= last_step]

    def add(self, entry: ValidationRecord) -> None:
        """Add an entry; the file is replaced as a whole, so it is never torn."""
        self.entries.append(entry)
        self._replace()

    def cut(self) -> None:
        """Cut the file down to the entries of this log."""
        if self.path.is_file():
            self._replace()

    def _replace(self) -> None:
        write_text(self.path, "".join(_write(each) + "\n" for each in self.entries))

    def has(self, step: int) -> bool:
        return any(entry.step == step for entry in self.entries)

    @property
    def anchors(self) -> Anchors | None:
        """Return the ends of the rule's ranges; None where the untouched base was not scored."""
        first = self.entries[0] if self.entries else None
        if first is None or first.anchors is None or (first.measured_by or {}).get("div") != "LPIPS":
            return None if first is None else first.anchors
        return replace(first.anchors, div=None)  # an earlier version's, which no cosine can be compared with

    @property
    def qualities(self) -> dict[int, float]:
        """Return the quality of each step that has one."""
        return {entry.step: entry.quality.value for entry in self.entries if entry.quality is not None}

    @property
    def best(self) -> ValidationRecord | None:
        """Return the entry of the step to keep, by the rule of `selection`."""
        step = selection.choose(self.entries, self.anchors)
        return next((entry for entry in self.entries if entry.step == step), None)

    @property
    def highest(self) -> ValidationRecord | None:
        """Return the entry with the highest quality, whether or not it is the one to keep."""
        step = selection.highest(self.qualities)
        return next((entry for entry in self.entries if entry.step == step), None)

    def verdict_on(self, step: int | None = None) -> Verdict:
        """Return the verdict on the weights of a step; None: of the step to keep."""
        return judge(self.entries, self.anchors, step)

    def has_drifted(self, limit: float) -> bool:
        """Return whether any validation's class images differ from the untouched base's by more than this."""
        return any(selection.means_of(entry.scores).get("drift", 0.0) > limit for entry in self.entries)

    def is_exhausted(self, patience: int) -> bool:
        """Return whether the last `patience` validations brought nothing better; 0: never."""
        return selection.is_exhausted(self.qualities, patience)


def _write(entry: ValidationRecord) -> str:
    fields = {name: value for name, value in asdict(entry).items() if value is not None}
    if entry.quality is not None:
        quality = {stored: getattr(entry.quality, name) for stored, name in STORED_FACTORS.items()}
        fields["quality"] = {**quality, "value": entry.quality.value}
    return json.dumps(fields)


def _read_all(path: Path) -> list[ValidationRecord]:
    try:
        return [_read(line) for line in whole_lines(path)]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: a line cannot be read ({error!r}); mend it or move the file away") from error


def _read(line: str) -> ValidationRecord:
    fields: dict[str, Any] = json.loads(line)
    if "quality" in fields:
        fields["quality"] = Quality(**{name: fields["quality"][stored] for stored, name in STORED_FACTORS.items()})
    if "anchors" in fields:
        fields["anchors"] = Anchors(**fields["anchors"])
    return ValidationRecord(**fields)
