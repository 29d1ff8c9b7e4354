"""Checks of one setting by itself: its name, its type and its range."""

import dataclasses
import difflib
import functools
import math
import re
import typing
from collections.abc import Hashable
from dataclasses import field
from typing import Any, Literal

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreambooth.config.fields import AUTOMATIC
from dreambooth.config.keys import ENTRY, allowed, config_fields, field_of, section_classes, type_name
from dreambooth.config.synonyms import SYNONYMS
from dreambooth.errors import escaped
from dreambooth.plugins import active

MAX_INT = 2**63 - 1
MAX_SHOWN = 100  # characters of a value in a message


def problem_of(key: str, value: Any) -> str | None:
    """Return what is wrong with one setting by itself, None where nothing is; `auto` is a value of some keys."""
    if is_automatic(key, value):
        return None
    item = field_of(key)
    return _unknown_key(key) if item is None else problem_with(key, item, value)


def is_automatic(key: str, value: Any) -> bool:
    """Return whether a setting says `auto`, and a rule is to decide its value."""
    return key in AUTOMATIC and isinstance(value, str) and value == "auto"


def problem_with(key: str, item: dataclasses.Field[Any], value: Any) -> str | None:
    """Return what is wrong with the value of a field, whose `type` is resolved, None where nothing is."""
    kind = item.type
    for each in value if isinstance(value, list) else [value]:
        if _is_text(kind) and isinstance(each, (bool, int, float)):
            return f"{key}: YAML reads this as {cut(each)}, not as text; put it in quotes"
    if problem := next(filter(None, map(_text_problem, value if isinstance(value, list) else [value])), None):
        return f"{key}: {problem}"
    value = as_number(kind, value)
    is_other = kind is bool and isinstance(value, (int, float)) and value not in (0, 1)
    if is_other or (takes_number(kind) and isinstance(value, str)):
        return f"{key}: {cut(value)} is not allowed; expected {type_name(kind)}{_decimal(value)}"
    if typing.get_origin(kind) is list and not isinstance(value, list):
        return f"{key}: {cut(value)} is not allowed; expected {type_name(kind)}{_as_list(key, value)}"
    if isinstance(value, int) and abs(value) > MAX_INT:
        return f"{key}: {cut(value)} is too large"
    try:
        (_check_type if isinstance(value, Hashable) else _check_type.__wrapped__)(typing.cast(Any, kind), value)
    except OmegaConfBaseException:
        return f"{key}: {cut(value)} is not allowed; expected {type_name(kind)}{_nearest(value, kind)}"
    if item.metadata["choices"] and not _is_choice(item, value):
        return f"{key}: {cut(value)} is not allowed; expected {allowed(item)}{_near(value, item.metadata['choices'])}"
    return _range_problem(key, item, value)


@functools.lru_cache(maxsize=4096, typed=True)
def _check_type(kind: Any, value: Any) -> None:
    """Raise OmegaConfBaseException for a value of another type. What it has seen costs nothing: many keys are alike."""
    OmegaConf.merge(_alone(kind), {"value": value})


@functools.cache
def _alone(kind: Any) -> Any:
    """Return a structured config of one field of this type; filling its whole section takes twenty times as long."""
    return OmegaConf.structured(dataclasses.make_dataclass("Alone", [("value", kind, field(default=MISSING))]))


def _unknown_key(key: str) -> str:
    """Return the message for an unknown key, with the one that was probably meant."""
    entry = ENTRY.match(key)
    hint = " or ".join(_meant_keys(key[:MAX_SHOWN])) or f"one of the sections {', '.join(section_classes())}"
    hint = hint.replace("subject.", f"{entry[0]}.") if entry else hint
    return f"{escaped(_shortened(key))}: unknown key; did you mean {hint}?"


def _meant_keys(key: str) -> list[str]:
    """Return the keys that may be meant: by another trainer's name, by the name alone, or by the spelling."""
    written = ENTRY.sub("subject", key).lower().replace("-", "_")
    section, _, name = written.rpartition(".")
    own_keys = [known for known in config_fields() if known.startswith(f"{section}.")]
    if known := SYNONYMS.get(written):
        return [known]
    if near := difflib.get_close_matches(written, own_keys, n=1, cutoff=0.85):  # a slip of the finger
        return near
    if known := SYNONYMS.get(name):
        return [known]
    if by_name := [known for known in config_fields() if known.split(".")[-1] == name]:
        return by_name
    return difflib.get_close_matches(written, [*config_fields(), *section_classes()], n=1, cutoff=0.5)


def _text_problem(value: Any) -> str | None:
    """Return what is wrong with a text by itself."""
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
    """Return a hint at the choice that was probably meant."""
    return _near(value, typing.get_args(kind) if typing.get_origin(kind) is Literal else ())


def _is_choice(item: dataclasses.Field[Any], value: Any) -> bool:
    """Return whether a value is one of a field's choices, or the name of a plug-in's row."""
    choices, table = item.metadata["choices"], item.metadata["table"]
    return value in choices or (table is not None and value in active().rows(table, choices))


def _near(value: Any, choices: typing.Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value)[:MAX_SHOWN], choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _is_text(kind: Any) -> bool:
    return str in (kind, *typing.get_args(kind))


def _as_list(key: str, value: Any) -> str:
    """Return how to write a text as a list, on the command line and in a file, where a list is expected."""
    if not isinstance(value, str) or len(value) > MAX_SHOWN or not value.isprintable():
        return ""
    item = value.replace('"', "'")
    return f"""; write '{key}=["{item}"]' on the command line, ["{item}"] in the file"""


def _decimal(value: Any) -> str:
    """Return the number that was probably meant by digits with zeros in front, which YAML 1.1 reads as octal."""
    return f"; did you mean {int(value)}?" if isinstance(value, str) and re.fullmatch(r"0+[1-9]\d{0,17}", value) else ""


def takes_number(kind: Any) -> bool:
    return bool({int, float} & {kind, *typing.get_args(kind)})


def as_number(kind: Any, value: Any) -> Any:
    """Return the number that a value stands for where a key of this type takes one, else the value as it is.

    YAML 1.1 reads 5e-6 and 1e3 as texts (5.0e-6 is a number); everyone means the numbers, and 1e3 steps are 1000.
    """
    if isinstance(value, bool) or not takes_number(kind):
        return value
    number = value
    if isinstance(value, str) and not re.match(r"[-+]?0\d", value.strip()):
        try:
            number = float(value)
        except ValueError:
            return value
    if not isinstance(number, float) or float in (kind, *typing.get_args(kind)):
        return number
    return int(number) if number.is_integer() else value


def cut(value: Any) -> str:
    """Return a value as a message shows it."""
    try:
        return _shortened(repr(value))
    except ValueError:  # a number of more than 4300 digits
        return "a number of thousands of digits"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
