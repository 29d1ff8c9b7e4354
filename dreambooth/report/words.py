"""What a run came to, in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord

# A factor of the quality, and what to say of a step that has more of it, or less, than another.
FACTORS = (
    ("fidelity", "is nearer to the subject", "is farther from the subject"),
    ("obedience", "follows prompts better", "follows prompts worse"),
    ("kept", "kept more of the class", "kept less of the class"),
)
NOTICEABLE = 0.005  # differences that two decimals do not show are not worth a word


@dataclass(frozen=True)
class Verdict:
    """Which step is the best, and why: a sentence in two halves, and the validations that it weighs."""

    headline: str
    reason: str
    weighed: Sequence[ValidationRecord] = ()


def verdict(validation_log: ValidationLog, last_step: int) -> Verdict:
    """The best step beside the last one; plain words where there is none. last_step: how far the run was trained."""
    best, judged = validation_log.best, [entry for entry in validation_log.entries if entry.quality is not None]
    if best is not None:
        headline = f"Step {best.step} of {last_step} is the best"
        weighed = [best] if best is judged[-1] else [best, judged[-1]]
        return Verdict(headline, _reason(best, judged[-1], last_step), weighed)
    if judged and judged[-1].step > 0:
        last = judged[-1]
        return Verdict("No step is better than the base", f"the quality at step {last.step} is {_value(last)}.", [last])
    if any(entry.scores for entry in validation_log.entries):
        return Verdict("No best step", "it takes two validations and prompts with {subject} and with {class} to judge.")
    return Verdict("Not scored", "the run had nothing to measure its pictures with, so the eye has to judge.")


def _reason(best: ValidationRecord, last: ValidationRecord, last_step: int) -> str:
    if best.step == last.step:
        return f"its quality is {_value(best)}, and no step before it has more."
    where = "at the last step" if last.step == last_step else f"at step {last.step}, the last one judged"
    return f"its quality is {_value(best)}, against {_value(last)} {where}, which {difference(last, best)}."


def _value(entry: ValidationRecord) -> str:
    assert entry.quality is not None
    return f"{entry.quality.value:.2f}"


def difference(entry: ValidationRecord, other: ValidationRecord) -> str:
    """What `entry` does better than `other`, and what worse."""
    by = {name: getattr(entry.quality, name) - getattr(other.quality, name) for name, _, _ in FACTORS}
    gains = [more for name, more, _ in FACTORS if by[name] > NOTICEABLE]
    losses = [less for name, _, less in FACTORS if by[name] < -NOTICEABLE]
    return " but ".join(_joined(part) for part in (gains, losses) if part) or "does nothing better"


def _joined(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def duration(seconds: float) -> str:
    """9.5 s, 2 min 11 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(mib: float) -> str:
    """754 MiB, 20.3 GiB."""
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"
