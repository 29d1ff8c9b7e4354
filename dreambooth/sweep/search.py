"""The points that a search tries, and the cells to train next. All of it follows from the sweep's folder alone.

grid: every combination. random: draws. halving: all points for few steps, the best of them for more. optuna: an Optuna
sampler proposes points by the qualities so far. So a search that was killed goes on as if it had not been.
"""

import json
import random
from collections.abc import Collection, Iterable

from dreambooth.errors import UserError, escaped
from dreambooth.files import whole_lines, write_text
from dreambooth.sweep import halving
from dreambooth.sweep.cells import Cell, Point, Variant
from dreambooth.sweep.reading import Sweep
from dreambooth.sweep.status import CellStatus, read_status
from dreambooth.sweep.worker import Task


def cells_of(sweep: Sweep) -> list[Cell]:
    """Return the cells that are known so far: of all points, or of those that a sampler has proposed."""
    return sweep.cells(points_of(sweep))


def points_of(sweep: Sweep) -> list[Point]:
    """Return the points that are known so far."""
    search = sweep.search
    if search.method == "optuna":
        return proposed(sweep)
    has_open_range = any(not axis.values for axis in sweep.axes)
    if search.method == "grid" or (search.method == "halving" and not has_open_range):
        return sweep.grid()
    return drawn(sweep)


def planned_cells(sweep: Sweep) -> list[Cell]:
    """Return the cells of a sweep; of those that a sampler will propose as many drawn ones stand for them."""
    if sweep.search.method != "optuna":
        return cells_of(sweep)
    points = points_of(sweep)
    return sweep.cells([*points, *drawn(sweep)[: max(0, sweep.search.num_points - len(points))]])


def planned_tasks(sweep: Sweep, cells: list[Cell]) -> list[Task]:
    """Return what is planned to be trained of some cells: with halving those that come last on a rung only so far."""
    if sweep.search.method != "halving":
        return [Task(cell) for cell in cells]
    return halving.planned_tasks(sweep, cells)


def check(sweep: Sweep, cell: Cell) -> None:
    """Raise UserError where a config does not measure what the search compares, or Optuna is missing."""
    method, validate = sweep.search.method, sweep.config_of(cell).validate
    is_measured = validate.every_steps > 0 and (validate.dino is not None or validate.clip is not None)
    if method in ("halving", "optuna") and not is_measured:
        raise UserError(
            f"{escaped(sweep.path)}: search.method={method}: compares qualities; set validate.every_steps, and name "
            "encoders (validate.dino, validate.clip)"
        )
    if method == "halving":
        halving.rungs(sweep.config_of(cell), sweep)
        named = [*(f"settings.{axis.key}" for axis in sweep.axes)]
        named += [f"variants.{variant.name}.{key}" for variant in sweep.variants for key, _ in variant.settings]
        own = [each for each in named if each.endswith((".train.max_steps", ".validate.every_steps"))]
        if own:
            raise UserError(
                f"{escaped(sweep.path)}: {own[0]}: search.method=halving decides how long a cell is trained; "
                "set it in the config"
            )
    if method == "optuna":
        from dreambooth.sweep.optuna_points import check_installed

        check_installed()


def drawn(sweep: Sweep) -> list[Point]:
    """Return random points, each once: point i depends on search.seed and i alone."""
    points: dict[str, Point] = {}
    for number in range(100 * sweep.search.num_points):
        rng = random.Random(f"{sweep.search.seed}/{number}")
        variant = rng.choice(sweep.variants)
        point = Point(variant, tuple((axis.key, axis.draw(rng)) for axis in sweep.axes))
        points.setdefault(point.name, point)
        if len(points) == sweep.search.num_points:
            break
    return list(points.values())


def next_tasks(sweep: Sweep, given_up: Collection[str] = ()) -> list[Task]:
    """Return the cells to train next; none where the search is over. given_up: names of cells that have failed.

    Raises UserError where a search needs a quality and no cell has one.
    """
    method = sweep.search.method
    statuses = read_status(sweep, cells_of(sweep))
    if method == "halving":
        return halving.next_tasks(sweep, statuses, given_up)
    tasks = [Task(each.cell) for each in statuses if each.state != "finished" and each.cell.name not in given_up]
    if method != "optuna" or tasks or len(points_of(sweep)) >= sweep.search.num_points:
        return tasks
    propose(sweep, statuses)
    return [Task(each.cell) for each in read_status(sweep, cells_of(sweep)) if each.state == "waiting"]


def mean_quality(statuses: Iterable[CellStatus]) -> float | None:
    """Return the mean quality of a point's cells; None where one of them has none."""
    qualities = [each.quality for each in statuses]
    known = [quality for quality in qualities if quality is not None]
    return sum(known) / len(known) if known and len(known) == len(qualities) else None


# -------------------------------------------------------------------------------- Optuna's samplers


def proposed(sweep: Sweep) -> list[Point]:
    """Return the points that the sampler has proposed so far, from points.jsonl."""
    variants = {variant.name: variant for variant in sweep.variants}
    points = []
    for line in whole_lines(sweep.folder / "points.jsonl"):
        found = json.loads(line)
        points.append(Point(variants.get(found["variant"], Variant(found["variant"])), tuple(found["values"].items())))
    return points


def propose(sweep: Sweep, statuses: list[CellStatus]) -> None:
    """Let the sampler propose a few points more, and write them down."""
    from dreambooth.sweep.optuna_points import ask

    points = points_of(sweep)
    by_point: dict[str, list[CellStatus]] = {point.name: [] for point in points}
    for each in statuses:
        by_point[each.cell.point.name].append(each)
    qualities = [mean_quality(by_point[point.name]) for point in points]
    if points and all(quality is None for quality in qualities):
        raise UserError(
            f"{escaped(sweep.path)}: search.method=optuna: no cell has a quality; name encoders (validate.dino, "
            "validate.clip)"
        )
    num = min(sweep.search.batch, sweep.search.num_points - len(points))
    asked = [*points, *ask(sweep, list(zip(points, qualities, strict=True)), num)]
    lines = [json.dumps({"variant": point.variant.name, "values": dict(point.values)}) for point in asked]
    write_text(sweep.folder / "points.jsonl", "\n".join(lines) + "\n")
