"""Turn numbers into a mean with its confidence interval. Nothing heavy is imported here."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean

from dreambooth.questions import question_of

CONFIDENCE = 0.95
Bounds = tuple[float, float]
COSINE, DISTANCE, PROBABILITY = (-1.0, 1.0), (0.0, 2.0), (0.0, 1.0)
BOUNDS: dict[str, Bounds] = {  # the range of each measure, beyond which no interval reaches
    **dict.fromkeys(("dino", "clip_i", "clip_t", "pres"), COSINE),
    **dict.fromkeys(("div", "class_div", "drift", "drift_other"), DISTANCE),
    "match": PROBABILITY,
}


def bounds_of(measure: str) -> Bounds | None:
    """Return the range of a measure, an answer's too; None for one that is not known."""
    return BOUNDS.get(measure, PROBABILITY if question_of(measure) is not None else None)


@dataclass(frozen=True)
class Estimate:
    """Hold a mean and its 95 % confidence interval over `num` independent numbers; nan where one number gives none."""

    mean: float
    low: float
    high: float
    num: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} {self.interval()}".rstrip()

    def interval(self, decimals: int = 3) -> str:
        """Write the interval: ± 0.044; (0.369 to 1.000) where a range has cut it off; nothing for a single number."""
        if self.num < 2:
            return ""
        below, above = self.mean - self.low, self.high - self.mean
        if abs(below - above) < 0.5 * 10**-decimals:
            return f"± {(below + above) / 2:.{decimals}f}"
        return f"({self.low:.{decimals}f} to {self.high:.{decimals}f})"


def estimate(
    scores: Sequence[float], groups: Sequence[Hashable] | None = None, bounds: Bounds | None = None
) -> Estimate:
    """Return the mean with Student's t interval, cut off at the ends of the range that the scores can have.

    groups: what each score belongs to (its subject, say). Images of one subject are alike, so they are averaged
    first, and the interval is over the groups: without that it would be far too narrow. bounds: the scores' range;
    None: they have none.
    """
    if groups is not None:
        by_group: dict[Hashable, list[float]] = defaultdict(list)
        for score, group in zip(scores, groups, strict=True):
            by_group[group].append(score)
        scores = [fmean(members) for members in by_group.values()]
    from scipy import stats  # half a second, which a run's first step need not wait for

    mean, num = fmean(scores), len(scores)
    if num < 2:
        return Estimate(mean, float("nan"), float("nan"), num)
    half = float(stats.sem(scores) * stats.t.ppf(0.5 + CONFIDENCE / 2, num - 1))
    lowest, highest = bounds or (float("-inf"), float("inf"))
    return Estimate(mean, max(lowest, mean - half), min(highest, mean + half), num)
