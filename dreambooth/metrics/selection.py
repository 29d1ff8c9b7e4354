"""Choose the step of a run to keep, by a quality that no single score can inflate, and within its statistical error.

    quality = fidelity * prompt_fidelity * prior_preservation                      each in [0, 1]

    fidelity           = f(dino;   from dino_0, to real)        is it the subject, or just another of its class?
    prompt_fidelity    = f(clip_t; from ignored, to clip_t_0)   does it follow the prompt as the base did?
    prior_preservation = (1 - f(pres; from pres_0, to real)) * min(1, div / div_0) * min(1, div_0 / drift)
                                                                is the class what it was?

    f(x; from a, to b) = (x - a) / (b - a), clipped to 0..1     `fraction_of_range`

Every anchor is measured, none is set: `dino_0`, `pres_0`, `clip_t_0`, `div_0` on the untouched base's own images,
`real` among the subject's photos; `ignored` is CLIP-T of the base's class images against the subject prompts, the
score of a model that ignores its prompts. So the number means the same for any model, encoder and subject: 0
is the base itself (not the subject), 1 would be perfect images of the subject from a model that has lost nothing.

An overfitted model gains fidelity, but loses prompt fidelity (it draws the photos again) and prior preservation (the
class looks like the subject: pres, or like one thing: div). Drift counts only where a class
image is farther from the base's of the same seed than two of the base's are from each other: noise, not another dog.
No factor exceeds 1: none makes up for another.

Kept is the last step whose quality is not clearly less than the highest: by no more than one standard error of the
difference on the same prompts and noise. Of six images a quality has a standard error of .03 to .07, more than steps
differ by near the end of a run. There the highest is a matter of chance, and later steps have learned more that no
score here shows. Validations of a recorded demo (tests/recorded_runs.json) with three images a prompt, resampled a
hundred times: the highest quality kept cats whose second colour is right in .83 of the images, this rule in .91, the
last step .92. Where training runs too long, the last step loses: over `first-map` of lab/results.csv, read as runs
with validations at 120, 240 and 480 steps, this rule's ground-truth score is .18 +- .10 above the last step's, and
.01 +- .05 below that of the highest quality, which is within noise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

MIN_SPAN = 5e-3  # a range smaller than this cannot be measured in
CLEAR = 1.0  # standard errors that a difference of qualities must exceed; at 2 an overtrained step is kept more often
IMAGE_GROUPS = (("dino", "clip_i", "clip_t"), ("pres", "div", "drift"))  # measures of the same images

Scores = Mapping[str, Sequence[float]]  # one number per image and measure
LeftOut = tuple[Sequence[str], int]  # measures, and the number of their image


@dataclass(frozen=True)
class Anchors:
    """Hold the ends of the rule's ranges, from the untouched base and the photos. None: not measured.

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
    """Hold the factors of a quality: fidelity * prompt_fidelity * prior_preservation."""

    fidelity: float
    prompt_fidelity: float
    prior_preservation: float

    @property
    def value(self) -> float:
        return self.fidelity * self.prompt_fidelity * self.prior_preservation


class Validation(Protocol):
    """Hold a validation as the choice of a step reads it."""

    @property
    def step(self) -> int: ...
    @property
    def scores(self) -> Scores: ...
    @property
    def quality(self) -> Quality | None: ...


def fraction_of_range(value: float, start: float, end: float) -> float:
    """Return how far from `start` to `end` a value has come: 0 at the start and before it, 1 at the end and beyond."""
    if end - start < MIN_SPAN:
        return 1.0 if value >= end else 0.0
    return min(1.0, max(0.0, (value - start) / (end - start)))


def quality(means: Mapping[str, float], anchors: Anchors) -> Quality:
    """Return the quality by the rule above, from mean scores.

    Those are `dino` or else `clip_i`, and `clip_t`, `pres`, `div`, `drift` where measured.

    A prompt set that asks for nothing beyond the class leaves `ignored` and `clip_t_0` equal; there prompt fidelity
    is min(1, clip_t / clip_t_0).
    """
    fidelity = fraction_of_range(means["dino"] if "dino" in means else means["clip_i"], anchors.dino, anchors.real)
    return Quality(fidelity, _prompt_fidelity(means, anchors), _prior_preservation(means, anchors))


def _prompt_fidelity(means: Mapping[str, float], anchors: Anchors) -> float:
    if anchors.clip_t is None or anchors.clip_t_ignored is None or "clip_t" not in means:
        return 1.0
    if anchors.clip_t - anchors.clip_t_ignored < MIN_SPAN:
        return min(1.0, max(0.0, means["clip_t"] / anchors.clip_t))
    return fraction_of_range(means["clip_t"], anchors.clip_t_ignored, anchors.clip_t)


