"""The folder of a run: who may write there, what is found there to go on from, and whether it still fits.

One process at a time holds it, by a lock that ends with the process. A run goes on from the newest state that is whole,
with the settings and pictures that it was started with, but for those that may change or are changed on purpose.
"""

import hashlib
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from filelock import FileLock, Timeout

from dreambooth.config import PROVENANCE, Config, differences, field_of, load_config, subject_key, to_dict
from dreambooth.data.images import digest_files, list_images
from dreambooth.distributed import is_first
from dreambooth.errors import UserError
from dreambooth.export.subject_info import read_card
from dreambooth.families import Family, fingerprint
from dreambooth.files import remove_leftovers, write_text
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.training.checkpointing import FoundState, InputFingerprints, find_newest

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


class RunFolder:
    """Where everything of a run lies: <run.dir>/<run.name>."""

    def __init__(self, config: Config) -> None:
        self.path = Path(config.run.dir) / config.run.name
        self.config = self.path / "config.yaml"
        self.state = self.path / "state" / "last.ckpt"
        self.previous = self.path / "state" / "previous.ckpt"
        self.best = self.path / "state" / "best.ckpt"
        self.lock = self.path / "state" / "lock"
        self.model = self.path / "model"
        self.samples = self.path / "samples"
        self.logs = self.path / "logs"
        self.metrics = self.logs / "metrics.csv"
        self.scores = self.logs / "scores.jsonl"
        self.sessions = self.logs / "sessions.jsonl"
        self.prior = self.path / "prior"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those that training writes to."""
        return self.path, self.state.parent, self.logs, self.samples, self.prior


class RunLock:
    """A run's folder for this process alone, as far as there is one already; of several ranks the first claims it."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._lock: FileLock | None = None

    def __enter__(self) -> "RunLock":
        if self.run.lock.parent.is_dir():
            self.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def take(self) -> None:
        """Raises UserError where another process has the folder."""
        if not is_first():
            return
        self.release()
        lock = FileLock(self.run.lock, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            owner = self.run.lock.read_text(encoding="utf-8").strip()
            raise UserError(
                f"{self.run.path}: another process{owner and f' ({owner})'} trains in this folder; wait for it, stop "
                "it, or choose another run.name"
            ) from error
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


# -------------------------------------------------------------------------------- what is found


def found_state(run: RunFolder, config: Config, accepted_changes: Collection[str] = ()) -> FoundState | None:
    """The newest whole state to go on from, None to start at step 0.

    accepted_changes: keys of settings that may differ. Raises UserError if others do, or if no state is whole.
    """
    check_keys(accepted_changes)
    if config.run.resume == "never":
        return None
    state = find_newest((run.state, run.previous))
    if state is None:
        return None
    changes = [each for each in changed_settings(run, config) if each.split(": ")[0] not in accepted_changes]
    if changes:
        possible = [key for each in changes if ACCEPTABLE_CHANGES.fullmatch(key := each.split(": ")[0])]
        purpose = f", or take changes on purpose ({' '.join(f'--override {key}' for key in possible)})"
        raise UserError(
            f"{run.path}: this run was started with other settings; set them back, choose another run.name, "
            f"or start again with run.resume=never{purpose if possible else ''}:\n  " + "\n  ".join(changes)
        )
    return state


def check_keys(accepted_changes: Iterable[str]) -> None:
    """Raises UserError for keys that a run cannot go on without."""
    for key in accepted_changes:
        if field_of(key) is None:
            raise UserError(f"--override {key}: no such key; name one of those that the refusal lists, as it does")
        if not ACCEPTABLE_CHANGES.fullmatch(key):
            raise UserError(
                f"--override {key}: not possible, the saved weights, moments or scores do not fit another value; "
                "choose another run.name, or start again with run.resume=never"
            )


def changed_settings(run: RunFolder, config: Config) -> list[str]:
    """`key: old -> new` of what is not as the run was started and may not just change."""
    return differences(to_dict(load_config(run.config)), to_dict(config))


def is_finished(run: RunFolder, state: FoundState, config: Config, validation_log: ValidationLog) -> bool:
    card = read_card(run.model)
    if card is None or card.last_step != state.step:
        return False
    return state.step >= config.train.max_steps or validation_log.is_exhausted(config.validate.patience)


# -------------------------------------------------------------------------------- what a run depends on


def input_fingerprints(
    family: Family, photos: list[list[Path]], captions: list[list[str]], start: Path | None, config: Config
) -> InputFingerprints:
    """Return fingerprints of what the run depends on besides its config; of images one each, by name.

    photos, captions: of each subject. start: the file or folder that method.start names.
    """
    identity: InputFingerprints = {"base model": fingerprint(family)}
    for number, own in enumerate(photos):
        identity[f"pictures of subject {number + 1}" if number else "subject pictures"] = digests(own)
    if config.data.captions:
        identity["captions"] = hashlib.sha256("\n".join(chain(*captions)).encode()).hexdigest()
    if config.data.mask not in (None, "alpha"):
        identity["masks"] = digests(list_images(str(config.data.mask)))
    if config.prior.folder is not None:
        identity["class pictures"] = digests(list_images(config.prior.folder))
    if start is not None:
        identity["start"] = digest_files([start] if start.is_file() else sorted(start.glob("*.safetensors")))
    if config.validate.images is not None:
        identity["validation pictures"] = digests(list_images(config.validate.images))
    return identity


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its name."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def changed_identity(state: FoundState | None, identity: InputFingerprints, config: Config) -> dict[str, str]:
    """What is no longer what it was, by the key of its setting: what it is, and of pictures which ones."""
    keys = {
        "base model": "model.base", "captions": "data.captions", "masks": "data.mask", "class pictures": "prior.folder",
        "start": "method.start", "validation pictures": "validate.images",
    }  # fmt: skip
    for number in range(len(config.subjects)):
        name = f"pictures of subject {number + 1}" if number else "subject pictures"
        keys[name] = f"{subject_key(config, number)}.images"
    before = {} if state is None else state.entry.identity
    changes = {keys[name]: _change(before.get(name, now), now) for name, now in identity.items()}
    names = {key: name for name, key in keys.items()}
    return {key: f"{names[key]}: {change}" for key, change in changes.items() if change}


def _change(before: str | dict[str, str], now: str | dict[str, str]) -> str:
    """Empty where nothing has. A state of earlier versions has one digest for all pictures."""
    if isinstance(before, str) or isinstance(now, str):
        return "" if _joined(before) == _joined(now) else "changed"
    parts_of = {
        "gone": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "other content": [name for name in now if before.get(name, now[name]) != now[name]],
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in parts_of.items() if names)


def _joined(digests_of: str | dict[str, str]) -> str:
    """As `images.digest_files` has it."""
    if isinstance(digests_of, str):
        return digests_of
    digest = hashlib.sha256()
    for name, content in digests_of.items():
        own = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        digest.update(own + bytes.fromhex(content))
    return digest.hexdigest()


def check_fingerprints(
    state: FoundState | None, identity: InputFingerprints, config: Config, accepted_changes: Collection[str] = ()
) -> None:
    """Raises UserError if what the run depends on beside its config is no longer what it was."""
    for key, change in changed_identity(state, identity, config).items():
        if key not in accepted_changes:
            purpose = f", take the change on purpose (--override {key})" if ACCEPTABLE_CHANGES.fullmatch(key) else ""
            raise UserError(
                f"{change} (since this run was started); restore what was there, choose another run.name{purpose}, "
                "or start again with run.resume=never"
            )


# -------------------------------------------------------------------------------- opening it


def check_places(run: RunFolder) -> None:
    """Raises UserError where a file is in the place of a folder."""
    for folder in (*run.folders, run.model):
        there = _nearest(folder)
        if not there.is_dir():
            raise UserError(f"{there}: a file, and the run needs a folder there; move it, or choose another run.name")


def _nearest(folder: Path) -> Path:
    """What there is of a path."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def probe(run: RunFolder) -> None:
    """Raises UserError where the run could not write."""
    for there in dict.fromkeys(map(_nearest, (*run.folders, run.model))):
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(bytes(4096))
        except OSError as error:
            raise UserError(
                f"{there}: cannot be written to ({error.strerror}); mend that, or choose another run.dir"
            ) from error


def open_run(
    run: RunFolder,
    config: Config,
    run_lock: RunLock,
    validation_log: ValidationLog,
    state: FoundState | None,
    identity: InputFingerprints,
) -> None:
    """Make the folder ready to go on from `state`, and write the config with what it runs on.

    What came after `state` is dropped, and what a killed process left. With run.resume=never an old run of this name is
    set aside.
    """
    if not is_first():
        return
    if config.run.resume == "never" and run.config.is_file():
        run_lock.release()
        number = next(n for n in range(1, 10**6) if not run.path.with_name(f"{run.path.name}.old-{n}").exists())
        run.path.rename(run.path.with_name(f"{run.path.name}.old-{number}"))
    for folder in run.folders:
        folder.mkdir(parents=True, exist_ok=True)
    run_lock.take()
    run.lock.write_text(f"process {os.getpid()}", encoding="utf-8")
    clean(run)
    validation_log.cut()
    for grid in run.samples.glob("step-*.png"):
        if int(grid.stem.removeprefix("step-")) > (0 if state is None else state.step):
            grid.unlink()
    changes = [*changed_settings(run, config), *changed_identity(state, identity, config).values()] if state else []
    taken = [*_taken_before(run), *(f"step {state.step}: {change}" for change in changes if state)]
    about = {**provenance(), **({"overridden": list(dict.fromkeys(taken))} if taken else {})}
    write_text(run.config, yaml.safe_dump({**to_dict(config), PROVENANCE: about}, sort_keys=False))


def clean(run: RunFolder) -> None:
    """Remove what a killed process left half made."""
    for folder in (*run.folders, *run.prior.glob("*")):
        if not run.prior.is_symlink() or run.prior not in (folder, folder.parent):  # that may be others' too
            remove_leftovers(folder)


def _taken_before(run: RunFolder) -> list[str]:
    """The changes on purpose that the run's config tells of."""
    if not run.config.is_file():
        return []
    told = yaml.safe_load(run.config.read_text(encoding="utf-8")).get(PROVENANCE, {})
    return list(told.get("overridden", []))


def provenance() -> dict[str, Any]:
    """Versions and the git commit of this code."""
    packages = ("torch", "pytorch-lightning", "diffusers", "transformers", "omegaconf", "numpy", "pillow")
    here = Path(__file__).parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=here, capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "git_commit": described.stdout.strip() or "unknown",
    }
