"""The settings that the cells of a sweep were trained with, which its config may no longer have."""

import logging

from dreambooth.checkpointing import FoundState, newest_entry
from dreambooth.config import Change, Config, load_config
from dreambooth.errors import UserError
from dreambooth.run.folder import RunFolder
from dreambooth.run.resume import changed_settings
from dreambooth.sweep.cells import Cell
from dreambooth.sweep.folder import trained_config
from dreambooth.sweep.reading import Sweep

logger = logging.getLogger(__name__)


def config_of_run(sweep: Sweep, cell: Cell) -> Config:
    """Return the config that a cell was trained with; of one that has not begun, the one that it would be.

    So, with a warning, of one whose config cannot be read, as another version's may not be.
    """
    own = sweep.runs / cell.name / "config.yaml"
    if own.is_file():
        try:
            return load_config(own, sweep.run_overrides(cell))
        except UserError as error:
            logger.warning(f"{error}; what the sweep's config says is taken for it")
    return sweep.config_of(cell, trained_config(sweep))


def changes_since(sweep: Sweep, cell: Cell, config: Config) -> list[Change]:
    """Return the settings in which a cell's `config` differs from the one that it was trained with.

    Those that a run may change when it goes on do not count, nor do paths whose content was fingerprinted.
    """
    run = RunFolder(config)
    entry = newest_entry(run.state) or newest_entry(run.removed)
    if entry is None or not run.config.is_file():
        return []
    return changed_settings(config_of_run(sweep, cell), config, FoundState(run.state, entry))
