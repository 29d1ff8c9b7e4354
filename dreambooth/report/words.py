"""Sentences about the outcome of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord

# A factor of the quality, and what to say of a step that has more of it, or less, than another.
FACTORS = (
    ("fidelity", "is nearer to the subject", "is farther from the subject"),
    ("prompt_fidelity", "follows prompts better", "follows prompts worse"),
    ("prior_preservation", "kept more of the class", "kept less of the class"),
)
NOTICEABLE = 0.005  # differences that two decimals do not show are not worth a word


@dataclass(frozen=True)
class Choice:
    """Which step is kept and why: a sentence in two halves, and the validations that it weighs."""

    headline: str
    reason: str
    weighed: Sequence[ValidationRecord] = ()


def choice(validation_log: ValidationLog, last_step: int) -> Choice | None:
    """Return the kept step beside the one that it was weighed against; None where none has been judged.

    last_step: how far the run was trained.
    """
    kept, highest = validation_log.best, validation_log.highest
    judged = [entry for entry in validation_log.entries if entry.quality is not None and entry.step > 0]
    if not judged:
        return None
    if kept is None or highest is None:
        reason = f"the quality at step {judged[-1].step} is {_value(judged[-1])}."
        return Choice("No step is better than the base", reason, judged[-1:])
    headline = f"Step {kept.step} of {last_step} is kept"
    if kept.step != highest.step:
        reason = f"its quality is {_value(kept)}, not clearly less than the {_value(highest)} of step {highest.step}"
        return Choice(headline, f"{reason}; which of them is better is not decided.", [highest, kept])
    if kept.step == judged[-1].step:
        return Choice(headline, f"its quality is {_value(kept)}, and no step before it has more.", [kept])
    return Choice(headline, _reason(kept, judged[-1], last_step), [kept, judged[-1]])


def _reason(best: ValidationRecord, last: ValidationRecord, last_step: int) -> str:
    where = "at the last step" if last.step == last_step else f"at step {last.step}, the last one judged"
    return f"its quality is {_value(best)}, against {_value(last)} {where}, which {difference(last, best)}."


def _value(entry: ValidationRecord) -> str:
    assert entry.quality is not None
    return f"{entry.quality.value:.2f}"


def difference(entry: ValidationRecord, other: ValidationRecord) -> str:
    """Say what `entry` does better than `other`, and what worse."""
    by = {name: getattr(entry.quality, name) - getattr(other.quality, name) for name, _, _ in FACTORS}
    gains = [more for name, more, _ in FACTORS if by[name] > NOTICEABLE]
    losses = [less for name, _, less in FACTORS if by[name] < -NOTICEABLE]
    return " but ".join(_joined(part) for part in (gains, losses) if part) or "does nothing better"


def _joined(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def duration(seconds: float) -> str:
    """Return a duration as text: 9.5 s, 2 min 11 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(mib: float) -> str:
    """Return an amount of memory as text: 754 MiB, 20.3 GiB."""
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"
