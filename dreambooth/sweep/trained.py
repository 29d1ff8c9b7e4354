"""The settings that the cells of a sweep were trained with, which its config may no longer have."""

from dreambooth.checkpointing import FoundState, newest_entry
from dreambooth.config import Change, Config, load_config
from dreambooth.run.folder import RunFolder
from dreambooth.run.resume import changed_settings
from dreambooth.sweep.cells import Cell
from dreambooth.sweep.folder import trained_config
from dreambooth.sweep.reading import Sweep


def config_of_run(sweep: Sweep, cell: Cell) -> Config:
    """Return the config that a cell was trained with; of one that has not begun, the one that it would be."""
    own = sweep.runs / cell.name / "config.yaml"
    if not own.is_file():
        return sweep.config_of(cell, trained_config(sweep))
    return load_config(own, sweep.run_overrides(cell))


def changes_since(sweep: Sweep, cell: Cell, config: Config) -> list[Change]:
    """Return the settings in which a cell's `config` differs from the one that it was trained with.

    Those that a run may change when it goes on do not count, nor do paths whose content was fingerprinted.
    """
    run = RunFolder(config)
    entry = newest_entry(run.state) or newest_entry(run.removed)
    if entry is None or not run.config.is_file():
        return []
    return changed_settings(config_of_run(sweep, cell), config, FoundState(run.state, entry))
