"""The values of a setting over a sweep: a list, a range or a log-range.

    optim.lr: [1e-4, 2e-4]
    prior.weight: {range: [0.5, 2], num: 4}
    optim.lr: {log_range: [1e-5, 1e-3], num: 3}

A range without `num` has no values of its own: a search draws them.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from dreambooth.config import field_of
from dreambooth.config.values import as_number, cut, problem_of
from dreambooth.errors import UserError

OWN_KEYS = ("run.name", "run.dir", "run.resume", "run.seed")  # which the sweep sets itself
DIGITS = 4  # significant ones of a value that is computed
MAX_VALUES = 1000


@dataclass(frozen=True)
class Axis:
    """Hold the values of one key. values: of a list, or of a range with `num`; else empty.

    low, high: the ends of a range; None: a list.
    """

    key: str
    values: tuple[Any, ...]
    low: float | None = None
    high: float | None = None
    is_log: bool = False

    @property
    def is_whole(self) -> bool:
        """Return whether only whole numbers are allowed."""
        item = field_of(self.key)
        assert item is not None, self.key
        return item.type is int or (int in get_args(item.type) and float not in get_args(item.type))

    def at(self, fraction: float) -> Any:
        """Return the value at a fraction of the range, 0 to 1, rounded to what can be read."""
        assert self.low is not None
        assert self.high is not None
        if self.is_log:
            value = math.exp(math.log(self.low) + fraction * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + fraction * (self.high - self.low)
        return rounded(value, self.is_whole)

    def draw(self, rng: random.Random) -> Any:
        """Return a random value: one of the list, or anywhere in the range."""
        return rng.choice(self.values) if self.low is None else self.at(rng.random())


def rounded(value: float, is_whole: bool) -> Any:
    """Return a computed value with few digits, or as a whole number."""
    return round(value) if is_whole else float(f"{value:.{DIGITS}g}")


def read_axis(key: str, raw: Any) -> Axis:
    """Read the values of one key. Raises UserError for a key or a value that no config takes."""
    if key in OWN_KEYS:
        raise UserError(f"settings.{key}: the sweep sets it itself; for seeds there is sweep.seeds")
    if field_of(key) is None:
        raise UserError(f"settings.{problem_of(key, None)}")
    axis = _range(key, raw) if isinstance(raw, dict) else Axis(key, _listed(key, raw))
    ends = [end for end in (axis.low, axis.high) if end is not None]
    for value in (*axis.values, *(rounded(end, axis.is_whole) for end in ends)):
        if (problem := problem_of(key, value)) is not None:
            raise UserError(f"settings.{problem}")
    if repeated := [value for number, value in enumerate(axis.values) if value in axis.values[:number]]:
        raise UserError(f"settings.{key}: {cut(repeated[0])} is there twice; leave one out")
    return axis


def _listed(key: str, raw: Any) -> tuple[Any, ...]:
    """Return the values of a list; a single value is a list of one. A key that takes a list needs a list of lists."""
    item = field_of(key)
    assert item is not None, key
    if not isinstance(raw, list):
        return (as_number(item.type, raw),)
    if not raw:
        raise UserError(f"settings.{key}: an empty list; name at least one value, or leave the key out")
    return tuple(as_number(item.type, value) for value in raw)


def _range(key: str, raw: dict[str, Any]) -> Axis:
    kinds = [kind for kind in ("range", "log_range") if kind in raw]
    unknown = [name for name in raw if name not in ("range", "log_range", "num")]
    if len(kinds) != 1 or unknown:
        raise UserError(
            f"settings.{key}: {cut(raw)} is no range; write {{range: [low, high], num: 4}} or "
            "{log_range: [low, high], num: 4}"
        )
    low, high = _ends(key, kinds[0], raw[kinds[0]])
    axis = Axis(key, (), low, high, kinds[0] == "log_range")
    if raw.get("num") is None:
        return axis
    num = raw["num"]
    if not isinstance(num, int) or isinstance(num, bool) or not 2 <= num <= MAX_VALUES:
        raise UserError(f"settings.{key}.num={cut(num)}: must be a whole number from 2 to {MAX_VALUES}")
    values = tuple(dict.fromkeys(axis.at(i / (num - 1)) for i in range(num)))
    return Axis(key, values, low, high, axis.is_log)


def _ends(key: str, kind: str, raw: Any) -> tuple[float, float]:
    numbers: Sequence[Any] = [as_number(float, each) for each in raw] if isinstance(raw, list) else ()
    if len(numbers) != 2 or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
        raise UserError(f"settings.{key}.{kind}={cut(raw)}: must be two numbers, [low, high]")
    low, high = map(float, numbers)
    if not low < high or not math.isfinite(high - low):
        raise UserError(f"settings.{key}.{kind}={cut(raw)}: the first number must be below the second")
    if kind == "log_range" and low <= 0:
        raise UserError(f"settings.{key}.{kind}={cut(raw)}: a log-range needs numbers above 0; use range")
    return low, high
