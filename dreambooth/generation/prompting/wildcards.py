"""Wildcards in prompts: `{red|blue}` draws one of the alternatives, `__colours__` a line of the file colours.txt.

What the n-th wildcard of a prompt draws depends on n and the image's seed alone, so the same seed draws the same again.
Alternatives and lines may hold further wildcards, {subject} and {class}; `3::red` is drawn three times as often as
`blue`. {{ and }} stay what they are in every template, a brace. Nothing heavy is imported before something is drawn.

dynamicprompts, which has the same syntax and more, is no option here: its last release is of March 2024, it takes
{subject} for a choice of one, and draws from a generator of its own that a change elsewhere in the prompt shifts.
"""

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth.errors import UserError, escaped
from dreambooth.files import read_lines

FOLDER = Path("wildcards")  # where the files lie by default
FILE = r"(?<!\w)__[^\W_](?:[\w./-]*[^\W_])?__(?!\w)"
TOKEN = re.compile(rf"\{{\{{|\}}\}}|[{{}}|]|{FILE}|(?:(?!{FILE})[^{{}}|])+", re.DOTALL)
WEIGHT = re.compile(r"\s*(\d+(?:\.\d+)?)::")


@dataclass(frozen=True)
class Named:
    """Hold the name of a wildcard file: `__colours__` is `colours`."""

    name: str


@dataclass(frozen=True)
class Choice:
    """Hold alternatives, each with its weight."""

    options: tuple["Option", ...]


Node = str | Named | Choice
Nodes = tuple[Node, ...]


@dataclass(frozen=True)
class Option:
    """Hold one alternative: a text that may hold wildcards. weight: how often it is drawn, beside the others."""

    nodes: Nodes
    weight: float = 1.0


@dataclass
class Wildcards:
    """Read wildcard files from folders, the first one that has a file of that name."""

    folders: Sequence[Path] = (FOLDER,)
    _known: dict[str, tuple[Option, ...]] = field(default_factory=dict)

    def options(self, name: str) -> tuple[Option, ...]:
        """Return the lines of a file as alternatives. Raises UserError for a file that is missing or empty."""
        if name not in self._known:
            lines = [line.strip() for line in read_lines(self._find(name))]
            found = tuple(_option(parse(line)) for line in lines if line and not line.startswith("#"))
            if not found:
                raise UserError(f"__{name}__: {escaped(self._find(name))} has no lines")
            self._known[name] = found
        return self._known[name]

    def _find(self, name: str) -> Path:
        paths = [folder / f"{name}.txt" for folder in self.folders]
        for path in paths:
            if ".." not in Path(name).parts and path.is_file():
                return path
        there = {
            str(path.relative_to(folder).with_suffix("")) for folder in self.folders for path in folder.rglob("*.txt")
        }
        near = difflib.get_close_matches(name, there, n=1)
        hint = f"did you mean __{near[0]}__?" if near else "write one alternative a line, or name --wildcards DIR"
        raise UserError(f"__{name}__: there is no file {' or '.join(escaped(path) for path in paths)}; {hint}")


def parse(template: str) -> Nodes:
    """Split a template into texts and wildcards. Braces without | stay text: {subject}, and {{ for a brace."""
    return _Reader(TOKEN.findall(template)).read(inside=False)