def _prior_preservation(means: Mapping[str, float], anchors: Anchors) -> float:
    preserved = 1 - fraction_of_range(means["pres"], anchors.pres, anchors.real)
    if anchors.div and "div" in means:
        preserved *= min(1.0, means["div"] / anchors.div)
        preserved *= min(1.0, anchors.div / means["drift"]) if means.get("drift", 0) > 0 else 1.0
    return preserved


def highest(qualities: Mapping[int, float]) -> int | None:
    """Return the step with the highest quality, the earlier one of equals; None without any above 0.

    qualities: by step. Step 0 is the base, which has learned nothing.
    """
    trained = {step: value for step, value in sorted(qualities.items()) if step > 0 and value > 0}
    return max(trained, key=lambda step: trained[step]) if trained else None


def choose(validations: Sequence[Validation], anchors: Anchors | None) -> int | None:
    """Return the step to keep: the last one that is not clearly worse than the highest; None without any above 0."""
    judged = {each.step: each for each in validations if each.quality is not None}
    top = highest({step: each.quality.value for step, each in judged.items() if each.quality is not None})
    if top is None or anchors is None:
        return top
    return max(step for step in judged if step >= top and not is_clearly_worse(judged[step], judged[top], anchors))


def is_clearly_worse(later: Validation, best: Validation, anchors: Anchors) -> bool:
    """Return whether `later` has less quality than `best` by more than CLEAR standard errors of the difference."""
    assert later.quality is not None
    assert best.quality is not None
    loss = best.quality.value - later.quality.value
    return loss > CLEAR * standard_error(later.scores, best.scores, anchors)


def standard_error(one: Scores, other: Scores, anchors: Anchors) -> float:
    """Return the standard error of the difference of two validations' qualities, from the spread over their images.

    Both have drawn the same prompts from the same noise, so an image is left out of both at once.
    """

    def difference(without: LeftOut) -> float:
        left, right = (quality(means_of(_without(scores, *without)), anchors) for scores in (one, other))
        return left.value - right.value

    return jackknife(difference, _common(one, other))


def factor_errors(scores: Scores, anchors: Anchors) -> dict[str, float]:
    """Return the standard error of each factor of a validation's quality, by name."""

    def factor(name: str) -> float:
        return jackknife(lambda without: getattr(quality(means_of(_without(scores, *without)), anchors), name), scores)

    return {name: factor(name) for name in ("fidelity", "prompt_fidelity", "prior_preservation")}


def quality_error(scores: Scores, anchors: Anchors) -> float:
    """Return the standard error of a validation's quality, from the spread over its images."""
    return jackknife(lambda without: quality(means_of(_without(scores, *without)), anchors).value, scores)


def jackknife(value_without: Callable[[LeftOut], float], scores: Scores) -> float:
    """Return the standard error of a value that is computed from images, by leaving out one image at a time.

    Efron & Stein 1981:  se^2 = (n - 1) / n * sum_i (v_i - mean(v))^2,  v_i: the value without image i of n. Images of
    subject and of class prompts are independent, so their variances add up. A single image has no spread: 0.
    """
    variance = 0.0
    for group in IMAGE_GROUPS:
        names = [name for name in group if scores.get(name)]
        num_images = len(scores[names[0]]) if names else 0
        if num_images > 1:
            values = [value_without((names, i)) for i in range(num_images)]
            mean = sum(values) / num_images
            variance += (num_images - 1) / num_images * sum((value - mean) ** 2 for value in values)
    return math.sqrt(variance)


def _common(one: Scores, other: Scores) -> Scores:
    """Return the measures that both have."""
    return {name: numbers for name, numbers in one.items() if other.get(name)}


def _without(scores: Scores, names: Sequence[str], i: int) -> Scores:
    """Return the scores without image `i` of the named measures."""
    return {name: [*numbers[:i], *numbers[i + 1 :]] if name in names else numbers for name, numbers in scores.items()}


def is_exhausted(qualities: Mapping[int, float], patience: int) -> bool:
    """Return whether the last `patience` validations brought nothing better (0: never)."""
    best_step = highest(qualities)
    return patience > 0 and best_step is not None and _num_after(qualities, best_step) >= patience


def _num_after(qualities: Mapping[int, float], step: int) -> int:
    return sum(later > step for later in qualities)


def means_of(scores: Scores) -> dict[str, float]:
    """Return the mean of each measure that has any numbers."""
    return {name: sum(numbers) / len(numbers) for name, numbers in scores.items() if numbers}
