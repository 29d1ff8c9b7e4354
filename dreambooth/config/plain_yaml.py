"""YAML as people write it: mappings, lists, texts, numbers.

No tags, which can run code; no aliases, which can grow a few lines to gigabytes; no key that silently hides another.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dreambooth.errors import UserError, escaped, first_line
from dreambooth.files import read_text

MAX_BYTES = 100_000  # a config has a few thousand
MAX_DEPTH = 16
FLOAT = re.compile(r"([-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")
# What a bare word is read as. Dates and merge keys (<<) stay texts, and so does what YAML 1.1 takes for a number and
# nobody else does: 0100 as octal (64), 1:30 in sixties (90), 0x10, 0b1 and 1_000.
KINDS = {"null": None, "bool": None, "int": re.compile(r"[-+]?(0|[1-9][0-9]*)$"), "float": FLOAT}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return PyYAML's table of how bare words are read, by first letter, restricted to `KINDS`."""
    table = {}
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
        kinds = [(tag, tag.rpartition(":")[2], pattern) for tag, pattern in resolvers]
        table[letter] = [(tag, KINDS[kind] or pattern) for tag, kind, pattern in kinds if kind in KINDS]
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, f"*{event.anchor} repeats another place; write the value out")
        if getattr(event, "tag", None) is not None:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            raise _refused(event, f"the tag {tag} is not read here; leave it out")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refused(event, f"more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refused(event: yaml.Event, reason: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=event.start_mark)


def read(path: Path) -> tuple[Any, list[str]]:
    """Return the content of a file, and its keys that are there twice, each with its lines. Raises UserError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{escaped(path)}: {path.stat().st_size} bytes are no such file; at most {MAX_BYTES}")
        return parse(read_text(path))
    except OSError as error:
        raise UserError(f"{escaped(path)}: cannot be read: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{escaped(path)}: not a YAML file: {_described(error)}") from error


def parse(text: str) -> tuple[Any, list[str]]:
    """Return the same of a text. Raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, []
        return loader.construct_document(node), list(_repeated(node))
    except (ValueError, OverflowError) as error:  # 0b_, a number of five thousand digits
        raise yaml.YAMLError(first_line(error)) from error
    finally:
        loader.dispose()


def _repeated(node: yaml.Node, path: str = "") -> Iterator[str]:
    """Yield the keys that a mapping has twice, with their full names."""
    children = node.value if isinstance(node, (yaml.MappingNode, yaml.SequenceNode)) else []
    lines: dict[str, int] = {}
    for number, child in enumerate(children):
        if not isinstance(child, tuple):
            yield from _repeated(child, f"{path}[{number}]")
            continue
        key, value = child
        name = f"{path}.{key.value}" if path else str(key.value)
        line = key.start_mark.line + 1
        if name in lines:
            yield f"{escaped(name)}: stands there twice, in lines {lines[name]} and {line}; leave one out"
        lines[name] = line
        yield from _repeated(value, name)


def _described(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    hint = " (indent with spaces)" if "'\\t'" in str(error.problem) else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {escaped(error.problem)}{hint}"
