"""The state on disk: whole or not there, and told when it is not what was written."""

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch

from dreambooth.checkpointing import AtomicCheckpointIO, find_state, manifest_path
from dreambooth.errors import UserError
from dreambooth.files import atomic_file, write_text


def state(step: int) -> dict[str, object]:
    return {"global_step": step, "state_dict": {"weight": torch.full((1000,), float(step))}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "last.ckpt"
    path.parent.mkdir()
    AtomicCheckpointIO({"base model": "abc"}).save_checkpoint(state(3), path)
    return path


def test_a_state_comes_back_as_it_was_and_its_manifest_tells_of_it(saved: Path) -> None:
    loaded = AtomicCheckpointIO().load_checkpoint(saved)
    assert torch.equal(loaded["state_dict"]["weight"], torch.full((1000,), 3.0))
    entry = find_state(saved)
    assert (entry.step, entry.num_bytes, entry.identity) == (3, saved.stat().st_size, {"base model": "abc"})
    assert sorted(path.name for path in saved.parent.iterdir()) == ["last.ckpt", "last.json"]


def test_one_flipped_bit_is_told(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    saved.write_bytes(data)
    with pytest.raises(UserError, match=r"last\.ckpt: damaged"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_a_torn_file_is_told(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-50])
    with pytest.raises(UserError, match="damaged"):
        find_state(saved)


def test_a_kill_between_manifest_and_rename_leaves_the_old_state_usable(saved: Path) -> None:
    old = saved.read_bytes()
    AtomicCheckpointIO().save_checkpoint(state(4), saved)
    saved.write_bytes(old)  # the rename never happened; the manifest already knows the new file
    assert find_state(saved).step == 3
    AtomicCheckpointIO().save_checkpoint(state(5), saved)
    assert find_state(saved).step == 5
    for step in range(6, 10):
        AtomicCheckpointIO().save_checkpoint(state(step), saved)
    assert [entry["step"] for entry in json.loads(manifest_path(saved).read_text())] == [9, 8, 7], "it may not grow"


def test_a_failed_write_leaves_the_old_state_and_no_litter(saved: Path) -> None:
    unwritable = {**state(4), "callback": lambda: None}  # cannot be pickled: fails half-way through the file
    with pytest.raises(Exception, match=r"lambda|pickle"):
        AtomicCheckpointIO().save_checkpoint(unwritable, saved)
    assert find_state(saved).step == 3
    assert sorted(path.name for path in saved.parent.iterdir()) == ["last.ckpt", "last.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_costs_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def onto_a_full_disk(path: object, mode: str) -> object:
        return os.fdopen(os.open("/dev/full", os.O_WRONLY), mode)

    monkeypatch.setattr("dreambooth.files.open", onto_a_full_disk, raising=False)
    with pytest.raises(UserError, match=r"cannot be written .*; the previous state is untouched"):
        AtomicCheckpointIO().save_checkpoint(state(4), saved)
    monkeypatch.undo()
    assert find_state(saved).step == 3


def test_a_folder_that_vanishes_during_a_write_is_told_and_keeps_the_old_state(saved: Path) -> None:
    elsewhere = saved.parent.with_name("elsewhere")

    class Mover:
        def __reduce__(self):
            saved.parent.rename(elsewhere)
            return int, ()

    with pytest.raises(UserError, match=f"{saved.parent}: has vanished"):
        AtomicCheckpointIO().save_checkpoint({**state(4), "mover": Mover()}, saved)
    assert find_state(elsewhere / "last.ckpt").step == 3


def test_a_file_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return os.system, ("touch pwned",)

    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 1, "x": Payload()}, path)
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported|not allowed"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_an_atomic_file_is_not_there_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with atomic_file(path) as file:
        file.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    with contextlib.suppress(RuntimeError), atomic_file(path) as file:
        file.write(b"other")
        raise RuntimeError
    assert path.read_bytes() == b"half"
    write_text(path, "ü")
    assert path.read_text(encoding="utf-8") == "ü"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
