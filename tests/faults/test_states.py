"""Damaged states: found by their manifest; the newest whole one is used and said, and the run comes to the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dreambooth.checkpointing import AtomicCheckpointIO, find_newest, find_state, make_room, manifest_path
from dreambooth.config import Config, load_config
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.run.folder import RunFolder


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose(path: Path) -> None:
    path.unlink()


def lose_the_manifest(path: Path) -> None:
    manifest_path(path).unlink()


def tear_the_manifest(path: Path) -> None:
    halve(manifest_path(path))


def flip_the_step_in_the_manifest(path: Path) -> None:
    manifest = manifest_path(path)
    manifest.write_text(manifest.read_text().replace('"step": ', '"step": 9'))


DAMAGES = (
    empty, truncate, halve, flip_a_bit, lose, lose_the_manifest, tear_the_manifest, flip_the_step_in_the_manifest,
)  # fmt: skip


def state(step: int) -> dict[str, object]:
    return {"global_step": step, "state_dict": {"weight": torch.full((1000,), float(step))}}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    """last.ckpt of step 3 and previous.ckpt of step 2."""
    last, previous = tmp_path / "state" / "last.ckpt", tmp_path / "state" / "previous.ckpt"
    last.parent.mkdir()
    writer = AtomicCheckpointIO({"base model": "abc"}, previous=previous)
    for step in (1, 2, 3):
        writer.save_checkpoint(state(step), last)
    return last, previous


def test_the_state_before_the_last_stays_whole(saved: tuple[Path, Path]) -> None:
    assert [find_state(path).step for path in saved] == [3, 2]
    assert sorted(path.name for path in saved[0].parent.iterdir()) == [
        "last.ckpt", "last.json", "previous.ckpt", "previous.json",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_state_is_found_and_said(
    saved: tuple[Path, Path], damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(saved[0])
    found = find_newest(saved)
    assert found is not None
    assert (found.path, found.step) == (saved[1], 2)
    said = caplog.text
    assert str(saved[0]) in said
    assert "going on from previous.ckpt, step 2" in said


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_no_state_is_whole_that_is_an_error_and_the_files_stay(
    saved: tuple[Path, Path], damage: Callable[[Path], None]
) -> None:
    damage(saved[0])
    halve(saved[1])
    before = {path: path.read_bytes() for path in saved[0].parent.iterdir()}
    with pytest.raises(UserError, match="No state is whole: restore one") as caught:
        find_newest(saved)
    assert all(str(path) in str(caught.value) for path in saved)
    assert {path: path.read_bytes() for path in saved[0].parent.iterdir()} == before


def test_a_damaged_state_does_not_drive_out_the_whole_one_before_it(saved: tuple[Path, Path]) -> None:
    last, previous = saved
    flip_a_bit(last)
    writer = AtomicCheckpointIO(found=find_newest(saved), previous=previous)
    writer.save_checkpoint(state(4), last)
    assert [find_state(path).step for path in saved] == [4, 2]
    writer.save_checkpoint(state(5), last)
    assert [find_state(path).step for path in saved] == [5, 4]


def test_too_small_a_disk_is_told_before_a_byte_is_written(
    saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The question to the disk is real; only its answer is made smaller."""
    last, previous = saved
    usage = shutil.disk_usage(last.parent)
    free = {"bytes": 1000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free["bytes"]))
    with pytest.raises(UserError, match=r"last\.ckpt: needs 0\.00 GiB, and 0\.00 GiB are free .* untouched"):
        AtomicCheckpointIO(found=find_newest(saved)).save_checkpoint(state(4), last)
    assert [find_state(path).step for path in saved] == [3, 2]
    with pytest.raises(UserError, match=r"needs 2\.00 GiB"):
        make_room(last, 2**31, None)

    class Freed:  # as a disk that the older state fills
        def __call__(self, path: object) -> object:
            return usage._replace(free=10**6 if not previous.exists() else 1000)

    monkeypatch.setattr(shutil, "disk_usage", Freed())
    AtomicCheckpointIO(found=find_newest(saved), previous=previous).save_checkpoint(state(4), last)
    assert "previous.ckpt: deleted" in caplog.text
    assert [find_state(path).step for path in saved] == [4, 3]


# -------------------------------------------------------------------------------- a whole run


def all_of(run: RunFolder) -> dict[str, object]:
    """Everything that a run comes to, but for when it was trained."""
    weights = {name: tensor.tolist() for name, tensor in torch.load(run.state)["state_dict"].items()}
    kept = [run.metrics, run.scores, *run.samples.iterdir(), *run.model.rglob("*.safetensors"), run.model / "README.md"]
    return {"weights": weights, **{str(path): path.read_bytes() for path in kept if path.is_file()}}


def test_a_run_goes_on_from_the_state_before_a_damaged_one_to_the_same_bits(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """Its figures, scores and pictures of later steps are taken back, and come again."""
    config.train.keep_states = True
    assert train(config) == 0
    run = RunFolder(config)
    whole = all_of(run)
    flip_a_bit(run.state)
    (run.samples / "step-000008.png").write_bytes(b"of a step that is taken again")
    caplog.clear()
    assert train(config) == 0
    said = caplog.text
    assert "last.ckpt: damaged" in said
    assert "going on from previous.ckpt, step 6" in said
    assert "at step 6 of 8" in said
    assert all_of(run) == whole


def test_a_run_without_a_whole_state_is_refused_and_nothing_is_touched(config_file: Path) -> None:
    config = load_config(
        config_file, ["train.max_steps=2", "train.save_every_steps=1", "optim.warmup_steps=0", "train.keep_states=true"]
    )
    train(config)
    run = RunFolder(config)
    halve(run.state)
    empty(run.previous)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="No state is whole"):
        train(load_config(config_file, ["train.max_steps=4", "optim.warmup_steps=0"]))
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_state_is_kept_once_where_disk_is_dear(config_file: Path) -> None:
    config = load_config(config_file, ["train.keep_previous=false", "train.max_steps=4"])
    assert train(config) == 0
    assert not RunFolder(config).previous.exists()
    assert len(json.loads(manifest_path(RunFolder(config).state).read_text())) == 2
