"""Find and remove what a run's folder can do without: a finished run does, and so does `python -m dreambooth clean`.

A run goes on from state/last.ckpt. Beside it state/previous.ckpt is there in case that one is damaged, and
state/best.ckpt holds the step to keep. Where that is the last step, last.ckpt has the same weights, and
`restore_best_file` writes best.ckpt again from there. So a finished run can be made longer, exactly, from last.ckpt
and, if the best step came earlier, best.ckpt.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth import files
from dreambooth.checkpointing import AtomicCheckpointIO, FoundState, manifest_path
from dreambooth.config import Config, load_config
from dreambooth.disk import size_in_words
from dreambooth.errors import ModelError, UserError, escaped
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.run.folder import RunFolder, own_folders
from dreambooth.run.resume import found_state, is_finished

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dispensable:
    """Hold a file or folder that a run can do without, and why."""

    path: Path
    reason: str

    @property
    def num_bytes(self) -> int:
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(path.stat().st_size for path in files if path.is_file())

    def remove(self) -> None:
        """Remove it; of a state its manifest too."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            AtomicCheckpointIO().remove_checkpoint(self.path)


@dataclass(frozen=True)
class Cleaning:
    """Hold what a run has come to, in words, and what it can do without."""

    progress: str
    found: list[Dispensable]
    is_finished: bool

    @property
    def num_bytes(self) -> int:
        return sum(each.num_bytes for each in self.found)


def opened_run(folder: Path) -> tuple[RunFolder, Config]:
    """Return a run by its folder, whatever it was called when it was begun. Raises ModelError for what is no run."""
    if not (folder / "config.yaml").is_file() or not (folder / "state").is_dir():
        raise ModelError(f"{escaped(folder)}: no run's folder (it has no config.yaml with a state/ beside it)")
    path = folder.resolve()
    config = load_config(folder / "config.yaml", [f"run.dir={path.parent}", f"run.name={path.name}", "run.resume=auto"])
    return RunFolder(config), config


def plan_cleaning(run: RunFolder, config: Config, takes_all: bool) -> Cleaning:
    """Return what a run can do without. takes_all: of a finished run also what making it longer needs.

    Raises UserError where no state is whole, and for `takes_all` of a run that has not finished.
    """
    state = found_state(run, config)
    if state is None:
        return Cleaning("no state yet", [*leftovers(run)], is_finished=False)
    validation_log = ValidationLog(run.scores, last_step=state.step)
    is_done = is_finished(run, state, config, validation_log)
    progress = f"finished at step {state.step}" if is_done else f"at step {state.step} of {config.train.max_steps}"
    if takes_all and not is_done:
        raise UserError(
            f"--all: {escaped(run.path)} has not finished ({progress}), and goes on from its states; let it finish, or "
            "remove the whole folder"
        )
    found = [*leftovers(run)]
    if takes_all:
        found += all_states(run)
    elif state.path == run.state:  # else that one is damaged, and the run goes on from the one before
        found += idle_states(run, state.step, validation_log if is_done else None)
    return Cleaning(progress, [each for each in found if each.path.exists()], is_done)


def leftovers(run: RunFolder) -> Iterator[Dispensable]:
    """Yield what a killed process has left half written."""
    for folder in own_folders(run):
        for path in files.leftovers(folder):
            yield Dispensable(path, "left half written by a process that was killed")


def idle_states(run: RunFolder, last_step: int, finished: ValidationLog | None) -> Iterator[Dispensable]:
    """Yield the states beside a whole last.ckpt that a run does not go on from.

    finished: the validation log of a run that has finished; None for one that has not.
    """
    yield Dispensable(run.previous, "the state before the last one, which is whole")
    if finished is not None and (finished.best is None or finished.best.step == last_step):
        yield Dispensable(run.best, "the best step's weights, which last.ckpt has too")


def all_states(run: RunFolder) -> Iterator[Dispensable]:
    """Yield all that only a longer run would need."""
    yield Dispensable(run.state, "the last state: without it the run cannot be made longer")
    yield Dispensable(run.previous, "the state before the last one")
    yield Dispensable(run.best, "the best step's weights, which model/ has in its number format")
    yield Dispensable(run.steps, "the weights of validations, for a grid of steps")
    if not run.prior.is_symlink():  # that may be other runs' too
        yield Dispensable(run.prior, "class images as latents")


def remove(run: RunFolder, found: Iterable[Dispensable]) -> None:
    """Remove files and folders of a run. By the last state's manifest, which stays, it knows that it has finished."""
    for each in found:
        if each.path == run.state:
            files.write_text(run.removed, manifest_path(run.state).read_text(encoding="utf-8"))
        each.remove()


def remove_idle_states(run: RunFolder, config: Config, last_step: int, validation_log: ValidationLog) -> None:
    """Remove the states of a finished run that making it longer does not need, and say so."""
    if config.train.keep_states:
        return
    found = [each for each in idle_states(run, last_step, validation_log) if each.path.is_file()]
    if found:
        names = " and ".join(str(each.path.relative_to(run.path)) for each in found)
        size = size_in_words(sum(each.num_bytes for each in found))
        remove(run, found)
        logger.info(f"removed {names}, {size}: a longer run does not need them (train.keep_states=true keeps them)")


def restore_best_file(run: RunFolder, state: FoundState, validation_log: ValidationLog) -> None:
    """Write state/best.ckpt again from the state of the best step, where a finished run has let go of it."""
    best = validation_log.best
    if best is None or best.step != state.step or run.best.is_file():
        return
    saved = AtomicCheckpointIO(found=state).load_checkpoint(state.path)
    AtomicCheckpointIO().save_checkpoint({"global_step": state.step, "state_dict": weights_of(saved)}, run.best)


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights that validations look at in a state, or in a file of weights alone."""
    weights = {name.removeprefix("trained."): weight for name, weight in checkpoint["state_dict"].items()}
    if "average" in checkpoint:  # in the same order
        return dict(zip(weights, checkpoint["average"]["shadow_params"], strict=True))
    return weights
