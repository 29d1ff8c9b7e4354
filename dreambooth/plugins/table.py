"""A table of plain rows by name, to which plug-ins add theirs."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from dreambooth.plugins.active import active

Row = TypeVar("Row")


class Table(Mapping[str, Row]):
    """Map names to rows: this program's own, then those of plug-ins, which are asked when one is first needed.

    name: for `add_rows`. of_plugin: makes a row from what a plug-in returns; None: it is the row.
    """

    def __init__(self, name: str, own: Mapping[str, Row], of_plugin: Callable[[Any], Row] | None = None) -> None:
        self.name = name
        self.own = dict(own)
        self._of_plugin = of_plugin

    def __getitem__(self, name: str) -> Row:
        if name in self.own:
            return self.own[name]
        row = self._added()[name]
        return row if self._of_plugin is None else self._of_plugin(row)

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from self._added()

    def __len__(self) -> int:
        return len(self.own) + len(self._added())

    def _added(self) -> Mapping[str, Any]:
        return active().rows(self.name, self.own)