class _Reader:
    """Read tokens from left to right."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def read(self, inside: bool) -> Nodes:
        """Return what comes up to the end or, inside of braces, up to the next | or } of them."""
        nodes: list[Node] = []
        num_escaped = 0  # {{ in this alternative whose }} is still to come
        while (token := self._next()) is not None:
            if inside and token == "}}" and not num_escaped:
                self._tokens[self._at : self._at + 1] = ["}", "}"]  # the ends of two choices
                break
            if inside and token in ("|", "}"):
                break
            self._at += 1
            num_escaped += (token == "{{") - (token == "}}")
            if token == "{":
                nodes += self._braces()
            elif re.fullmatch(FILE, token):
                nodes.append(Named(token[2:-2]))
            else:
                nodes.append(token)
        return _joined(nodes)

    def _next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _braces(self) -> Nodes:
        """Return what stands behind a {: a choice, or text where there is no | or nothing closes it."""
        alternatives = [self.read(inside=True)]
        while self._next() == "|":
            self._at += 1
            alternatives.append(self.read(inside=True))
        is_closed = self._next() is not None
        self._at += is_closed
        if is_closed and len(alternatives) > 1:
            return (Choice(tuple(map(_option, alternatives))),)
        between: list[Node] = []
        for number, nodes in enumerate(alternatives):
            between += (["|"] if number else []) + list(nodes)
        return ("{", *between, *(["}"] if is_closed else []))


def _joined(nodes: Sequence[Node]) -> Nodes:
    """Return the nodes with neighbouring texts as one."""
    joined: list[Node] = []
    for node in nodes:
        if joined and isinstance(node, str) and isinstance(joined[-1], str):
            joined[-1] += node
        else:
            joined.append(node)
    return tuple(joined)


def _option(nodes: Nodes) -> Option:
    """Return an alternative with the weight that it begins with, as in `3::red`."""
    first = nodes[0] if nodes else ""
    match = WEIGHT.match(first) if isinstance(first, str) else None
    if match is None or not isinstance(first, str):
        return Option(nodes)
    return Option((first[match.end() :], *nodes[1:]), float(match[1]))


def has_wildcards(template: str) -> bool:
    """Return whether a template has wildcards, so that images of other seeds may have another prompt."""
    return any(not isinstance(node, str) for node in parse(template))


def texts(template: str, wildcards: Wildcards) -> Iterator[str]:
    """Yield every text that a prompt may be put together from. Raises UserError for a file that cannot be used."""
    yield from _texts(parse(template), wildcards, ())


def _texts(nodes: Nodes, wildcards: Wildcards, within: tuple[str, ...]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
            continue
        if isinstance(node, Named) and node.name in within:
            raise UserError(f"__{node.name}__: its lines lead back to itself: {' -> '.join([*within, node.name])}")
        inner = (*within, node.name) if isinstance(node, Named) else within
        for option in wildcards.options(node.name) if isinstance(node, Named) else node.options:
            yield from _texts(option.nodes, wildcards, inner)


def example(template: str, wildcards: Wildcards) -> str:
    """Return a prompt that may be drawn, the first alternative of each. Raises UserError as `texts` does."""
    return _drawn(parse(template), wildcards, lambda: 0.0)


def draw(template: str, seed: int, wildcards: Wildcards) -> str:
    """Return a template with its wildcards replaced, by what this seed draws; {subject} and the like are left in.

    Raises UserError for a file that cannot be used.
    """
    nodes = parse(template)
    if all(isinstance(node, str) for node in nodes):
        return template
    from dreambooth.randomness import Randomness

    randomness, numbers = Randomness(seed), itertools.count()

    def number() -> float:
        """Return the next number of this prompt, in [0, 1)."""
        return float(randomness.generator("wildcard", next(numbers)).random())

    for _ in texts(template, wildcards):
        pass  # so that no file leads back to itself
    return _drawn(nodes, wildcards, number)


def _drawn(nodes: Nodes, wildcards: Wildcards, number: Callable[[], float]) -> str:
    pieces = []
    for node in nodes:
        if isinstance(node, str):
            pieces.append(node)
        else:
            options = wildcards.options(node.name) if isinstance(node, Named) else node.options
            pieces.append(_drawn(_pick(options, number()).nodes, wildcards, number))
    return "".join(pieces)


def _pick(options: Sequence[Option], number: float) -> Option:
    """Return the option at a part of the sum of all weights. number: in [0, 1)."""
    total = math.fsum(option.weight for option in options) or 1.0
    sums = itertools.accumulate(option.weight for option in options)
    return next((option for option, upto in zip(options, sums, strict=True) if number * total < upto), options[-1])
