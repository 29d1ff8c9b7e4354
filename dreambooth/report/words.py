"""Sentences about the outcome of a run."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.config import Config
from dreambooth.home_folder import without_home
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord
from dreambooth.metrics.verdict import TRAIN_LONGER, Verdict
from dreambooth.prompts import examples

# A factor of the quality, and what to say of a step that has more of it, or less, than another.
FACTORS = (
    ("fidelity", "is nearer to the subject", "is farther from the subject"),
    ("prompt_fidelity", "follows prompts better", "follows prompts worse"),
    ("prior_preservation", "kept more of the class", "kept less of the class"),
)
NOTICEABLE = 0.005  # differences that two decimals do not show are not worth a word


@dataclass(frozen=True)
class Choice:
    """Say which step is kept and why, in a sentence of two halves, with the validations that it weighs."""

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


@dataclass(frozen=True)
class NextStep:
    """Hold what to do after a run, and the command that does it where one does."""

    text: str
    command: str = ""


def next_steps(
    folder: Path, config: Config, verdict: Verdict, model_step: int | None, last_step: int
) -> list[NextStep]:
    """Return what to do with a run, the most useful first. model_step: of the weights in model/; None: none yet."""
    resume = ["python", "train.py", _path_argument(folder / "config.yaml")]
    if folder != Path(config.run.dir) / config.run.name:
        moved = [f"run.dir={folder.parent.as_posix()}", f"run.name={folder.name}"]
        resume += map(shlex.quote, moved)
    if model_step is None:
        text = "The run has not ended, and there is no model yet. Go on from where it stopped:"
        return [NextStep(text, " ".join(resume))]
    steps = []
    if verdict.outcome != "learned":
        steps.append(NextStep(f"{sentence(verdict.advice)}."))
    if verdict.advice == TRAIN_LONGER:
        longer = [*resume, f"train.max_steps={2 * last_step}"]
        if last_step < config.train.max_steps:  # validate.patience had ended it, and would again
            longer.append("validate.patience=0")
        steps.append(NextStep("Train twice as long, from where it ended:", " ".join(longer)))
    sample = f"python sample.py {_path_argument(folder)} {examples(len(config.subjects))}"
    return [*steps, NextStep("Draw with it:", sample)]


def _path_argument(path: Path) -> str:
    """Return a path for a shell, with `~/` for the home folder: outside of the quotes, where a shell expands it."""
    whole = path.as_posix()
    short = without_home(whole)
    return shlex.quote(whole) if short == whole else "~/" + shlex.quote(short.removeprefix("~/"))


def tone(verdict: Verdict) -> str:
    """Return how good a verdict is, in a word for the page's style: good, fair, bad or open."""
    if verdict.outcome in ("learned", "partly learned"):
        return "good" if verdict.outcome == "learned" else "fair"
    return "open" if verdict.outcome.startswith("not ") and verdict.outcome != "not learned" else "bad"


def sentence(text: str) -> str:
    """Return a text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def duration(seconds: float) -> str:
    """Return a duration as text: 9.5 s, 2 min 11 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(mib: float) -> str:
    """Return an amount of memory as text: 754 MiB, 20.3 GiB."""
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"
