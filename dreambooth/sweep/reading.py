"""Read a sweep file into a checked sweep. All mistakes are found and reported together, each with its key."""

import dataclasses
import logging
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING

from dreambooth.config import Config, field_of, plain_yaml
from dreambooth.config.keys import type_name
from dreambooth.config.values import as_number, cut, problem_of, problem_with
from dreambooth.errors import UserError, escaped
from dreambooth.home_folder import with_home
from dreambooth.proposal.automatic import load_run_config
from dreambooth.sweep.axes import OWN_KEYS, Axis, read_axis
from dreambooth.sweep.cells import Cell, Point, Subject, Variant, cells_of, grid
from dreambooth.sweep.fields import SECTIONS, SearchSection, SlurmSection, SweepSection

logger = logging.getLogger(__name__)
FREE_SECTIONS = ("settings", "variants")
PATHS = ("sweep.dir", "sweep.config", "subjects.folder", "subjects.table")
MAX_CELLS = 100_000
LEFT_BY_SWEEP = ("config.yaml", "lock", "runs")  # lie in the folder of a sweep that was run
Read = TypeVar("Read")


@dataclass(frozen=True)
class Sweep:
    """Hold a checked sweep file.

    sections: by name, each of its dataclass in `fields.SECTIONS`. reported: what was said of values that a rule
    decides (`auto`), which is said once though a config is read many times.
    """

    path: Path
    sections: dict[str, Any]
    subjects: tuple[Subject, ...]
    variants: tuple[Variant, ...]
    axes: tuple[Axis, ...]
    reported: set[str] = field(default_factory=set, compare=False)

    @property
    def options(self) -> SweepSection:
        section: SweepSection = self.sections["sweep"]
        return section

    @property
    def search(self) -> SearchSection:
        section: SearchSection = self.sections["search"]
        return section

    @property
    def slurm(self) -> SlurmSection:
        section: SlurmSection = self.sections["slurm"]
        return section

    @property
    def folder(self) -> Path:
        """Return the sweep's own folder."""
        return Path(self.options.dir) / self.options.name

    @property
    def runs(self) -> Path:
        """Return the folder of the cells' run folders."""
        return self.folder / "runs"

    def with_config(self, config: Path) -> "Sweep":
        """Return the same of another config file."""
        options = dataclasses.replace(self.options, config=str(config))
        return dataclasses.replace(self, sections={**self.sections, "sweep": options})

    def grid(self) -> list[Point]:
        """Return every combination of the settings. Raises UserError for a range that has no values."""
        if open_ranges := [axis.key for axis in self.axes if not axis.values]:
            raise UserError(
                f"{escaped(self.path)}: settings.{open_ranges[0]}: a grid needs the values of a range; add num, or "
                "set search.method to random, halving or optuna"
            )
        return grid(self.variants, self.axes)

    def cells(self, points: list[Point]) -> list[Cell]:
        """Return the cells of some points: each with every subject and seed."""
        return cells_of(points, self.subjects, self.options.seeds)

    def config_of(self, cell: Cell, config: Path | None = None) -> Config:
        """Return the config of a cell's run. config: the file to start from; None: the sweep file's.

        Raises UserError for settings that no run takes.
        """
        own = [*cell.overrides, *self.run_overrides(cell)]
        return load_run_config(config or Path(self.options.config), own, self._report)

    def _report(self, line: str) -> None:
        if line not in self.reported:
            self.reported.add(line)
            logger.info(line)

    def run_overrides(self, cell: Cell) -> list[str]:
        """Return what the sweep sets of a cell's run, as `section.key=value` each: its folder, and to resume."""
        return [f"run.dir={self.runs}", f"run.name={cell.name}", "run.resume=auto"]


def load_sweep(path: Path) -> Sweep:
    """Read a sweep file, or that of a sweep's folder, which may have been moved or copied.

    Raises UserError that lists every mistake, one a line.
    """
    file = path / "sweep.yaml" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{escaped(file)}: there is no such sweep file; configs/sweeps/ holds examples")
    raw, problems = plain_yaml.read(file)
    known = (*SECTIONS, *FREE_SECTIONS)
    if not isinstance(raw, dict):
        raise UserError(f"{escaped(file)}: expected sections ({', '.join(known)}), found {cut(raw)}")
    problems += [f"{escaped(name)}: unknown section; there are {', '.join(known)}" for name in raw if name not in known]
    sections: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        sections[name], wrong = _section(name, kind, raw.get(name))
        problems += wrong
    if sections["sweep"] is not None:
        problems += _repeated_seeds(sections["sweep"])
        sections["sweep"] = _where_it_lies(sections["sweep"], path)
    axes = _each(raw.get("settings"), "settings", read_axis, problems)
    variants = _each(raw.get("variants"), "variants", _read_variant, problems)
    subjects: tuple[Subject, ...] = ()
    from dreambooth.sweep.subjects import read_subjects  # which loads Pillow, and the program's help need not

    if "subjects" in raw and sections["subjects"] is not None:
        try:
            subjects = read_subjects(sections["subjects"])
        except UserError as error:
            problems.append(str(error))
    if problems:
        joined = problems[0] if len(problems) == 1 else "\n  ".join(["", *problems])
        raise UserError(f"{escaped(file)}: {joined}")
    return Sweep(file, sections, subjects, tuple(variants) or (Variant(),), tuple(axes))


