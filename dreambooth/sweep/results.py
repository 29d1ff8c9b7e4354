"""Collect the results of a sweep's cells: quality and scores of each, and their means by setting and by subject."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth.config import as_overrides, to_dict
from dreambooth.errors import UserError
from dreambooth.metrics.estimates import Estimate, estimate
from dreambooth.metrics.selection import means_of, quality_error
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.report.records import read_sessions
from dreambooth.sweep.cells import Cell, shown_value
from dreambooth.sweep.folder import trained_config
from dreambooth.sweep.reading import Sweep
from dreambooth.sweep.status import CellStatus, status_of
from dreambooth.sweep.trained import changes_since, config_of_run

NORMAL_95 = 1.96  # standard errors on each side of a 95 % interval


@dataclass(frozen=True)
class CellResult:
    """Hold a cell's status, and what it measured at the step to keep.

    interval: half of the quality's 95 % interval over its images; None: one image, or no quality. seconds: of all its
    sessions.
    """

    status: CellStatus
    setting: str
    scores: dict[str, float] = field(default_factory=dict)
    interval: float | None = None
    seconds: float = 0.0
    memory_mib: float = 0.0

    @property
    def cell(self) -> Cell:
        return self.status.cell

    @property
    def quality(self) -> float | None:
        return self.status.quality


@dataclass(frozen=True)
class Group:
    """Hold cells of one setting, or of one subject. quality: mean with its 95 % interval; None: none is measured.

    best: the cell with the highest quality.
    """

    name: str
    cells: Sequence[CellResult]
    quality: Estimate | None
    best: CellResult | None

    @property
    def num_finished(self) -> int:
        return sum(each.status.state == "finished" for each in self.cells)


@dataclass(frozen=True)
class Results:
    """Hold a sweep's cells, those of highest quality first, and the same by setting and by subject.

    best: the setting of highest mean quality that has all its cells measured; None: there is none yet.
    """

    sweep: Sweep
    cells: Sequence[CellResult]
    by_setting: Sequence[Group]
    by_subject: Sequence[Group]
    best: Group | None

    @property
    def failed(self) -> list[CellResult]:
        return [each for each in self.cells if each.status.state == "failed"]


def read_results(sweep: Sweep, cells: Sequence[Cell]) -> Results:
    """Read what the run folders of the cells hold, finished or not."""
    found = sorted((read_cell(sweep, cell) for cell in cells), key=_rank)
    by_setting = sorted(_groups(found, lambda each: each.setting), key=_group_rank)
    by_subject = sorted(_groups(found, lambda each: each.cell.subject_name), key=lambda group: group.name)
    best = next((group for group in by_setting if all(each.quality is not None for each in group.cells)), None)
    return Results(sweep, found, by_setting, by_subject, best)


def read_cell(sweep: Sweep, cell: Cell) -> CellResult:
    """Read one cell's folder; logs that cannot be read make it a failed one."""
    status, setting = status_of(sweep, cell), cell.point.name
    if status.state == "failed" and not status.folder.is_dir():
        return CellResult(status, setting)
    try:
        sessions = read_sessions(status.folder / "logs" / "sessions.jsonl")
        log = ValidationLog(status.folder / "logs" / "scores.jsonl")
    except UserError:  # the status says so
        return CellResult(status, setting)
    seconds = sum(session.seconds for session in sessions)
    memory = max((session.peak_memory_mib for session in sessions), default=0.0)
    entry = log.best
    if entry is None or log.anchors is None:
        return CellResult(status, setting, {}, None, seconds, memory)
    error = quality_error(entry.scores, log.anchors)
    interval = NORMAL_95 * error if error else None
    return CellResult(status, setting, means_of(entry.scores), interval, seconds, memory)


def _rank(result: CellResult) -> tuple[float, str]:
    """Order by quality, then by name; what has none comes last."""
    return (1.0 if result.quality is None else -result.quality, result.cell.name)


def _group_rank(group: Group) -> tuple[float, str]:
    return (1.0 if group.quality is None else -group.quality.mean, group.name)


def _groups(cells: Sequence[CellResult], key: Callable[[CellResult], str]) -> list[Group]:
    by_key: dict[str, list[CellResult]] = {}
    for each in cells:
        by_key.setdefault(key(each), []).append(each)
    return [_group(name, own) for name, own in by_key.items()]


def _group(name: str, cells: Sequence[CellResult]) -> Group:
    """Return a group; its interval is over subjects where there are several, else over cells."""
    measured = [(each.quality, each.cell.subject_name) for each in cells if each.quality is not None]
    if not measured:
        return Group(name, cells, None, None)
    subjects = [subject for _, subject in measured]
    groups = subjects if len(set(subjects)) > 1 else None
    mean = estimate([quality for quality, _ in measured], groups, bounds=(0.0, 1.0))
    return Group(name, cells, mean, cells[0] if cells[0].quality is not None else None)


def differing_keys(results: Results) -> list[str]:
    """Return the keys that the points set, in their order."""
    return list(dict.fromkeys(key for each in results.cells for key in each.cell.point.settings))


def best_overrides(results: Results) -> list[str]:
    """Return the best setting as words of a command, `section.key=value` each; none where there is no best yet.

    With it go values that its best cell was trained with, and that the sweep's config has no longer.
    """
    if results.best is None:
        return []
    sweep, cell = results.sweep, results.best.cells[0].cell
    changes = changes_since(sweep, cell, sweep.config_of(cell, trained_config(sweep)))
    earlier = {change.key: change.before for change in changes if not change.key.startswith("subject")}
    return [*Cell("", cell.point).overrides, *as_overrides(earlier)]


def best_config(results: Results) -> dict[str, object] | None:
    """Return the config that the best setting's best cell was trained with; None where there is no best yet."""
    if results.best is None or results.best.best is None:
        return None
    return to_dict(config_of_run(results.sweep, results.best.best.cell))


def setting_texts(result: CellResult, keys: Sequence[str]) -> list[str]:
    """Return the values of a cell's setting for some keys; of one that it leaves alone nothing."""
    settings = result.cell.point.settings
    return [shown_value(settings[key]) if key in settings else "" for key in keys]


def page_path(sweep: Sweep) -> Path:
    """Return where the page of a sweep lies."""
    return sweep.folder / "report.html"


def quality_text(each: CellResult) -> str:
    """Return a cell's quality with its interval: "0.62 ± 0.05"."""
    if each.quality is None:
        return "–"
    return f"{each.quality:.3f}" + ("" if each.interval is None else f" ± {each.interval:.3f}")


def summary(results: Results) -> str:
    """Return in a sentence how far the sweep is, and which setting is best so far."""
    states = [each.status.state for each in results.cells]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    text = f"{len(states)} cells: {', '.join(counts)}."
    if results.best is None or results.best.quality is None:
        return text
    return f"{text} Best setting: {results.best.name}, quality {results.best.quality}."
