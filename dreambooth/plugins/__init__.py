"""Plug-ins: other people's rows and hooks, from entry points and from the folder plugins/ (docs/extending.md).

`hooks` says what a plug-in can do, `finding` where it is looked for, `active` calls it, and a `Table` has its rows.
Where there is none, nothing is imported: neither pluggy nor importlib.metadata.
"""

from dreambooth.plugins.active import Plugins, active
from dreambooth.plugins.table import Table

__all__ = ["Plugins", "Table", "active"]
