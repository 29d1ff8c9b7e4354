"""The names of the settings, `section.key`, with the field, default and help of each."""

import dataclasses
import functools
import re
import types
import typing
from typing import Any, Literal

from omegaconf import MISSING

from dreambooth.config.fields import AUTOMATIC, Config, SubjectConfig

ENTRY = re.compile(r"^subjects\[(\d+)\]")  # how the keys of the second subject begin: subjects[1]


def section_classes() -> dict[str, type]:
    """Return the sections of a file with their classes, in order."""
    classes = {item.name: typing.cast(Any, item.type) for item in dataclasses.fields(Config)}
    return {
        "subject" if name == "subjects" else name: SubjectConfig if name == "subjects" else kind
        for name, kind in classes.items()
    }


@functools.cache
def config_fields() -> dict[str, dataclasses.Field[Any]]:
    """Return every key, `section.key`, with its dataclass field (whose `type` is resolved)."""
    fields = {}
    for section, section_class in section_classes().items():
        hints = typing.get_type_hints(section_class)
        for item in dataclasses.fields(section_class):
            item.type = hints[item.name]
            fields[f"{section}.{item.name}"] = item
    return fields


def field_of(key: str) -> dataclasses.Field[Any] | None:
    """Return the field of a key, None for an unknown one; an entry of `subjects` has those of `subject`."""
    return config_fields().get(ENTRY.sub("subject", key))


def with_brackets(key: str) -> str:
    """Return a key as messages write it: subjects.1.images, as it may be typed, is subjects[1].images."""
    return re.sub(r"^subjects\.(\d+)\.", r"subjects[\1].", key)


def default_of(key: str) -> Any:
    """Return the default of a known key; `???` where it is required."""
    item = field_of(key)
    assert item is not None, key
    return _default(item)


def subject_key(config: Config, number: int) -> str:
    """Return the section of a subject's keys: `subject`, or of several `subjects[1]`."""
    return "subject" if len(config.subjects) == 1 else f"subjects[{number}]"


def describe_config() -> str:
    """Return all keys with type, default and help, a paragraph a section, as `train.py --help` prints them."""
    lines = []
    section = ""
    for key, item in config_fields().items():
        if key.split(".")[0] != section:
            section = key.split(".")[0]
            lines += ["", f"{section}: {section_classes()[section].__doc__}"]
        auto = " or auto" if key in AUTOMATIC else ""
        lines.append(f"  {key} ({allowed(item)}{auto}; {_default_name(item)})")
        lines.append(f"      {item.metadata['text']}")
    return "\n".join(lines[1:])


def allowed(item: dataclasses.Field[Any]) -> str:
    """Return what a field takes: its choices, or its type."""
    return " | ".join(item.metadata["choices"]) or type_name(item.type)


def type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " | ".join(typing.get_args(kind))
    if isinstance(kind, types.UnionType):
        return " or ".join("null" if part is type(None) else type_name(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return "list of texts" if str in typing.get_args(kind) else "list of whole numbers"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}[kind.__name__]


def _default_name(item: dataclasses.Field[Any]) -> str:
    if item.default is MISSING:
        return "required"
    default = _default(item)
    return f"default {'null' if default is None else str(default).lower() if isinstance(default, bool) else default}"


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default if item.default is not dataclasses.MISSING else typing.cast(Any, item.default_factory)()
