"""What is wrong with one setting by itself: its name, its type or its range."""

import dataclasses
import difflib
import functools
import math
import typing
from dataclasses import field
from typing import Any, Literal

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreambooth.config.keys import ENTRY, config_fields, field_of, section_classes, type_name
from dreambooth.errors import escaped

MAX_INT = 2**63 - 1
MAX_SHOWN = 100  # characters of a value in a message


def problem_of(key: str, value: Any) -> str | None:
    """What is wrong with one setting by itself: its name, its type or its range."""
    item = field_of(key)
    if item is None:
        return _unknown_key(key)
    kind = item.type
    for each in value if isinstance(value, list) else [value]:
        if _is_text(kind) and isinstance(each, (bool, int, float)):
            return f"{key}: YAML reads this as {cut(each)}, not as text; put it in quotes"
    if problem := next(filter(None, map(_text_problem, value if isinstance(value, list) else [value])), None):
        return f"{key}: {problem}"
    if isinstance(value, str) and takes_float(kind):
        value = number(value)
    is_other = kind is bool and isinstance(value, (int, float)) and value not in (0, 1)
    if is_other or (typing.get_origin(kind) is list and not isinstance(value, list)):
        return f"{key}: {cut(value)} is not allowed; expected {type_name(kind)}"
    if isinstance(value, int) and abs(value) > MAX_INT:
        return f"{key}: {cut(value)} is too large"
    try:
        merged: Any = OmegaConf.merge(_alone(ENTRY.sub("subject", key)), {"value": value})
    except OmegaConfBaseException:
        return f"{key}: {cut(value)} is not allowed; expected {type_name(kind)}{_nearest(value, kind)}"
    return _range_problem(key, item, value if isinstance(value, (int, float)) else merged["value"])


@functools.cache
def _alone(key: str) -> Any:
    """A structured config of nothing but a field of this type: all its section takes twenty times as long to fill."""
    item = config_fields()[key]
    return OmegaConf.structured(dataclasses.make_dataclass("Alone", [("value", item.type, field(default=MISSING))]))


def _unknown_key(key: str) -> str:
    fields, entry = config_fields(), ENTRY.match(key)
    near = difflib.get_close_matches(key[:MAX_SHOWN], [*fields, *section_classes()], n=1, cutoff=0.5)
    by_name = [known for known in fields if known.split(".")[-1] == key.split(".")[-1]]
    hint = (by_name or near or [f"one of the sections {', '.join(section_classes())}"])[0]
    hint = hint.replace("subject.", f"{entry[0]}.") if entry else hint
    return f"{escaped(_shortened(key))}: unknown key; did you mean {hint}?"


def _text_problem(value: Any) -> str | None:
    """What is wrong with a text by itself."""
    if not isinstance(value, str):
        return None
    if value == MISSING:
        return "'???' stands for a value that is missing; write one"
    if "${" in value:
        return (
            f"{cut(value)} is not allowed: only keys of this config can be referred to, as in ${{subject.class_noun}}"
        )
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        return f"{cut(value)} holds characters that are no text"
    return None


def _range_problem(key: str, item: dataclasses.Field[Any], value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    limits = item.metadata
    if not math.isfinite(value):
        return f"{key}: {value} is not a finite number"
    if limits["minimum"] is not None and value < limits["minimum"]:
        return f"{key}: {value} is too small; at least {limits['minimum']}"
    if limits["above"] is not None and value <= limits["above"]:
        return f"{key}: {value} is too small; must be above {limits['above']}"
    if limits["maximum"] is not None and value > limits["maximum"]:
        return f"{key}: {value} is too large; at most {limits['maximum']}"
    if rest := value % limits["multiple"] if limits["multiple"] > 1 else 0:
        below = max(value - rest, limits["multiple"])
        return (
            f"{key}: {value} is not a multiple of {limits['multiple']}; {below} or {value - rest + limits['multiple']}"
        )
    return None


def _nearest(value: Any, kind: Any) -> str:
    """Of a choice the one that was probably meant."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    near = difflib.get_close_matches(str(value)[:MAX_SHOWN], choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _is_text(kind: Any) -> bool:
    return str in (kind, *typing.get_args(kind))


def takes_float(kind: Any) -> bool:
    return kind is float or float in typing.get_args(kind)


def number(text: str) -> Any:
    """YAML 1.1 takes 5e-6 for a text (it wants 5.0e-6); everyone means the number."""
    try:
        return float(text)
    except ValueError:
        return text


def cut(value: Any) -> str:
    """A value as a message shows it."""
    try:
        return _shortened(repr(value))
    except ValueError:  # a number of more than 4300 digits
        return "a number of thousands of digits"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
