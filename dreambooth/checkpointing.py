"""The full training state on disk: whole or not there, and checked when it is read.

Beside a state lies a manifest with size, SHA-256 and step of it and of those that lay there before: it is written just
before the rename, so at any moment the file that is there is in it. The state before the last one stays as
`previous.ckpt`: where the last is damaged, a run goes on from that. Lightning's own writer copies the state in memory,
does not flush it, and on a full disk destroys the previous good one.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dreambooth.disk import GIB
from dreambooth.errors import UserError
from dreambooth.files import atomic_file, write_text

logger = logging.getLogger(__name__)

InputFingerprints = dict[str, str | dict[str, str]]  # input of a run -> its fingerprint, or for files one for each name
NUM_ENTRIES = 3  # in a manifest: the present state, its replacement, and one that a kill in between has left


@dataclass(frozen=True)
class StateEntry:
    """Describe one checkpoint: step, bytes, and fingerprints of the run's inputs beside its config."""

    step: int
    num_bytes: int
    sha256: str
    identity: InputFingerprints = field(default_factory=dict)


@dataclass(frozen=True)
class FoundState:
    """Hold a checkpoint that has been verified."""

    path: Path
    entry: StateEntry

    @property
    def step(self) -> int:
        return self.entry.step


class AtomicCheckpointIO(CheckpointIO):
    """Read and write Lightning's checkpoints, safe against kills, power cuts and full disks.

    found: the checkpoint to go on from, if it has been verified already: gigabytes are hashed once. previous: where the
    checkpoint goes that another one replaces; None: nowhere.
    """

    def __init__(
        self,
        fingerprints: InputFingerprints | None = None,
        found: FoundState | None = None,
        previous: Path | None = None,
    ) -> None:
        self.fingerprints = fingerprints or {}
        self.previous = previous
        self._good = {} if found is None else {found.path: found.entry}  # verified ones, by path

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint. Raises UserError where the disk is full; the previous one is then as it was."""
        path = Path(path)
        check_is_there(path.parent)
        replaced = self._good.get(path)
        keep = self.previous if replaced is not None else None  # a damaged state does not replace the one before
        make_room(path, num_bytes_of(checkpoint), keep)
        try:
            with atomic_file(path, keep) as file:
                hashing = _HashingWriter(file)
                torch.save(checkpoint, cast(IO[bytes], hashing))
                check_is_there(path.parent)  # the manifest would bring half of it back
                entry = StateEntry(
                    checkpoint["global_step"], hashing.num_bytes, hashing.digest.hexdigest(), self.fingerprints
                )
                if keep is not None and replaced is not None:
                    _add_entry(keep, replaced)
                _add_entry(path, entry)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
            check_is_there(path.parent)
            raise UserError(f"{path}: cannot be written ({error}); the previous state is untouched") from error
        self._good[path] = entry

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load tensors and plain containers. Raises UserError for a file that is not what its manifest says.

        The file is mapped, not read: beside the weights and moments that it fills there is no second copy of them.
        """
        path = Path(path)
        if path not in self._good:
            self._good[path] = find_state(path)
        return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=True)

    def remove_checkpoint(self, path: Any) -> None:
        for file in (Path(path), manifest_path(Path(path))):
            file.unlink(missing_ok=True)


def check_is_there(folder: Path) -> None:
    """Raise UserError where the folder of a run's states is gone."""
    if not folder.is_dir():
        raise UserError(f"{folder}: has vanished; bring the run's folder back, or start again")


def make_room(path: Path, num_bytes: int, expendable: Path | None) -> None:
    """Make sure that so many bytes can be written beside `path`; if need be, delete `expendable`, an older state.

    Raises UserError where they do not fit all the same.
    """
    folder = path.parent
    if shutil.disk_usage(folder).free < num_bytes and expendable is not None and expendable.is_file():
        logger.warning(f"{expendable}: deleted, there is no room for three states while one is written")
        expendable.unlink()
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"{path}: needs {num_bytes / GIB:.2f} GiB, and {free / GIB:.2f} GiB are free on this disk; the previous "
            "state is untouched. Free some, or move the run's folder to another disk (run.dir), and go on"
        )


def num_bytes_of(checkpoint: Mapping[str, Any]) -> int:
    """Return the bytes of a checkpoint's file, and a few more; a storage that several tensors share is written once."""
    tensors = [leaf for leaf in tree_leaves(checkpoint) if isinstance(leaf, Tensor)]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()) + 1024 * len(tensors) + 2**16


class _HashingWriter:
    """Pass bytes on to a file and hash them on the way: the state is read only once."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.num_bytes += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def manifest_path(path: Path) -> Path:
    return path.with_suffix(".json")


def find_newest(paths: Sequence[Path]) -> FoundState | None:
    """Return the first checkpoint that is what its manifest says, and warn of the damaged ones before it.

    None where there is no file. Raises UserError where there are, and all are damaged; they stay.
    """
    problems = []
    for path in paths:
        try:
            found = FoundState(path, find_state(path))
        except FileNotFoundError:
            problems.append(f"{path}: is not there")
        except UserError as error:
            problems.append(str(error))
        else:
            for problem in problems:
                logger.warning(f"{problem}; going on from {path.name}, step {found.step}")
            return found
    if not any(path.exists() for path in paths):
        return None
    raise UserError(
        "; ".join(problems) + ". No state is whole: restore one with its .json from a backup, or start again with "
        "run.resume=never, which keeps these files"
    )


def find_state(path: Path) -> StateEntry:
    """Return the manifest's entry for these very bytes.

    Raises UserError where there is none: the file is damaged.
    """
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    for entry in _read_entries(path):
        if entry.sha256 == found:
            return entry
    size, manifest = path.stat().st_size, manifest_path(path)
    raise UserError(f"{path}: damaged (of its {size:,} bytes the SHA-256 is not in {manifest.name})")


def newest_entry(path: Path) -> StateEntry | None:
    """Return what a checkpoint's manifest says of the newest one, whether or not its file is there."""
    return next(iter(_read_entries(path)), None)


def _add_entry(path: Path, entry: StateEntry) -> None:
    """Put an entry before those that a checkpoint's manifest has."""
    others = [known for known in _read_entries(path) if known.sha256 != entry.sha256]
    entries = [asdict(known) for known in (entry, *others)][:NUM_ENTRIES]
    sealed = [{**known, "seal": _seal(known)} for known in entries]
    write_text(manifest_path(path), json.dumps(sealed, indent=1) + "\n")


def _read_entries(path: Path) -> list[StateEntry]:
    """Return the entries of a checkpoint's manifest; none where it is damaged, as the seals of later versions show."""
    try:
        entries = json.loads(manifest_path(path).read_text(encoding="utf-8"))
        seals = [entry.pop("seal", None) for entry in entries]
        return [
            StateEntry(**entry)
            for entry, seal in zip(entries, seals, strict=True)
            if seal is None or seal == _seal(entry)
        ]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _seal(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
