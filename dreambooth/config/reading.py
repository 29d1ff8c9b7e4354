"""Read a YAML file and `section.key=value` overrides into a checked config, and write one back."""

import dataclasses
import functools
import json
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreambooth.config import plain_yaml
from dreambooth.config.fields import MAY_CHANGE, MAY_CHANGE_SECTIONS, PATHS, Config, SubjectConfig
from dreambooth.config.keys import ENTRY, config_fields, default_of, field_of, section_classes, with_brackets
from dreambooth.config.rules import joint_problems
from dreambooth.config.values import as_number, cut, is_automatic, problem_of
from dreambooth.errors import UserError, escaped
from dreambooth.home_folder import with_home, without_home

PROVENANCE = "provenance"  # the section that a run adds to its config.yaml; read back, it is ignored
MAX_REFERENCES = 8  # from one key to the next
MAX_KEYS = 1000
Fill = Callable[[Mapping[str, Any]], dict[str, Any]]
WITHOUT_NAME = {"style": ("class_noun",), "dataset": ("class_noun", "identifier")}  # by subject.kind
REFERENCE = re.compile(r"\$\{(\w+(?:\[\d+\])?\.\w+)\}")  # to another key: ${subject.class_noun}


def load_config(path: str | Path, overrides: typing.Sequence[str] = (), fill: Fill = lambda settings: {}) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, check everything.

    fill: returns the values of keys that say `auto` (`proposal.automatic`), from those of all keys. Raises UserError
    that lists every mistake, one a line.
    """
    raw, problems = _read_yaml(Path(path))
    settings, wrong = _flat(raw)
    problems += wrong
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            problems.append(f"{override!r} is no override: write section.key=value, e.g. train.max_steps=200")
        else:
            key = with_brackets(key)
            settings[key] = _override_value(key, text)
    if len(settings) > MAX_KEYS:
        raise UserError(f"{escaped(path)}: {len(settings)} keys are no config; there are {len(config_fields())}")
    filled = settings | fill({key: _resolved(settings, key, value) for key, value in settings.items()})
    settings = {key: _resolved(filled, key, value) for key, value in filled.items()}
    bad = {key: problem for key, value in settings.items() if (problem := problem_of(key, value))}
    unfilled = [key for key, value in settings.items() if is_automatic(key, value)]
    bad |= {key: f"{key}: auto is filled in where a run starts; name a value" for key in unfilled}
    problems += [*bad.values(), *_list_problems(settings), *_missing_keys(settings)]
    good = {key: value for key, value in settings.items() if key not in bad}
    if len(bad) == len(problems) and not any(_missing_keys(good)):  # other errors can be reported as well
        config = _build(good, path)
        problems += [problem for problem in joint_problems(config) if not any(key in problem for key in bad)]
    if problems:
        raise UserError(_listed(path, problems))
    return config


def raw_value(path: Path, key: str) -> Any:
    """Return the value of a key as a config file has it, unchecked; its default where the file or the key is not there.

    Checking the whole file takes a third of a second. Raises UserError for what is no YAML.
    """
    section, name = key.split(".")
    own = _raw_config(path, path.stat().st_mtime_ns).get(section) if path.is_file() else None
    return own.get(name, default_of(key)) if isinstance(own, dict) else default_of(key)


@functools.cache
def _raw_config(path: Path, mtime_ns: int) -> dict[str, Any]:
    found, _ = plain_yaml.read(path)
    return found if isinstance(found, dict) else {}


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return values by key as `section.key=value` each, which `load_config` reads back as they are."""
    found = []
    for key, value in values.items():
        item = field_of(key)
        is_text = isinstance(value, str | Path) and item is not None and item.type is str
        found.append(f"{key}={value if is_text else _as_yaml(value)}")
    return found


def _as_yaml(value: Any) -> str:
    """Return a value in a line. JSON's escapes of characters beyond four digits, such as emoji, are not YAML's."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)


def _read_yaml(path: Path) -> tuple[dict[str, Any], list[str]]:
    if not path.is_file():
        raise UserError(f"{escaped(path)}: there is no such config file; configs/ holds examples")
    raw, problems = plain_yaml.read(path)
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else type(raw).__name__
        raise UserError(f"{escaped(path)}: expected sections ({', '.join(section_classes())}), found {found}")
    return raw, problems


def _override_value(key: str, text: str) -> Any:
    """Return the value of an override: a text stays a text (007, no), anything else is read as YAML."""
    item = field_of(key)
    if item is not None and item.type is str:
        return text
    try:
        value, repeated = plain_yaml.parse(text)
        return text if repeated else value
    except yaml.YAMLError:
        return text


def _resolved(settings: dict[str, Any], key: str, value: Any, parents: tuple[str, ...] = ()) -> Any:
    """Replace each ${section.key} in a value by that key's value, whose type stays where there is nothing else.

    Other references stay as they are: an unknown key, one that refers to itself, ${oc.env:HOME} and the like.
    """
    if isinstance(value, list):
        return [_resolved(settings, key, each, parents) for each in value]
    if not isinstance(value, str) or len(parents) > MAX_REFERENCES:
        return value

    def referred(match: re.Match[str]) -> Any:
        other = _own_name(match[1], settings)
        if other in (*parents, key) or field_of(other) is None:
            return match[0]
        found = settings[other] if other in settings else default_of(other)
        return match[0] if found == MISSING else _resolved(settings, other, found, (*parents, key))

    whole = REFERENCE.fullmatch(value)
    return referred(whole) if whole else REFERENCE.sub(lambda match: str(referred(match)), value)


def _own_name(key: str, settings: dict[str, Any]) -> str:
    """Return a key by this file's sections: `subject.` is the first of several, `subjects[0].` the only one."""
    first = _subject_sections(settings)[0]
    return re.sub(r"^(subject|subjects\[0\])\.", f"{first}.", key)


