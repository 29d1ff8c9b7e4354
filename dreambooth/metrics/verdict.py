"""The verdict on a run, in plain words, with the next thing to do. All its thresholds are here.

They were chosen on laboratory runs of benchmarks/lab/results.csv, whose truth the renderer knows, and are tested on the
465 there are on the toy world's two bases with a UNet (tests/test_verdict.py). Means over those runs:

    fidelity            nearer to the subject than to others of its class:      .99 from .7 on, .68 from .5, .36 below
    prompt_fidelity     shows the place that the prompt names:                  .98 from .7 on, .48 below
    prior_preservation  similarity of the class prompt's images to the subject: .12 from .65 on, .78 below

Of the 321 runs that are judged learned, 303 have learned by that truth; of the 131 judged failed, 9.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dreambooth.metrics.selection import Anchors, Quality, Validation, choose, factor_errors

LIMITS = {"fidelity": 0.5, "prompt_fidelity": 0.7, "prior_preservation": 0.65}  # below it a factor has failed
# Outcomes of a run with too high a learning rate, or too many steps.
SPOILED = {"prompt_fidelity": "ignores prompts", "prior_preservation": "forgot its class"}
LEARNED = 0.7  # fidelity; partly learned from its limit on
UNMOVED = 0.1  # fidelity of images that are still the base's
FEW_STEPS = 100  # of a run so short that unmoved images say nothing of optim.lr

TRAIN_LONGER = "train longer (train.max_steps) or raise optim.lr"
RAISE_RATE = "raise optim.lr tenfold, or take a method that trains more (method.name)"
TRAIN_LESS = "lower optim.lr, train fewer steps, or add photos in other places"
KEEP_CLASS = "use a class prior (prior.source), raise prior.weight, or lower optim.lr"
MORE_IMAGES = "raise validate.num_images, and look at samples/"
SAMPLE_IT = "sample it"


@dataclass(frozen=True)
class Verdict:
    """Hold an outcome in a few words, why, and what to do next."""

    outcome: str
    reason: str
    advice: str

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}; {self.advice}"


NOT_VALIDATED = Verdict(
    "not validated",
    "the run has drawn no images while it trained",
    "sample it to see what it has learned, or set validate.every_steps",
)
NOT_SCORED = Verdict(
    "not scored",
    "the run had no encoder to measure its images with",
    "look at samples/, or name encoders (validate.dino, validate.clip)",
)
NOT_JUDGED = Verdict(
    "not judged",
    "it takes two validations, and prompts with {subject} and with {class}",
    "set validate.every_steps and validate.prompts",
)


def judge(validations: Sequence[Validation], anchors: Anchors | None, step: int | None = None) -> Verdict:
    """Return the verdict on the weights of a step; None: of the step to keep.

    Where that step was not validated, or none is better than the base, the last validation stands for it.
    """
    judged = [each for each in validations if each.quality is not None and each.step > 0]
    if not validations:
        return NOT_VALIDATED
    if not judged or anchors is None:
        return NOT_JUDGED if any(each.scores for each in validations) else NOT_SCORED
    step = choose(validations, anchors) if step is None else step
    kept = next((each for each in judged if each.step == step), judged[-1])
    assert kept.quality is not None
    verdict = judge_quality(kept.quality, factor_errors(kept.scores, anchors))
    return _explain(verdict, kept, judged)


def judge_quality(quality: Quality, errors: Mapping[str, float] | None = None) -> Verdict:
    """Return the verdict on images of this quality. errors: the standard error of each factor; none: 0.

    A factor that has failed by more than its error decides; else one within its error of failing leaves it open.
    """
    errors = errors or {}
    margins = {name: getattr(quality, name) - limit for name, limit in LIMITS.items()}
    failed = [name for name, margin in margins.items() if margin < 0 and -margin >= errors.get(name, 0.0)]
    open_ones = [name for name, margin in margins.items() if abs(margin) < errors.get(name, 0.0)]
    if failed:
        return _failure(failed[0], quality)
    if open_ones:
        listed = ", ".join(
            f"{name.replace('_', ' ')} {getattr(quality, name):.2f} ± {errors[name]:.2f}" for name in open_ones
        )
        return Verdict("not decided", f"{listed} over too few images", MORE_IMAGES)
    if quality.fidelity < LEARNED:
        return Verdict("partly learned", _describe_fidelity(quality), TRAIN_LONGER)
    return Verdict("learned", f"{_describe_fidelity(quality)}; prompts and class are as they were", SAMPLE_IT)


def _describe_fidelity(quality: Quality) -> str:
    return f"images of the subject are {quality.fidelity:.0%} of the way from the base's to the photos"


def _failure(factor: str, quality: Quality) -> Verdict:
    if factor == "fidelity":
        return Verdict("not learned", _describe_fidelity(quality), TRAIN_LONGER)
    if factor == "prompt_fidelity":
        reason = f"{quality.prompt_fidelity:.0%} is left of the base's agreement with them"
        return Verdict(SPOILED[factor], reason, TRAIN_LESS)
    return Verdict(SPOILED[factor], f"{quality.prior_preservation:.0%} of it is as it was", KEEP_CLASS)


def _explain(verdict: Verdict, kept: Validation, judged: Sequence[Validation]) -> Verdict:
    """Add what the other validations of the run show: since when, and whether more steps would help."""
    qualities = {each.step: each.quality for each in judged if each.quality is not None}
    if verdict.outcome == "not learned":
        fidelities = [each.fidelity for step, each in qualities.items() if step <= kept.step]
        return _explain_fidelity(verdict, fidelities, num_steps=judged[-1].step)
    spoiled = {name: step for name in SPOILED if (step := _failed_since(qualities, name)) is not None}
    if verdict.outcome in SPOILED.values():
        (name,) = (name for name, outcome in SPOILED.items() if outcome == verdict.outcome)
        return replace(verdict, reason=f"from step {spoiled.get(name, kept.step)} on, {verdict.reason}")
    if not spoiled or verdict.advice == MORE_IMAGES:
        return verdict
    later = ", ".join(f"from step {step} on the run {SPOILED[name]}" for name, step in spoiled.items())
    advice = verdict.advice if verdict.outcome == "learned" else "lower optim.lr and train longer"
    return replace(verdict, reason=f"{verdict.reason} at step {kept.step}; {later}", advice=advice)


def _explain_fidelity(verdict: Verdict, fidelities: Sequence[float], num_steps: int) -> Verdict:
    """Add advice where fidelity never rose. fidelities: of the validations up to the judged one."""
    if max(fidelities) >= UNMOVED:
        return verdict
    advice = RAISE_RATE if num_steps >= FEW_STEPS else f"train longer (train.max_steps): {num_steps} steps are few"
    return replace(verdict, reason="images of the subject are still the base's", advice=advice)


def _failed_since(qualities: Mapping[int, Quality], factor: str) -> int | None:
    """Return the first step from which on every validation is below the factor's limit; None where the last is not."""
    since = None
    for step, each in sorted(qualities.items(), reverse=True):
        if getattr(each, factor) >= LIMITS[factor]:
            break
        since = step
    return since
