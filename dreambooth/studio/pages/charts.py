"""Curves of a run as shapes for an SVG in the page, in its own colours: the page's policy allows no inline style.

The report draws the same panels with matplotlib; a page that is drawn anew every few seconds needs a millisecond's way.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dreambooth.report.curves import Curve, Panel

WIDTH, HEIGHT = 360, 190  # of the viewBox
LEFT, RIGHT, TOP, BOTTOM = 38, 350, 8, 166  # the area of the curves within it
MOST_DOTS = 25  # points of a curve that are drawn as dots
COLOURS = 4


@dataclass(frozen=True)
class Tick:
    """Hold a tick: where it stands, in units of the viewBox, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """Hold a point of a curve, with the words that a pointer over it shows."""

    x: float
    y: float
    words: str


@dataclass(frozen=True)
class Line:
    """Hold a curve: its points and its band as SVG paths, and its dots. colour: a number of the style sheet's."""

    label: str
    path: str
    band: str
    dots: Sequence[Dot]
    colour: int


@dataclass(frozen=True)
class Plot:
    """Hold a panel that is ready to be drawn. best: where the kept step stands; None: it is not in this panel."""

    title: str
    text: str
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    best: float | None


@dataclass(frozen=True)
class Scale:
    """Map the numbers from low to high to the units from `start` to `end`; is_log: by their logarithms."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(each) if self.is_log else each for each in (self.low, self.high, value))
        return round(self.start + (self.end - self.start) * (at - low) / (high - low), 1)


def draw(panel: Panel, last_step: int, best_step: int | None) -> Plot:
    """Return a panel's shapes. last_step: of the run, so that all panels over the steps have one scale."""
    xs = [x for curve in panel.curves for x in curve.x]
    high_x = max([last_step, 1]) if panel.over_steps else max([*xs, 1])
    x_scale = Scale(0, high_x, LEFT + 4, RIGHT - 6)
    y_scale = _y_scale(panel)
    return Plot(
        panel.title,
        panel.text,
        [_line(curve, number, x_scale, y_scale) for number, curve in enumerate(panel.curves)],
        [Tick(x_scale(value), f"{value:g}") for value in ticks(0, high_x, 5)],
        [Tick(y_scale(value), f"{value:g}") for value in _y_values(y_scale)],
        x_scale(best_step) if panel.over_steps and best_step is not None else None,
    )


def _y_scale(panel: Panel) -> Scale:
    if panel.share:
        return Scale(0, 1, BOTTOM, TOP)
    ends = [*(y for curve in panel.curves for y in (*curve.y, *curve.low, *curve.high) if math.isfinite(y))] or [0.0]
    low, high = min(ends), max(ends)
    if panel.log_y and low > 0:
        return Scale(low / 1.2, high * 1.2, BOTTOM, TOP, is_log=True)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - margin, high + margin, BOTTOM, TOP)


def _y_values(scale: Scale) -> Sequence[float]:
    if not scale.is_log:
        return ticks(scale.low, scale.high, 4)
    decades = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    values = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    return [value for value in values if scale.low <= value <= scale.high]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` + 1 round numbers from low to high, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _line(curve: Curve, number: int, x_scale: Scale, y_scale: Scale) -> Line:
    points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
    placed = [(x_scale(x), y_scale(y)) for x, y in points]
    dots = [
        Dot(place_x, place_y, f"{curve.label}: {y:.3g} at {x:g}")
        for (x, y), (place_x, place_y) in zip(points, placed, strict=True)
    ]
    is_sparse = len(dots) <= MOST_DOTS
    return Line(curve.label, _path(placed), _band(curve, x_scale, y_scale), dots if is_sparse else (), number % COLOURS)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{'L' if number else 'M'}{x:g} {y:g}" for number, (x, y) in enumerate(points))


def _band(curve: Curve, x_scale: Scale, y_scale: Scale) -> str:
    """Return the area between the ends of the curve's intervals as a closed path; empty where it has none."""
    upper = [*_ends(curve, curve.high, x_scale, y_scale)]
    lower = [*_ends(curve, curve.low, x_scale, y_scale)]
    return f"{_path([*upper, *reversed(lower)])} Z" if len(upper) > 1 else ""


def _ends(curve: Curve, ends: Sequence[float], x_scale: Scale, y_scale: Scale) -> Iterator[tuple[float, float]]:
    for x, y in zip(curve.x, ends, strict=False):
        if math.isfinite(y):
            yield x_scale(x), y_scale(y)
