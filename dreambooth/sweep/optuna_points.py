"""Points that Optuna's samplers propose (extra 'search'): Akiba et al. 2019, arXiv 1907.10902.

The sweep's folder is the record. Each time a study is filled with the points so far and their qualities.
"""

import importlib.util
import json
import warnings
from collections.abc import Sequence
from typing import Any

from dreambooth.errors import UserError, escaped
from dreambooth.sweep.axes import Axis, rounded
from dreambooth.sweep.cells import Point
from dreambooth.sweep.reading import Sweep

VARIANT = "variant"  # the name of that parameter


def ask(sweep: Sweep, tried: Sequence[tuple[Point, float | None]], num: int) -> list[Point]:
    """Return `num` points to try next. tried: with their qualities; None: it has failed.

    Raises UserError where Optuna is not installed, and for a setting that the points so far have no value of.
    """
    check_installed()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = sweep.search.seed + len(tried)
    samplers: dict[str, Any] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="maximize", sampler=samplers[sweep.search.sampler]())
    space: dict[str, Any] = {axis.key: _distribution(axis) for axis in sweep.axes}
    space[VARIANT] = optuna.distributions.CategoricalDistribution([variant.name for variant in sweep.variants])
    for point, quality in tried:
        failed = optuna.trial.TrialState.FAIL
        state = failed if quality is None else optuna.trial.TrialState.COMPLETE
        params = _params(point, sweep)
        try:
            trial = optuna.trial.create_trial(params=params, distributions=space, value=quality, state=state)
        except ValueError:  # outside of what the sweep file asks for now
            continue
        study.add_trial(trial)
    return _new_points(sweep, study, space, [point for point, _ in tried], num)


def check_installed() -> None:
    """Raise UserError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "search.method=optuna: the package optuna is not installed; pip install -e '.[search]', or use random"
        )


def _new_points(sweep: Sweep, study: Any, space: dict[str, Any], tried: Sequence[Point], num: int) -> list[Point]:
    """Ask until there are `num` points that were not tried yet; a small space may have fewer."""
    names, found = {point.name for point in tried}, []
    for _ in range(20 * num):
        point = _point(study.ask(space).params, sweep)
        if point.name not in names:
            names.add(point.name)
            found.append(point)
        if len(found) == num:
            break
    return found


def _distribution(axis: Axis) -> Any:
    import optuna

    if axis.values:
        return optuna.distributions.CategoricalDistribution([json.dumps(value) for value in axis.values])
    assert axis.low is not None
    assert axis.high is not None
    if axis.is_whole:
        return optuna.distributions.IntDistribution(round(axis.low), round(axis.high), log=axis.is_log)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.is_log)


def _params(point: Point, sweep: Sweep) -> dict[str, Any]:
    """Return a point as Optuna has it: a list's value as JSON. Raises UserError where it lacks an axis."""
    values = dict(point.values)
    if missing := [axis.key for axis in sweep.axes if axis.key not in values]:
        raise UserError(
            f"{escaped(sweep.path)}: settings.{missing[0]}: is new, and the points so far have no value of it; take it "
            "away, or choose another sweep.name"
        )
    params = {axis.key: json.dumps(values[axis.key]) if axis.values else values[axis.key] for axis in sweep.axes}
    return {**params, VARIANT: point.variant.name}


def _point(params: dict[str, Any], sweep: Sweep) -> Point:
    variant = next(each for each in sweep.variants if each.name == params[VARIANT])
    return Point(variant, tuple((axis.key, _value(axis, params[axis.key])) for axis in sweep.axes))


def _value(axis: Axis, value: Any) -> Any:
    """Return a value as a config has it, within the range however it is rounded."""
    if axis.values:
        return json.loads(value)
    assert axis.low is not None
    assert axis.high is not None
    within = min(max(rounded(value, axis.is_whole), axis.low), axis.high)
    return round(within) if axis.is_whole else within
