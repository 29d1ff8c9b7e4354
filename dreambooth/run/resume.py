"""The rules of resuming: which state a run goes on from, and whether it is still the run that was begun.

Settings must be as they were, but for those that may change or whose change is accepted. Identity is content: a base,
an encoder, a folder of images is compared by its fingerprint. Its path says where to look, and may change with a note,
as when a run is moved to another folder or machine.
"""

import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator

from dreambooth.checkpointing import FoundState, InputFingerprints, find_newest, newest_entry
from dreambooth.config import Change, Config, field_of, load_config, restricted_changes, to_dict
from dreambooth.data.masks import is_folder
from dreambooth.errors import UserError
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.run.fingerprints import describe_change, fingerprint_names, keys_by_name
from dreambooth.run.folder import RunFolder
from dreambooth.subject_info import read_card

logger = logging.getLogger(__name__)

# What `--override` takes: the saved weights and moments fit, and so do the validations so far.
ACCEPTABLE_CHANGES = re.compile(
    r"subject(s\[\d+\])?\.(images|prompt|class_prompt)"
    r"|data\.(?!resolution)\w+"
    r"|prior\.\w+"
    r"|method\.dropout"
    r"|optim\.(?!name|identifier_lr)\w+"
    r"|loss\.(?!zero_terminal_snr)\w+"
    r"|train\.(batch_size|micro_batch_size|precision|gradient_checkpointing|compile|device|num_threads)"
    r"|validate\.images"
)
# Their product is how many samples a step sees; how it is made up changes rounding only.
STEP_SIZE = ("train.batch_size", "train.accumulate", "train.devices", "train.num_nodes")


# -------------------------------------------------------------------------------- settings


def found_state(run: RunFolder, config: Config, accepted_changes: Collection[str] = ()) -> FoundState | None:
    """Return the newest whole state to go on from, None to start at step 0.

    accepted_changes: keys of settings that may differ. Raises UserError if others do, or if no state is whole.
    """
    check_keys(accepted_changes)
    if config.run.resume == "never":
        return None
    state = find_newest((run.state, run.previous)) or removed_state(run)
    if state is None:
        return None
    accepted = {key for key in accepted_changes if ACCEPTABLE_CHANGES.fullmatch(key)}  # not a base or an encoder
    changes = [each for each in changed_settings(started_config(run), config, state) if each.key not in accepted]
    if changes:
        possible = [each.key for each in changes if ACCEPTABLE_CHANGES.fullmatch(each.key)]
        offer = f", or accept the changes ({' '.join(f'--override {key}' for key in possible)})"
        raise UserError(
            f"{run.path}: this run was started with other settings; set them back, choose another run.name, "
            f"or start again with run.resume=never{offer if possible else ''}:\n  " + "\n  ".join(map(str, changes))
        )
    return state


def removed_state(run: RunFolder) -> FoundState | None:
    """Return the last state of a finished run of which `clean --all` has left the manifest alone; else None."""
    entry = newest_entry(run.removed)
    return None if entry is None else FoundState(run.state, entry)


def check_goes_on(run: RunFolder, state: FoundState | None, is_done: bool) -> None:
    """Raise UserError if a finished run is to be made longer, but its states are removed."""
    if state is not None and not is_done and not state.path.is_file():
        raise UserError(
            f"{run.path}: finished at step {state.step}, and its states are removed (clean --all): it cannot be made "
            "longer; choose another run.name, or start again with run.resume=never, which keeps its model"
        )


def check_keys(accepted_changes: Iterable[str]) -> None:
    """Raise UserError for keys whose changed values no run can accept."""
    for key in accepted_changes:
        if field_of(key) is None:
            raise UserError(f"--override {key}: unknown key; use a key as the error message printed it")
        if not ACCEPTABLE_CHANGES.fullmatch(key) and not fingerprint_names(key):
            raise UserError(
                f"--override {key}: not possible, the saved weights, moments or scores do not fit another value; "
                "choose another run.name, or start again with run.resume=never"
            )


def changed_settings(before: Config, config: Config, state: FoundState) -> list[Change]:
    """Return the settings changed since the run had the config `before` that need to be accepted."""
    keeps_step_size = before.train.samples_per_step == config.train.samples_per_step
    return [
        change
        for change in restricted_changes(to_dict(before), to_dict(config))
        if not is_moved(change, state) and not (keeps_step_size and change.key in STEP_SIZE)
    ]


def started_config(run: RunFolder) -> Config:
    """Return the config that a run was begun with, or last went on with."""
    return load_config(run.config)


def is_moved(change: Change, state: FoundState) -> bool:
    """Return whether only a path changed: its content is compared by fingerprint instead (`check_fingerprints`)."""
    names, values = fingerprint_names(change.key), (change.before, change.after)
    if not names:
        return False
    if change.key not in ("model.config", "model.revision", "model.variant", "model.vae"):
        if None in values or (change.key == "data.mask" and not all(map(is_folder, values))):  # not two paths
            return False
        if os.path.realpath(change.before) == os.path.realpath(change.after):
            return True
    return any(name in state.entry.identity for name in names)


def moved_paths(before: Config, config: Config, state: FoundState) -> list[Change]:
    """Return the changed paths whose content is compared by fingerprint."""
    changes = restricted_changes(to_dict(before), to_dict(config))
    return [change for change in changes if is_moved(change, state)]


def is_finished(run: RunFolder, state: FoundState, config: Config, validation_log: ValidationLog) -> bool:
    """Return whether the run has taken all its steps, or was ended by validate.patience, and is exported."""
    card = read_card(run.model)
    if card is None or card.last_step != state.step:
        return False
    return state.step >= config.train.max_steps or validation_log.is_exhausted(config.validate.patience)


# -------------------------------------------------------------------------------- what it depends on


def check_fingerprints(
    state: FoundState | None, fingerprints: InputFingerprints, config: Config, accepted_changes: Collection[str] = ()
) -> None:
    """Raise UserError if the inputs of a run, beside its config, are no longer what they were."""
    for key, change in changed_inputs(state, fingerprints, config):
        is_acceptable = ACCEPTABLE_CHANGES.fullmatch(key) is not None
        if key not in accepted_changes or not is_acceptable:
            offer = f", accept the change (--override {key})" if is_acceptable else ""
            raise UserError(
                f"{change} (since this run was started); restore what was there, choose another run.name{offer}, "
                "or start again with run.resume=never"
            )


def changed_inputs(
    state: FoundState | None, fingerprints: InputFingerprints, config: Config
) -> Iterator[tuple[str, str]]:
    """Yield each input whose fingerprint changed: the key of its setting, and what changed, of images which ones."""
    before, keys = {} if state is None else state.entry.identity, keys_by_name(config)
    for name, now in fingerprints.items():
        if change := describe_change(before.get(name, now), now):
            yield keys[name], f"{name}: {change}"


def report_changes(before: Config, config: Config, state: FoundState) -> None:
    """Report the changes since the run had the config `before` that do not keep it from resuming."""
    for change in moved_paths(before, config, state):
        logger.info(f"{change.key}: {change.after} in place of {change.before}; the content is the same")
    changes = restricted_changes(to_dict(before), to_dict(config))
    divided = [str(change) for change in changes if change.key in STEP_SIZE]
    if divided and before.train.samples_per_step == config.train.samples_per_step:
        logger.info(f"{', '.join(divided)}: each step sees the same samples; results are equal but for rounding")
