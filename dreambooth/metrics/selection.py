"""Which step of a run is the best, by a rule that no single number can cheat.

    quality = fidelity * obedience * kept                                          each in [0, 1]

    fidelity  = way(dino;   from dino_0, to real)               is it the subject, or just another of its class?
    obedience = way(clip_t; from ignored, to clip_t_0)          does it follow the prompt as the base did?
    kept      = (1 - way(pres; from pres_0, to real)) * min(1, div / div_0) * min(1, div_0 / drift)
                                                                has the class stayed what it was?

    way(x; from a, to b) = (x - a) / (b - a), cut off at 0 and 1

Every anchor is measured, none is set: `dino_0`, `pres_0`, `clip_t_0`, `div_0` on the untouched base's own pictures,
`real` among the subject's photos, `ignored` on the base's class pictures under the subject prompts' texts, which is
what a model that has stopped listening would score. So the number means the same for any model, encoder and subject: 0
is the base itself (not the subject), 1 would be perfect pictures of the subject from a model that has lost nothing.

An overfitted model gains fidelity, but loses obedience (it draws the photos again) and kept (the class looks like the
subject: pres, or like one thing: div). Drift counts only where a class picture is farther from the base's of the same
seed than two of the base's are from each other: noise, not another dog. No factor exceeds 1: none makes up for another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIN_SPAN = 5e-3  # anchors nearer to each other than this cannot be measured between


@dataclass(frozen=True)
class Anchors:
    """What the rule measures between; all from the untouched base and the photos. None: not measured.

    dino: of `clip_i`, where there is no DINO.
    """

    real: float
    dino: float
    pres: float
    div: float | None = None
    clip_t: float | None = None
    clip_t_ignored: float | None = None


@dataclass(frozen=True)
class Quality:
    """quality = fidelity * obedience * kept."""

    fidelity: float
    obedience: float
    kept: float

    @property
    def value(self) -> float:
        return self.fidelity * self.obedience * self.kept


def way(value: float, start: float, end: float) -> float:
    """How far from `start` to `end` a value has come: 0 at the start and before it, 1 at the end and beyond."""
    if end - start < MIN_SPAN:
        return 1.0 if value >= end else 0.0
    return min(1.0, max(0.0, (value - start) / (end - start)))


def quality(means: Mapping[str, float], anchors: Anchors) -> Quality:
    """The rule above, on mean scores (`dino` or else `clip_i`; `clip_t`, `pres`, `div`, `drift` where measured).

    A prompt set that asks for nothing beyond the class leaves `ignored` and `clip_t_0` equal; there obedience is
    min(1, clip_t / clip_t_0).
    """
    fidelity = way(means["dino"] if "dino" in means else means["clip_i"], anchors.dino, anchors.real)
    return Quality(fidelity, _obedience(means, anchors), _kept(means, anchors))


def _obedience(means: Mapping[str, float], anchors: Anchors) -> float:
    if anchors.clip_t is None or anchors.clip_t_ignored is None or "clip_t" not in means:
        return 1.0
    if anchors.clip_t - anchors.clip_t_ignored < MIN_SPAN:
        return min(1.0, max(0.0, means["clip_t"] / anchors.clip_t))
    return way(means["clip_t"], anchors.clip_t_ignored, anchors.clip_t)


def _kept(means: Mapping[str, float], anchors: Anchors) -> float:
    kept = 1 - way(means["pres"], anchors.pres, anchors.real)
    if anchors.div and "div" in means:
        kept *= min(1.0, means["div"] / anchors.div)
        kept *= min(1.0, anchors.div / means["drift"]) if means.get("drift") else 1.0
    return kept


def best(qualities: Mapping[int, float]) -> int | None:
    """The step with the highest quality, the earlier one of equals; None without any above 0.

    qualities: by step. Step 0 is the base, which has learned nothing.
    """
    trained = {step: value for step, value in sorted(qualities.items()) if step > 0 and value > 0}
    return max(trained, key=lambda step: trained[step]) if trained else None


def is_exhausted(qualities: Mapping[int, float], patience: int) -> bool:
    """Whether the last `patience` validations brought nothing better (0: never)."""
    best_step = best(qualities)
    return patience > 0 and best_step is not None and _num_after(qualities, best_step) >= patience


def _num_after(qualities: Mapping[int, float], step: int) -> int:
    return sum(later > step for later in qualities)


def means_of(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each measure that has any numbers."""
    return {name: sum(numbers) / len(numbers) for name, numbers in scores.items() if numbers}
