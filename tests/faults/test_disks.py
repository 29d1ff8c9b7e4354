"""Disks that are full, folders that cannot be written or vanish, files in the place of folders, two runs in one."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from crashes import leftovers, wait_for
from warm import Warm, loader_workers

from dreambooth.checkpointing import find_state
from dreambooth.cli import main
from dreambooth.config import Config, load_config
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.run.folder import RunFolder
from dreambooth.run.lock import RunLock

HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(99)
"""
SHORT = ("optim.warmup_steps=0", "optim.schedule=constant", "prior.source=none", "train.save_every_steps=2")


def everything(run: RunFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limits")
def test_a_state_that_cannot_be_written_ends_the_run_and_the_one_before_is_whole(
    config_file: Path, tmp_path: Path, warm: Warm
) -> None:
    """RLIMIT_FSIZE: no file of this process grows further, as on a full disk."""
    run = RunFolder(load_config(config_file))
    assert warm.run(["train", str(config_file), *SHORT, "train.max_steps=2"], tmp_path / "log") == 0
    before = {path: path.read_bytes() for path in run.state.parent.glob("*.*")}
    limit = {"RLIMIT_FSIZE": run.state.stat().st_size // 2}
    code = warm.run(["train", str(config_file), *SHORT, "train.max_steps=4"], tmp_path / "log2", limits=limit)
    said = (tmp_path / "log2").read_text()
    assert code == 2, said
    assert "last.ckpt: cannot be written" in said
    assert "Traceback" not in said
    assert before.items() <= {path: path.read_bytes() for path in run.state.parent.iterdir()}.items()
    assert not leftovers(run)
    assert warm.run(["train", str(config_file), *SHORT, "train.max_steps=4"], tmp_path / "log3") == 0
    assert find_state(run.state).step == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 160 MiB, where this may be made."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """To the last byte."""
    ballast = folder / "ballast"
    file = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for piece in (2**20, 2**12, 1):
        with contextlib.suppress(OSError):
            while os.write(file, bytes(piece)) == piece:
                pass
    os.close(file)
    return ballast


@contextlib.contextmanager
def kept_full(folder: Path) -> Iterator[None]:
    """Fill a disk, and fill it again whenever something is removed: an old state's room would do for the next one."""
    is_over = threading.Event()

    def fill_again() -> None:
        while not is_over.wait(0.01):
            fill(folder)

    filling = threading.Thread(target=fill_again)
    ballast = fill(folder)
    filling.start()
    try:
        yield
    finally:
        is_over.set()
        filling.join()
        ballast.unlink()


@pytest.mark.slow
def test_a_disk_that_fills_while_training_ends_the_run_with_a_line_and_it_goes_on_with_room(
    config_file: Path, small_disk: Path, tmp_path: Path, warm: Warm
) -> None:
    """Figures or a state may be written first: the states are whole, and nothing half made is left."""
    line = ["train", str(config_file), *SHORT, f"run.dir={small_disk}", "validate.every_steps=0"]
    run = RunFolder(load_config(config_file, [f"run.dir={small_disk}"]))
    warm.start([*line, "train.max_steps=1000"], tmp_path / "log")
    wait_for(run.previous.is_file)
    with kept_full(small_disk):
        code = warm.wait()
    said = (tmp_path / "log").read_text()
    assert code == 2, said
    assert re.search(r"needs [\d.]+ GiB, and [\d.]+ GiB are free|the disk is full|cannot be written", said), said
    assert "Traceback" not in said
    assert not leftovers(run)
    step = find_state(run.state).step
    assert warm.run([*line, f"train.max_steps={step + 3}"], tmp_path / "log2") == 0
    assert find_state(run.state).step == step + 3


def test_too_small_a_disk_is_told_with_need_and_free_bytes_before_anything_is_written(
    config_file: Path, small_disk: Path
) -> None:
    fill(small_disk)
    with pytest.raises(UserError, match=r"(GiB are free on this disk|cannot be written to)"):
        train(load_config(config_file, [*SHORT, f"run.dir={small_disk}"]))
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize(("problem", "told"), [("full", "the disk is full"), ("read-only", "cannot be written to")])
def test_a_report_that_has_no_place_is_told_before_the_run_is_read(
    problem: str, told: str, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The config would be refused if it were read; with --out the report goes elsewhere, so then it is."""
    run = small_disk / "run"
    run.mkdir()
    (run / "config.yaml").write_text("no: config")
    if problem == "full":
        fill(small_disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main(["report", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out {run}: {told} (")
    assert error.count("\n") == 1
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 2
    assert "config.yaml" in capsys.readouterr().err
    assert main(["report", str(run), "--out", str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "state", "logs", "samples", "prior", "model"])
def test_a_file_in_the_place_of_a_folder_is_told_before_anything_is_done(config_file: Path, name: str) -> None:
    config = load_config(config_file, SHORT)
    run = RunFolder(config)
    in_the_way = run.path / name
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("mine")
    with pytest.raises(UserError, match=rf"{in_the_way}: is a file where the run needs a folder"):
        train(config)
    assert in_the_way.read_text() == "mine"
    assert list(run.path.parent.rglob("*")) == list(dict.fromkeys((run.path, in_the_way)))


def test_a_run_does_not_take_the_folder_of_a_sweep(config_file: Path) -> None:
    config = load_config(config_file, SHORT)
    run = RunFolder(config)
    run.path.mkdir(parents=True)
    (run.path / "sweep.yaml").write_text("sweep: {name: mine}")
    run.config.write_text("the sweep's")
    with pytest.raises(UserError, match=rf"{run.path}: is the folder of a sweep.*choose another run.name"):
        train(config)
    assert run.config.read_text() == "the sweep's"
    assert len(list(run.path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_done(config_file: Path) -> None:
    said = r"/proc.*: cannot be written to \(.*\); repair that, or choose another run\.dir"
    with pytest.raises(UserError, match=said):
        train(load_config(config_file, [*SHORT, "run.dir=/proc/self/runs"]))


def test_an_unchangeable_folder_is_told(config_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", str(folder)], capture_output=True).returncode:
        pytest.skip("no chattr here")
    try:
        with pytest.raises(UserError, match=rf"{folder}: cannot be written to"):
            train(load_config(config_file, SHORT))
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)


def test_a_run_whose_folder_vanishes_ends_with_a_line_and_does_not_bring_back_half(
    config_file: Path, tmp_path: Path, warm: Warm
) -> None:
    run = RunFolder(load_config(config_file))
    warm.start(["train", str(config_file), "train.max_steps=500", "prior.source=none", "train.save_every_steps=5"],
               tmp_path / "log")  # fmt: skip
    wait_for(run.state.is_file)
    run.path.rename(tmp_path / "elsewhere")
    code, said = warm.wait(), (tmp_path / "log").read_text()
    assert code == 2, said
    assert re.search(r"has vanished( while training)?", said), said
    assert "Traceback" not in said
    assert not run.state.exists()
    find_state(tmp_path / "elsewhere" / "state" / "last.ckpt")


# -------------------------------------------------------------------------------- two in one folder


def test_a_second_run_in_a_folder_is_refused_and_the_lock_dies_with_its_owner(
    config_file: Path, tmp_path: Path, warm: Warm
) -> None:
    """Workers that outlive it for a moment do not hold the lock, however it dies."""
    more = ["train.max_steps=500", "prior.source=none", "data.num_workers=1", "validate.every_steps=0"]
    config = load_config(config_file, more)
    run = RunFolder(config)
    pid = warm.start(["train", str(config_file), *more], tmp_path / "log")
    wait_for(run.metrics.is_file)
    os.kill(pid, signal.SIGSTOP)
    before = everything(run)
    with pytest.raises(UserError, match=rf"another process \(process {pid}\) trains in this folder; wait for it"):
        train(config)
    assert everything(run) == before
    (worker,) = loader_workers(pid)
    os.kill(worker, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: can_be_claimed(run))
    assert Path(f"/proc/{worker}").exists(), "a worker was to outlive it"
    assert warm.wait() == -signal.SIGKILL


def test_starting_again_sets_aside_no_run_that_trains(config: Config) -> None:
    config.train.max_steps = 2
    train(config)
    config.run.resume = "never"
    other = [sys.executable, "-c", HOLD, str(RunFolder(config).lock)]
    with subprocess.Popen(other, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="trains in this folder"):
            train(config)
        owner.kill()
    assert sorted(path.name for path in RunFolder(config).path.parent.iterdir()) == ["run"]
    assert train(config) == 0


def can_be_claimed(run: RunFolder) -> bool:
    try:
        with RunLock(run):
            return True
    except UserError:
        return False
