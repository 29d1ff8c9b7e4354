"""The plug-ins of this process. One that raises is named in a warning and left out, and nothing else stops."""

import functools
import logging
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dreambooth.errors import first_line
from dreambooth.plugins.finding import Candidate, find_candidates

CHANGING = ("change_request", "change_model", "change_latents", "change_image")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plugin:
    """Hold a plug-in that is loaded. where: its file, or its package."""

    name: str
    version: str | None
    where: str
    module: Any

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name} {self.version}"

    @property
    def source(self) -> str:
        """Return its module's file, or the folder of its package; empty for what has none."""
        file = getattr(sys.modules.get(getattr(self.module, "__name__", "")), "__file__", None) or ""
        return str(Path(file).parent) if Path(file).name == "__init__.py" else file


class Plugins:
    """Call the hooks of plug-ins, and hold the rows that they add to tables."""

    def __init__(self) -> None:
        self._plugins: dict[str, Plugin] = {}
        self._rows: dict[str, dict[str, tuple[Plugin, Any]]] = {}
        self._manager: Any = None
        self._is_loading = False
        self.is_loaded = False

    def load(self, candidates: Sequence[Candidate]) -> None:
        """Import plug-ins. What asks for rows meanwhile, because a plug-in imports it, gets none."""
        if not candidates:
            return
        import pluggy

        from dreambooth.plugins import hooks

        self._manager = pluggy.PluginManager(hooks.PROJECT)
        self._manager.add_hookspecs(hooks)
        self._is_loading = True
        for candidate in candidates:
            self._add(candidate, hooks.API)
        self._is_loading = False

    def __bool__(self) -> bool:
        return bool(self._plugins)

    @property
    def described(self) -> list[str]:
        """Return each plug-in with its version and where it lies, for `--help`."""
        return [f"{each} ({each.where})" for each in self._plugins.values()]

    @property
    def changing(self) -> list[dict[str, str | None]]:
        """Return name and version of the plug-ins that may change images, as recipes have them."""
        found = [each for each in self._plugins.values() if any(each in self._with(hook) for hook in CHANGING)]
        return [{"name": each.name, "version": each.version} for each in found]

    def has(self, *hooks: str) -> bool:
        """Return whether a plug-in has one of these hooks."""
        return any(self._with(hook) for hook in hooks)

    def change(self, hook: str, **given: Any) -> Any:
        """Return the first argument as the plug-ins have changed it, one after another."""
        name = next(iter(given))
        for plugin in self._with(hook):
            changed = self._try(plugin, hook, partial(self._changed, plugin, hook, given))
            given[name] = given[name] if changed is None else changed
        return given[name]

    def tell(self, hook: str, **given: Any) -> None:
        """Let the plug-ins look at something."""
        for plugin in self._with(hook):
            self._try(plugin, hook, partial(self._call, plugin, hook, given))

    def rows(self, table: str, own: Collection[str] = ()) -> Mapping[str, Any]:
        """Return the rows that plug-ins add to a table, by name. own: names that are taken."""
        if self._is_loading:
            return {}
        if self._plugins and table not in self._rows:
            self._rows[table] = {}
            for plugin in self._with("add_rows"):
                self._take_rows(plugin, table, own)
        return {name: row for name, (plugin, row) in self._rows.get(table, {}).items() if plugin.name in self._plugins}

    def named(self, table: str, name: str) -> str:
        """Return the plug-in of a row, for a message."""
        plugin = self._rows[table][name][0]
        return f"plug-in {plugin} ({plugin.where})"

    def try_row(self, table: str, name: str, act: Callable[[], Any]) -> Any:
        """Return what a plug-in's row does; None, with a warning, where it raises."""
        return self._try(self._rows[table][name][0], f"{table}: {name}", act)

    def blame(self, error: Exception) -> None:
        """Add a note to an exception that came through a plug-in's code; the traceback shows it."""
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        for plugin in self._plugins.values():
            if plugin.source and any(file.startswith(plugin.source) for file in files):
                error.add_note(f"raised in the plug-in {plugin} ({plugin.where}), which is no part of dreambooth")

    def warn_of_missing(self, recorded: Sequence[Mapping[str, Any]]) -> None:
        """Warn of plug-ins that an image was made with and that are not here, or of another version."""
        here = {each["name"]: each["version"] for each in self.changing}
        for each in recorded:
            name, version = each.get("name"), each.get("version")
            if here.get(name, "") == version:
                continue
            now = f"is {here[name]} here" if name in here else "is not here"
            made_with = name if version is None else f"{name} {version}"
            logger.warning(f"the image was made with the plug-in {made_with}, which {now}; this may be another image")

    def _add(self, candidate: Candidate, api: int) -> None:
        plugin = Plugin(candidate.name, candidate.version, candidate.where, None)
        self._plugins[plugin.name] = plugin
        module = self._try(plugin, "import", candidate.load)
        if module is None:
            return
        version = candidate.version or getattr(module, "__version__", None)
        plugin = Plugin(candidate.name, None if version is None else str(version), candidate.where, module)
        self._plugins[plugin.name] = plugin
        self._try(plugin, "registering", lambda: self._register(plugin, api))

    def _register(self, plugin: Plugin, api: int) -> None:
        """Register a plug-in. Raises ValueError for hooks that are not known, pluggy's error for their arguments."""
        needed = getattr(plugin.module, "DREAMBOOTH_API", api)
        if needed > api:
            raise ValueError(f"it needs version {needed} of the hooks, this program has {api}")
        self._manager.register(plugin.module, plugin.name)
        callers = self._manager.get_hookcallers(plugin.module) or []
        if not callers:
            raise ValueError("it has no function that is marked with hookimpl")
        if unknown := [caller.name for caller in callers if caller.spec is None]:
            known = sorted(name for name, caller in vars(self._manager.hook).items() if getattr(caller, "spec", None))
            raise ValueError(f"unknown hook {', '.join(unknown)}; known are {', '.join(known)}")

    def _with(self, hook: str) -> list[Plugin]:
        """Return the plug-ins with a hook, in the order in which pluggy calls them."""
        if self._manager is None:
            return []
        names = [each.plugin_name for each in reversed(getattr(self._manager.hook, hook).get_hookimpls())]
        return [self._plugins[name] for name in dict.fromkeys(names) if name in self._plugins]

    def _changed(self, plugin: Plugin, hook: str, given: Mapping[str, Any]) -> Any:
        """Return what a hook makes of the first argument; None where it changes nothing. Raises TypeError."""
        value, changed = next(iter(given.values())), self._call(plugin, hook, given)
        is_alike = changed is None or isinstance(changed, type(value)) or isinstance(value, type(changed))
        if not is_alike or (changed is not None and _shape(changed) != _shape(value)):
            raise TypeError(f"returned {type(changed).__name__} for {type(value).__name__}, or another shape")
        return changed

    def _call(self, plugin: Plugin, hook: str, given: Mapping[str, Any]) -> Any:
        others = [each for each in self._manager.get_plugins() if each is not plugin.module]
        results = self._manager.subset_hook_caller(hook, others)(**given)
        return results[0] if results else None

    def _take_rows(self, plugin: Plugin, table: str, own: Collection[str]) -> None:
        def ask() -> dict[str, Any]:
            return dict(self._call(plugin, "add_rows", {"table": table}) or {})

        rows = self._try(plugin, f"add_rows({table!r})", ask)
        for name, row in (rows or {}).items():
            if name in own or name in self._rows[table]:
                logger.warning(f"plug-in {plugin}: {table}: there is a {name} already; the plug-in's is not taken")
            else:
                self._rows[table][name] = (plugin, row)

    def _try(self, plugin: Plugin, what: str, act: Callable[[], Any]) -> Any:
        """Return what a call gives; None where it raises, after which the plug-in is left out."""
        try:
            return act()
        except Exception as error:  # noqa: BLE001 - other people's code raises anything, and must stop nothing
            self._plugins.pop(plugin.name, None)
            where = _last_line(error, plugin)
            logger.warning(
                f"plug-in {plugin} ({plugin.where}): {what}: {type(error).__name__}: {first_line(error)}{where}; "
                "it is left out from now on"
            )
            return None


def _last_line(error: BaseException, plugin: Plugin) -> str:
    """Return the last line of the plug-in that an exception passed, as ' (line 12)'; empty for none."""
    source = plugin.source or plugin.where
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename.startswith(source)]
    return f" (line {lines[-1]})" if lines else ""


def _shape(value: Any) -> Any:
    """Return a tensor's shape; None for anything else."""
    return getattr(value, "shape", None)


@functools.cache
def _of_process() -> Plugins:
    return Plugins()


def active() -> Plugins:
    """Return the plug-ins of this process, which are looked for and imported when they are first needed."""
    plugins = _of_process()
    if not plugins.is_loaded:
        plugins.is_loaded = True  # before they are imported: they may import what asks for them
        plugins.load(find_candidates())
    return plugins


def forget() -> None:
    """Look for plug-ins again when they are next needed."""
    _of_process.cache_clear()
