"""Panels as SVG to stand inside an HTML page, in the page's own colours and font.

matplotlib draws, and knows neither the page's colours nor that other plots stand beside it. So every role is drawn in a
colour that nothing else has, which then becomes a CSS variable, light or dark as the page is.
"""

import io
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from dreambooth.report.curves import Curve, Panel

INK, FAINT, BEST = "#010101", "#010102", "#010103"
CURVES = ("#010104", "#010105", "#010106", "#010107")
ROLES = {INK: "--ink", FAINT: "--faint", BEST: "--best"} | {
    colour: f"--curve-{number}" for number, colour in enumerate(CURVES)
}
MARKERS = ("o", "s", "^", "D")  # beside the colours, for those who do not see them
MOST_MARKERS = 25
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dreambooth",  # the same ids each time
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 0.9,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0.3,
}
SIZE_INCHES = (3.6, 2.3)
MARGINS = {"left": 0.14, "right": 0.97, "bottom": 0.19, "top": 0.88}  # one for all, so that axes stand in line


def svg(panel: Panel, name: str, last_step: int, best_step: int | None) -> str:
    """Return the panel as an <svg> element. name: sets its ids apart from those of other plots on the page.

    last_step: of the run, so that panels over the steps have one scale.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES)
        figure.subplots_adjust(**MARGINS)
        axes = figure.add_subplot()
        for number, curve in enumerate(panel.curves):
            _draw(axes, curve, number)
        _label(axes, panel)
        if panel.over_steps:
            axes.set_xlim(-0.03 * max(1, last_step), 1.03 * max(1, last_step))
        if panel.over_steps and best_step is not None:
            axes.axvline(best_step, color=BEST, linewidth=1.2, linestyle=(0, (3, 2)), zorder=1)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    return _inline(file.getvalue(), name, f"{panel.title}: {panel.text}")


def _draw(axes: Axes, curve: Curve, number: int) -> None:
    colour, marker = CURVES[number % len(CURVES)], MARKERS[number % len(MARKERS)]
    marker = marker if len(curve.x) <= MOST_MARKERS else ""
    axes.plot(curve.x, curve.y, color=colour, marker=marker, markersize=3.2, linewidth=1.4, label=curve.label)
    if np.isfinite(curve.low).any():
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)


def _label(axes: Axes, panel: Panel) -> None:
    axes.set_xlabel(panel.x_label)
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if panel.share:
        axes.set_ylim(-0.03, 1.03)
    if panel.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(4, len(panel.curves)))


def _inline(text: str, name: str, description: str) -> str:
    """Return an SVG file's element for HTML: sized by the page, its ids its own, its colours the page's."""
    root = ElementTree.fromstring(text)
    _drop(root, ("metadata", "style"))  # the date of drawing; a rule that would hold for the whole page
    used = set(re.findall(r"#([\w-]+)", text)) & {element.get("id", "") for element in root.iter()}
    for element in root.iter():
        element.tag = _plain(element.tag)
        element.attrib = {_plain(key): _renamed(value, used, name) for key, value in element.attrib.items()}
        if element.attrib.get("id", "").removeprefix(f"{name}-") not in used:
            element.attrib.pop("id", None)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": description}
    return ElementTree.tostring(root, encoding="unicode")


def _drop(root: ElementTree.Element, tags: Sequence[str]) -> None:
    for parent in list(root.iter()):
        for child in [child for child in parent if _plain(child.tag) in tags]:
            parent.remove(child)


def _plain(tag: str) -> str:
    """Return a tag without its namespace, which HTML does not know: {http://www.w3.org/2000/svg}path gives path."""
    return tag.rpartition("}")[2]


def _renamed(value: str, used: set[str], name: str) -> str:
    for colour, variable in ROLES.items():
        value = value.replace(colour, f"var({variable})")
    if value in used:
        return f"{name}-{value}"
    return re.sub(r"(?<=#)[\w-]+", lambda match: f"{name}-{match[0]}" if match[0] in used else match[0], value)
