"""`python -m dreambooth check CONFIG`: what is wrong is told before a run, all of it, and by the checks of training."""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from dreambooth.build import check_disk, disk_need
from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.errors import DreamBoothError, UserError
from dreambooth.preflight.check import Findings, check
from dreambooth.preflight.memory_plan import Planner
from dreambooth.run.folder import RunFolder


def by_subject(findings: Findings, level: str) -> dict[str, str]:
    """Return what was said of each thing at this level."""
    return {finding.about: finding.text for finding in findings if finding.level == level}


def test_a_sound_run_is_found_so_and_nothing_is_left_behind(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(config_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    subjects = ["config", "run folder", "images", "base model", "prompts", "disk", "time", "memory"]
    assert [line.split("  ")[0] for line in lines] == ["ok"] * len(subjects)
    assert [line[10:24].strip() for line in lines] == subjects
    assert not RunFolder(load_config(config_file)).path.parent.exists()


def test_a_mistake_in_the_config_is_told_whole(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(config_file), "train.max_step=3", "data.resolution=60"]) == 2
    told = capsys.readouterr().out
    assert told.startswith("error     config")
    assert "train.max_step: unknown key; did you mean train.max_steps?" in told
    assert "data.resolution: 60 is not a multiple of 8" in told


def test_an_error_does_not_hide_another_and_the_worst_gives_the_code(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    findings = check(load_config(config_file, ["subject.images=nowhere", "model.base=nobody/nothing"]))
    errors = by_subject(findings, "error")
    assert errors.keys() == {"run folder", "images", "base model"}
    assert "nowhere: no such folder" in errors["images"]
    assert findings.exit_code == 3


def test_what_is_no_error_is_a_warning_with_its_remedy(config_file: Path, pictures: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(pictures, tmp_path / "mine"))
    shutil.copy(mine / "0.png", mine / "again.png")
    long = "validate.prompts=['{subject}" + " very" * 40 + "']"
    overrides = [f"subject.images={mine}", "subject.identifier=rumpelstilz", "data.resolution=128", long]
    findings = check(load_config(config_file, overrides))
    assert findings.exit_code == 0
    told = "\n".join(f"{finding.about}: {finding.text}" for finding in findings if finding.level == "warning")
    for part in (
        "images: smaller than data.resolution (128)",
        "images: (nearly) the same image twice",
        "0.png and again.png",
        "prompts: subject.identifier 'rumpelstilz' is",
        "prompts: validate.prompts",
    ):
        assert part in told
    assert "prompts" not in by_subject(findings, "ok")


@pytest.mark.parametrize(
    "override",
    [
        "subject.images=nowhere",
        "model.base=nobody/nothing",
        "method.name=lara",
        "prior.scheduler=dimm",
        "data.captions=true",
        "method.targets=[nothing]",
        "validate.dino=./nowhere",
        "method.start=nowhere",
        "loss.zero_terminal_snr=true",
        "subject.prompt=" + "very " * 40 + "{subject}",
    ],
)
def test_what_training_refuses_checking_tells_in_the_same_words(config_file: Path, override: str) -> None:
    overrides = [override, *(["method.name=lora"] if override.startswith(("method.t", "method.st")) else [])]
    config = load_config(config_file, overrides)
    with pytest.raises(DreamBoothError) as caught:
        train(config)
    findings = check(config)
    assert str(caught.value) in [finding.text for finding in findings if finding.level == "error"]
    assert findings.exit_code == caught.value.exit_code
    assert not RunFolder(config).path.exists()


@pytest.mark.slow
def test_a_run_that_goes_on_or_is_done_is_told(config_file: Path) -> None:
    short = ["train.max_steps=2", "optim.warmup_steps=1", "validate.every_steps=0", "prior.source=none"]
    assert train(load_config(config_file, short)) == 0
    assert "finished at step 2" in by_subject(check(load_config(config_file, short)), "ok")["run folder"]
    more = load_config(config_file, [*short, "train.max_steps=4"])
    assert "the run goes on at step 2" in by_subject(check(more), "ok")["run folder"]
    changed = by_subject(check(load_config(config_file, [*short, "optim.lr=1e-5"])), "error")
    assert "optim.lr: 0.001 -> 1e-05" in changed["run folder"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.ema_decay=0.9"],
        ["method.name=lora", "prior.source=none"],
        ["model.export_dtype=float16", "prior.source=ahead", "prior.num_images=16"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_a_run_writes_is_known_before(config_file: Path, overrides: list[str]) -> None:
    """At the moment when it is most, as a file takes its place, and at the end; logs are a guess and left out."""
    short = [*overrides, "train.max_steps=4", "validate.every_steps=2", "train.save_every_steps=1"]
    config = load_config(config_file, [*short, "log.tensorboard=false"])
    need = disk_need(Planner(config).family, config)
    run = RunFolder(config)

    def written(*places: Path) -> int:
        files = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
        return sum(path.stat().st_size for path in files if path.is_file())

    with renames(lambda: written(run.path)) as sizes:
        assert train(config) == 0
    planned, kept = (sum(sizes.values()) - need.logs for sizes in (need.largest, need.finished))
    assert max(sizes) <= planned + 2**19
    assert planned - need.best < 1.3 * max(sizes), "images and logs are a large part of files this small"
    assert need.num_states == 2
    assert written(run.path) <= kept + 2**19
    assert written(run.state) <= need.state
    assert not run.previous.exists(), "a longer run does not need it"
    weights = written(*run.model.rglob("*.safetensors"))
    assert 0.8 * weights < need.model < weights + 2**19
    assert written(*run.prior.rglob("*.safetensors")) <= need.latents + 2**14
    assert run.prior.exists() == bool(need.latents) or not list(run.prior.iterdir())
    assert 0.3 * need.samples < written(run.samples) <= need.samples + 2**12


@contextlib.contextmanager
def renames(measure: Callable[[], int]) -> Iterator[list[int]]:
    """Collect what `measure` returns each time when something is about to be renamed."""
    found: list[int] = []
    is_on = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:  # it cannot be taken away again
        if is_on and event == "os.rename":
            found.append(measure())

    sys.addaudithook(hook)
    yield found
    is_on = False


def test_a_state_less_is_planned_for_where_one_less_is_kept(config_file: Path) -> None:
    config = load_config(config_file)
    family = Planner(config).family
    both = disk_need(family, config)
    config.train.keep_previous = False
    one = disk_need(family, config)
    assert sum(both.largest.values()) - sum(one.largest.values()) == one.state == both.state
    assert both.finished == one.finished
    config.train.keep_previous = config.train.keep_states = True
    assert disk_need(family, config).finished["states"] == 2 * both.state


def test_a_disk_that_is_too_small_is_told_with_need_and_free_before_anything_is_written(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_file)
    usage = shutil.disk_usage(config_file.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(
        UserError, match=r"will take \d+ MiB at most at a time \(states .*, and 1 MiB are free .*run\.dir"
    ):
        train(config)
    assert not RunFolder(config).path.exists()
    assert "1 MiB are free" in by_subject(check(config), "error")["disk"]
    RunFolder(config).path.mkdir(parents=True)
    (RunFolder(config).path / "filler").write_bytes(bytes(2**28))  # of an earlier session: it is written over
    assert "257 MiB are free" in check_disk(RunFolder(config), Planner(config).family, config)


def test_pictures_that_are_none_are_all_told(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "bad" / "dot.png")
    (tmp_path / "bad" / "page.jpg").write_text("<html>")
    findings = check(load_config(config_file, [f"subject.images={tmp_path / 'bad'}"]))
    assert "dot.png (1 x 1 pixels" in by_subject(findings, "error")["images"]
    assert "page.jpg (not an image)" in by_subject(findings, "error")["images"]
    assert "base model" in by_subject(findings, "ok"), "the base was not looked at because of the images"
