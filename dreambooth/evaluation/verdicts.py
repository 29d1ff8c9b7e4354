"""The verdict on each model of an evaluation: its scores between those of the untouched base and the photos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dreambooth.evaluation.scoring import Scored
from dreambooth.metrics.selection import Anchors, factor_errors, means_of, quality
from dreambooth.metrics.verdict import Verdict, judge_quality


@dataclass(frozen=True)
class ModelVerdict:
    """Hold the verdict on a model, by the name of its row, and one subject."""

    model: str
    subject: str
    verdict: Verdict


def verdicts(
    scored: Sequence[Scored],
    real: Mapping[str, Mapping[str, float]],
    base: str | None,
    ignored: Mapping[str, float | None],
) -> list[ModelVerdict]:
    """Return the verdict on each model but the base, for each subject; none if the base is not among the rows.

    real: by subject and measure, of its photos. ignored: by subject, CLIP-T of a model that ignores prompts.
    """
    found = []
    for subject in real:
        rows = {name: _scores(scored, name, subject) for name in dict.fromkeys(one.image.row for one in scored)}
        anchors = _anchors(rows.get(base or "", {}), real[subject], ignored.get(subject))
        for name, scores in rows.items():
            if anchors is not None and name != base:
                judged = judge_quality(quality(means_of(scores), anchors), factor_errors(scores, anchors))
                found.append(ModelVerdict(name, subject, judged))
    return found


def _scores(scored: Sequence[Scored], row: str, subject: str) -> dict[str, list[float]]:
    """Return the numbers of a row's images of a subject, under the names of a validation: its div is of the class."""
    found: dict[str, list[float]] = {}
    for one in scored:
        if (one.image.row, one.image.subject) == (row, subject):
            for name, number in one.scores.items():
                if name != "div":
                    found.setdefault("div" if name == "class_div" else name, []).append(number)
    return found


def _anchors(base: Mapping[str, Sequence[float]], real: Mapping[str, float], ignored: float | None) -> Anchors | None:
    """Return the anchors of quality; None where one of them was not measured."""
    means = means_of(base)
    fidelity = "dino" if "dino" in means else "clip_i"
    if fidelity not in means or "pres" not in means:
        return None
    return Anchors(
        real=real.get(fidelity, 1.0),  # one photo is as like itself as can be
        dino=means[fidelity],
        pres=means["pres"],
        div=means.get("div"),
        clip_t=means.get("clip_t"),
        clip_t_ignored=ignored,
    )