def _repeated_seeds(options: SweepSection) -> list[str]:
    seeds = options.seeds
    repeated = [seed for number, seed in enumerate(seeds) if seed in seeds[:number]]
    return [f"sweep.seeds: {repeated[0]} is there twice; leave one out"] if repeated else []


def _where_it_lies(options: SweepSection, path: Path) -> SweepSection:
    """Return a sweep's options with the folder that it was read from, if that is a sweep's and not only holds a file.

    On another machine the config may not be there: then the folder's copy of it is taken.
    """
    if not all((path / name).exists() for name in LEFT_BY_SWEEP):
        return options
    folder = path if path.name not in ("", "..") else path.resolve()
    config = options.config if Path(options.config).is_file() else str(path / "config.yaml")
    return dataclasses.replace(options, dir=str(folder.parent), name=folder.name, config=config)


def check_cells(sweep: Sweep, cells: list[Cell]) -> list[tuple[Cell, Config]]:
    """Return some cells with their configs. Raises UserError where settings or a subject make one that no run takes."""
    if len(cells) > MAX_CELLS:
        raise UserError(f"{escaped(sweep.path)}: {len(cells)} cells; at most {MAX_CELLS}")
    tried: list[tuple[Cell, Config]] = []
    for cell in told_apart(cells):
        try:
            config = sweep.config_of(cell)
        except UserError as error:
            raise UserError(f"{escaped(sweep.path)}: the cell {cell.name} is no run: {error}") from error
        if config.train.devices * config.train.num_nodes > 1:
            raise UserError(
                f"{escaped(sweep.path)}: the cell {cell.name} has train.devices={config.train.devices}, "
                f"train.num_nodes={config.train.num_nodes}; a cell is one process: set both to 1"
            )
        tried.append((cell, config))
    return tried


def told_apart(cells: Iterable[Cell]) -> Iterator[Cell]:
    """Return a cell for each point and for each subject, as reading a config takes a third of a second."""
    points: set[str] = set()
    subjects: set[str] = set()
    for cell in cells:
        if cell.point.name not in points or cell.subject_name not in subjects:
            points.add(cell.point.name)
            subjects.add(cell.subject_name)
            yield cell


def describe_sections() -> str:
    """Return all keys with type, default and help, a paragraph a section, as `sweep --help` prints them."""
    lines = []
    for section, kind in SECTIONS.items():
        lines += ["", f"{section}: {kind.__doc__}"]
        for item in _fields(kind).values():
            default = _default(item)
            told = "required" if default == MISSING else f"default {'null' if default is None else default}"
            lines += [f"  {section}.{item.name} ({type_name(item.type)}; {told})", f"      {item.metadata['text']}"]
    lines += [
        "",
        "settings: Values by config key; the cells are all their combinations.",
        "  KEY: [v, v]  |  {range: [low, high], num: n}  |  {log_range: [low, high], num: n}",
        "",
        "variants: Named sets of config keys, each combined with all the settings.",
        "  NAME: {KEY: value, KEY: value}",
    ]
    return "\n".join(lines[1:])


@cache
def _fields(kind: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a section, with their types resolved."""
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for item in fields.values():
        item.type = hints[item.name]
    return fields


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default if item.default is not dataclasses.MISSING else typing.cast(Any, item.default_factory)()


def _section(name: str, kind: type, raw: Any) -> tuple[Any, list[str]]:
    """Return a section, None where it has mistakes, and these."""
    fields, values = _fields(kind), {} if raw is None else raw
    if not isinstance(values, dict):
        return None, [f"{name}: a section must hold keys, found {cut(raw)}"]
    problems = [
        f"{name}.{escaped(key)}: unknown key; there are {', '.join(fields)}" for key in values if key not in fields
    ]
    known = {key: value for key, value in values.items() if key in fields}
    for key, value in known.items():
        if (problem := problem_with(f"{name}.{key}", fields[key], value)) is not None:
            problems.append(problem)
    for key, item in fields.items():
        if item.default == MISSING and key not in values:
            problems.append(f"{name}.{key}: required ({item.metadata['text']})")
    if problems:
        return None, problems
    read = {key: as_number(fields[key].type, value) for key, value in known.items()}
    paths = [key for key in read if f"{name}.{key}" in PATHS and isinstance(read[key], str)]
    return kind(**{**read, **{key: with_home(read[key]) for key in paths}}), []


def _each(raw: Any, name: str, read: Callable[[str, Any], Read], problems: list[str]) -> list[Read]:
    """Read each entry of a free section; what is wrong with one is added to `problems`."""
    if raw is None:
        return []
    if not isinstance(raw, dict):
        problems.append(f"{name}: a section must hold keys, found {cut(raw)}")
        return []
    found = []
    for key, value in raw.items():
        try:
            found.append(read(str(key), value))
        except UserError as error:
            problems.append(str(error))
    return found


def _read_variant(name: str, raw: Any) -> Variant:
    settings = {} if raw is None else raw
    if not isinstance(settings, dict):
        raise UserError(f"variants.{escaped(name)}: must hold config keys with values, found {cut(raw)}")
    if problems := list(_variant_problems(name, settings)):
        raise UserError("; ".join(problems))
    typed = {key: as_number(typing.cast(Any, field_of(key)).type, value) for key, value in settings.items()}
    return Variant(name, tuple(typed.items()))


def _variant_problems(name: str, settings: dict[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        if key in OWN_KEYS:
            yield f"variants.{escaped(name)}.{key}: the sweep sets it itself"
        elif (problem := problem_of(str(key), value)) is not None:
            yield f"variants.{escaped(name)}.{problem}"
