"""The full training state on disk: whole or not there, and checked when it is read.

Beside `last.ckpt` lies a manifest with the size, SHA-256 and step of the file, and of the one it replaces: it is
written just before the rename, so at any moment one of the two is the file that is there. A flipped or torn file is
told before it is used. Lightning's own writer copies the state in memory, does not flush it, and on a full disk
destroys the previous good one.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from dreambooth.errors import UserError
from dreambooth.files import atomic_file, write_text


@dataclass(frozen=True)
class StateEntry:
    """One checkpoint: its step, its bytes, and fingerprints of what the run depends on beside its config."""

    step: int
    num_bytes: int
    sha256: str
    identity: dict[str, str] = field(default_factory=dict)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's reader and writer of checkpoints, made safe against kills, power cuts and full disks.

    on_disk: the entry of the file that is there, if it has been verified already: gigabytes are hashed once.
    """

    def __init__(self, identity: dict[str, str] | None = None, on_disk: StateEntry | None = None) -> None:
        self.identity = identity or {}
        self._on_disk = on_disk

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises UserError where the disk is full; the previous checkpoint is then as it was."""
        path = Path(path)
        replaced = self._on_disk
        try:
            with atomic_file(path) as file:
                hashing = _HashingWriter(file)
                torch.save(checkpoint, cast(IO[bytes], hashing))
                entry = StateEntry(
                    checkpoint["global_step"], hashing.num_bytes, hashing.digest.hexdigest(), self.identity
                )
                entries = [asdict(known) for known in (entry, replaced) if known is not None]
                write_text(manifest_path(path), json.dumps(entries, indent=1) + "\n")
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
            raise UserError(f"{path}: cannot be written ({error}); the previous state is untouched") from error
        self._on_disk = entry

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Tensors and plain containers only. Raises UserError for a file that is not what its manifest says.

        The file is mapped, not read: beside the weights and moments that it fills there is no second copy of them.
        """
        self._on_disk = self._on_disk or find_state(Path(path))
        return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=True)

    def remove_checkpoint(self, path: Any) -> None:
        for file in (Path(path), manifest_path(Path(path))):
            file.unlink(missing_ok=True)


class _HashingWriter:
    """Passes bytes on to a file and hashes them on the way: the state is read only once."""

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


def find_state(path: Path) -> StateEntry:
    """The manifest's entry for these very bytes. Raises UserError where there is none: the file is damaged."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = manifest_path(path)
    entries = json.loads(manifest.read_text()) if manifest.is_file() else []
    for entry in entries:
        if entry["sha256"] == found:
            return StateEntry(**entry)
    raise UserError(
        f"{path}: damaged (its SHA-256 is not in {manifest.name}); restore the file from a backup, "
        "or start again with run.resume=never"
    )
