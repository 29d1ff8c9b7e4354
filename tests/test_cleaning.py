"""`clean`, and what a finished run lets go of by itself: never what the run needs to go on."""

import shutil
from pathlib import Path

import pytest
import torch

from dreambooth.checkpointing import AtomicCheckpointIO, FoundState, find_state
from dreambooth.cli import main
from dreambooth.config import Config, load_config
from dreambooth.disk import size_in_words
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.metrics.selection import Anchors, Quality
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord
from dreambooth.run.cleaning import idle_states, opened_run, plan_cleaning, remove_idle_states, restore_best_file
from dreambooth.run.folder import RunFolder
from dreambooth.run.lock import RunLock

ANCHORS = Anchors(real=1.0, dino=0.0, pres=0.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> Path:
    """A run of 4 steps with all its states; no test changes it."""
    from conftest import CONFIG

    folder = tmp_path_factory.mktemp("cleaning")
    (folder / "config.yaml").write_text(CONFIG.format(runs=folder / "runs", base=tiny_base, pictures=pictures))
    quick = ["prior.source=none", "validate.every_steps=0", "optim.schedule=constant", "train.ema_decay=0.9"]
    config = load_config(folder / "config.yaml", [*quick, "train.max_steps=4", "train.keep_states=true"])
    assert train(config) == 0
    return RunFolder(config).path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / "run"))


def longer(run: Path) -> Config:
    return load_config(run / "config.yaml", [f"run.dir={run.parent}", "train.max_steps=6"])


def make_unfinished(run: Path) -> None:
    """Let the run be one that was to take 8 steps."""
    shutil.rmtree(run / "model")
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace("max_steps: 4", "max_steps: 8"))


def files(run: Path) -> set[str]:
    return {path.name for path in (run / "state").iterdir()} - {"lock"}


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["clean", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def scored(run: RunFolder, *qualities: float) -> ValidationLog:
    """A validation log with these qualities, a validation each two steps."""
    log = ValidationLog(run.scores)
    for number, quality in enumerate(qualities):
        anchors = None if number else ANCHORS
        log.add(
            ValidationRecord(
                2 * number, 0.1, {"dino": [quality] * 2, "pres": [0.0] * 2}, Quality(quality, 1.0, 1.0), anchors
            )
        )
    return log


def test_it_tells_what_would_be_freed_and_frees_it_only_when_told_to(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = said(capsys, run)
    size = (run / "state" / "previous.ckpt").stat().st_size
    assert "finished at step 4" in told
    assert "state/previous.ckpt: the state before the last one" in told
    assert "add --yes" in told
    assert f" {size_in_words(size)}  state/previous.ckpt" in told
    assert (run / "state" / "previous.ckpt").is_file()
    (run / "samples" / ".half.png.123").write_bytes(b"half")
    assert "freed" in said(capsys, run, "--yes")
    assert files(run) == {"last.ckpt", "last.json"}
    assert not (run / "samples" / ".half.png.123").exists()
    assert "nothing to free" in said(capsys, run, "--yes")


def test_a_run_that_has_not_finished_keeps_what_it_goes_on_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_unfinished(run)
    told = said(capsys, run, "--yes")
    assert "at step 4 of 8" in told
    assert files(run) == {"last.ckpt", "last.json"}
    assert main(["clean", str(run), "--all", "--yes"]) == 2
    assert "has not finished (at step 4 of 8)" in capsys.readouterr().err
    assert find_state(run / "state" / "last.ckpt").step == 4


def test_the_state_before_a_damaged_one_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_unfinished(run)
    (run / "state" / "last.ckpt").write_bytes(b"torn")
    assert "nothing to free" in said(capsys, run, "--yes")
    assert find_state(run / "state" / "previous.ckpt").step == 2


def test_a_run_without_its_states_is_still_finished_and_cannot_be_made_longer(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "state/last.ckpt" in said(capsys, run, "--all", "--yes")
    assert files(run) == {"removed.json"}
    assert main(["train", str(run / "config.yaml"), f"run.dir={run.parent}"]) == 0
    assert "finished at step 4" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"its states are removed \(clean --all\): it cannot be made longer"):
        train(longer(run))
    with pytest.raises(UserError, match=r"optim\.lr: 0\.001 -> 0\.5"):
        train(load_config(run / "config.yaml", [f"run.dir={run.parent}", "optim.lr=0.5"]))
    assert (run / "model" / "model_index.json").is_file()


def test_a_run_that_is_in_use_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(opened_run(run)[0]):
        assert main(["clean", str(run), "--yes"]) == 2
    assert "another process" in capsys.readouterr().err
    assert (run / "state" / "previous.ckpt").is_file()


def test_what_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", str(tmp_path)]) == 3
    assert "no run's folder" in capsys.readouterr().err


# -------------------------------------------------------------------------------- the best step


@pytest.fixture
def best_is_last(run: Path) -> tuple[RunFolder, Config, ValidationLog]:
    """The run with scores by which the last step is the best, and its weights as a validation saves them."""
    folder, config = opened_run(run)
    saved = torch.load(folder.state, weights_only=True)
    names = [name.removeprefix("trained.") for name in saved["state_dict"]]
    weights = dict(zip(names, saved["average"]["shadow_params"], strict=True))
    AtomicCheckpointIO().save_checkpoint({"global_step": 4, "state_dict": weights}, folder.best)
    return folder, config, scored(folder, 0.0, 0.5, 0.9)


def test_best_weights_that_the_last_state_has_too_are_let_go_and_come_back_as_they_were(best_is_last) -> None:
    run, config, log = best_is_last
    before = torch.load(run.best, weights_only=True)
    config.train.keep_states = False
    remove_idle_states(run, config, 4, log)
    assert files(run.path) == {"last.ckpt", "last.json"}
    restore_best_file(run, FoundState(run.state, find_state(run.state)), log)
    after = torch.load(run.best, weights_only=True)
    assert find_state(run.best).step == 4
    assert list(after["state_dict"]) == list(before["state_dict"])
    assert all(torch.equal(value, before["state_dict"][name]) for name, value in after["state_dict"].items())


def test_best_weights_of_an_earlier_step_stay(best_is_last) -> None:
    run, _, _ = best_is_last
    run.scores.unlink()
    log = scored(run, 0.0, 0.9, 0.2)
    assert log.best is not None
    assert log.best.step == 2
    assert [each.path for each in idle_states(run, 4, log)] == [run.previous]
    assert run.best not in [each.path for each in plan_cleaning(*opened_run(run.path), takes_all=False).found]


def test_states_are_kept_where_that_is_wished(best_is_last) -> None:
    run, config, log = best_is_last
    before = files(run.path)
    remove_idle_states(run, config, 4, log)
    assert config.train.keep_states
    assert files(run.path) == before