def _without_list(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the entries of the list `subjects`, if there is one, as sections of their own, and the list's errors."""
    named = {str(name): values for name, values in raw.items()}
    if "subjects" not in named:
        return named, []
    entries = named.pop("subjects")
    if not isinstance(entries, list) or not entries:
        return named, [f"subjects: must be a list of entries with the keys of 'subject', found {cut(entries)}"]
    return named | {f"subjects[{number}]": entry for number, entry in enumerate(entries)}, []


def _subject_sections(keys: typing.Iterable[str]) -> list[str]:
    """Return the sections of the subjects: `subject`, or `subjects[0]`, `subjects[1]` ..."""
    numbers = sorted({int(match[1]) for key in keys if (match := ENTRY.match(key))})
    return [f"subjects[{number}]" for number in numbers] or ["subject"]


def _list_problems(settings: dict[str, Any]) -> typing.Iterator[str]:
    """Yield the errors of the list `subjects` itself."""
    sections = _subject_sections(settings)
    if sections == ["subject"]:
        return
    if own := [key for key in settings if key.startswith("subject.")]:
        yield f"subjects: stands in the place of the section 'subject'; there is {own[0]} as well: leave one out"
    if gaps := [name for number, name in enumerate(sections) if name != f"subjects[{number}]"]:
        yield f"{gaps[0]}: no such entry; they count from 0, and the next to add is subjects[{sections.index(gaps[0])}]"


def _missing_keys(settings: dict[str, Any]) -> typing.Iterator[str]:
    for key, item in config_fields().items():
        section, name = key.split(".")
        for own in _subject_sections(settings) if section == "subject" else [section]:
            if item.default is MISSING and f"{own}.{name}" not in {**_without_name(own, settings), **settings}:
                yield f"{own}.{name}: required ({item.metadata['text']})"


def _without_name(section: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a subject's section need not name, by key: a style has no class noun, a dataset no identifier too."""
    without = WITHOUT_NAME.get(str(settings.get(f"{section}.kind")), ())
    return {f"{section}.{name}": "" for name in without}


def _build(settings: dict[str, Any], path: str | Path) -> Config:
    """Merge checked settings over the defaults; every required key must be there."""
    nested: dict[str, dict[str, Any]] = {name: {} for name in section_classes()}
    unnamed = {key: value for own in _subject_sections(settings) for key, value in _without_name(own, settings).items()}
    for key, value in {**unnamed, **settings}.items():
        section, name = key.split(".")
        own = nested.setdefault(section, {})
        if ENTRY.sub("subject", key) in PATHS and isinstance(value, str):
            value = with_home(value)
        own[name] = as_number(typing.cast(Any, field_of(key)).type, value)
    try:
        entries = [_structured(SubjectConfig, nested[name]) for name in _subject_sections(settings)]
        sections = {
            name: _structured(kind, nested[name]) for name, kind in section_classes().items() if name != "subject"
        }
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    return Config(**sections, subjects=entries)


def _structured(kind: type, values: dict[str, Any]) -> typing.Any:
    """Return a section with its values; the types are checked by OmegaConf."""
    return OmegaConf.to_object(OmegaConf.merge(_defaults(kind), values))


@functools.cache
def _defaults(kind: type) -> typing.Any:
    return OmegaConf.structured(kind)


def _listed(path: str | Path, problems: list[str]) -> str:
    return f"{escaped(path)}: {problems[0]}" if len(problems) == 1 else "\n  ".join([f"{escaped(path)}:", *problems])


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as a file has it, in plain containers: one subject is the section `subject`, home is `~`.

    Other paths stay whole: a run has to find its base and its images again.
    """
    sections = dataclasses.asdict(config)
    for section, values in sections.items():
        for own in values if section == "subjects" else [values]:
            prefix = "subject" if section == "subjects" else section
            paths = [name for name, value in own.items() if f"{prefix}.{name}" in PATHS and isinstance(value, str)]
            own.update({name: without_home(own[name]) for name in paths})
    if len(config.subjects) > 1:
        return sections
    return {
        "subject" if name == "subjects" else name: values[0] if name == "subjects" else values
        for name, values in sections.items()
    }


@dataclasses.dataclass(frozen=True)
class Change:
    """Hold a setting that differs between two configs; None where one has no such key."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before!r} -> {self.after!r}"


def restricted_changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Return the settings that differ between two configs (`to_dict`) and may not change within a run."""
    before, after = flatten(old), flatten(new)
    return [
        Change(key, before.get(key), after.get(key))
        for key in {**after, **before}
        if before.get(key) != after.get(key) and key not in MAY_CHANGE and key.split(".")[0] not in MAY_CHANGE_SECTIONS
    ]


def flatten(raw: dict[str, Any], path: str = "config") -> dict[str, Any]:
    """Return values by "section.key": {"train": {"max_steps": 3}} gives {"train.max_steps": 3}.

    Entries of the list `subjects` are `subjects[0]` ... Raises UserError, which names `path`, for what is no section.
    """
    flat, problems = _flat(raw)
    if problems:
        raise UserError(_listed(path, problems))
    return flat


def _flat(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return values by "section.key", and the errors of sections."""
    flat: dict[str, Any] = {}
    sections, problems = _without_list(raw)
    for section, values in sections.items():
        if section == PROVENANCE:
            continue
        is_section = section in section_classes() or ENTRY.fullmatch(section)
        if isinstance(values, dict) and is_section:
            flat |= {f"{section}.{name}": value for name, value in values.items()}
        elif is_section:
            problems.append(f"{section}: a section must hold keys, found {cut(values)}")
        else:
            flat[section] = values
    return flat, problems
