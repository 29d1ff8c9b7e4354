"""Sweeps: what a sweep file means, that a cell is the run it would be alone, and what goes on after a stop."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.errors import UserError
from dreambooth.files import write_text
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.sweep import Sweep, load_sweep
from dreambooth.sweep.reading import check_cells
from dreambooth.sweep.status import is_long_enough

ROOT = Path(__file__).parents[1]
SWEEP = """
sweep: {{name: products, dir: {folder}, config: {config}, seeds: [0, 1]}}
subjects: {{folder: {subjects}}}
settings:
  optim.lr: {{log_range: [1e-4, 1e-2], num: 2}}
"""


@pytest.fixture
def subjects(tmp_path: Path, pictures: Path) -> Path:
    """A folder with two subjects of one class."""
    folder = tmp_path / "subjects"
    for name in ("rex", "bello"):
        shutil.copytree(pictures, folder / name)
    (folder / "bello" / "0.png").unlink()
    (folder / "prompts.yaml").write_text("classes: {rex: dog, bello: dog}")
    return folder


@pytest.fixture
def write(tmp_path: Path, config_file: Path) -> Callable[[str], Path]:
    """Return a function that writes a sweep file with some text below its section `sweep`."""

    def written(text: str, **options: object) -> Path:
        path = tmp_path / "sweep.yaml"
        more = "".join(f", {name}: {value}" for name, value in options.items())
        path.write_text(f"sweep: {{name: s, dir: {tmp_path / 'sweeps'}, config: {config_file}{more}}}\n{text}")
        return path

    return written


@pytest.fixture
def sweep(tmp_path: Path, config_file: Path, subjects: Path) -> Sweep:
    """Two subjects, two learning rates, two seeds."""
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.format(folder=tmp_path / "sweeps", config=config_file, subjects=subjects))
    return load_sweep(path)


def names(sweep: Sweep) -> list[str]:
    return [cell.name for cell in sweep.cells(sweep.grid())]


# -------------------------------------------------------------------------------- the file


def test_the_cells_are_all_subjects_with_all_values_and_seeds_and_the_first_seed_comes_first(sweep: Sweep) -> None:
    assert names(sweep) == [
        f"{subject},lr={lr},seed={seed}" for seed in (0, 1) for lr in ("0.0001", "0.01") for subject in ("bello", "rex")
    ]


def test_a_cell_is_a_config_of_its_own_with_the_settings_of_its_name(sweep: Sweep, subjects: Path) -> None:
    config = sweep.config_of(sweep.cells(sweep.grid())[-1])
    assert (config.optim.lr, config.run.seed, config.subjects[0].class_noun) == (0.01, 1, "dog")
    assert config.subjects[0].images == str(subjects / "rex")
    assert Path(config.run.dir) / config.run.name == sweep.folder / "runs" / "rex,lr=0.01,seed=1"


def test_variants_are_combined_with_the_settings_which_go_over_them(write: Callable[..., Path]) -> None:
    text = """
variants:
  lora: {method.name: lora, method.rank: 2}
  full: {method.name: full}
settings:
  method.rank: [4, 8]
  train.batch_size: {range: [1, 3], num: 3}
"""
    sweep = load_sweep(write(text))
    assert len(names(sweep)) == 12
    assert names(sweep)[0] == "lora,rank=4,batch_size=1"
    configs = [sweep.config_of(cell) for cell in sweep.cells(sweep.grid())]
    assert {(each.method.name, each.method.rank) for each in configs} == {
        (name, rank) for name in ("lora", "full") for rank in (4, 8)
    }


def test_a_log_range_has_equal_ratios_and_a_range_equal_steps(write: Callable[..., Path]) -> None:
    text = "settings: {optim.lr: {log_range: [1e-5, 1e-3], num: 3}, prior.weight: {range: [0, 2], num: 5}}"
    axes = load_sweep(write(text)).axes
    assert axes[0].values == (1e-5, 1e-4, 1e-3)
    assert axes[1].values == (0.0, 0.5, 1.0, 1.5, 2.0)


def test_subjects_of_a_table_have_what_its_columns_say(write: Callable[..., Path], subjects: Path) -> None:
    table = subjects / "products.csv"
    table.write_text("name,images,class_noun,identifier\nfirst,rex,dog,sks\n,bello,,ohwx\n")
    sweep = load_sweep(write(f"subjects: {{table: {table}, class_noun: cat}}"))
    first, second = [sweep.config_of(cell).subjects[0] for cell in sweep.cells(sweep.grid())]
    assert (first.identifier, first.class_noun, first.images) == ("sks", "dog", str(subjects / "rex"))
    assert (second.identifier, second.class_noun) == ("ohwx", "cat")
    assert names(sweep) == ["first", "bello"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("rex,dog,a photo of {subject}, in snow", "line 4 has more values than there are columns"),
        ('"rex" b,dog,', "after line 3: ',' expected after '\"'; mend the quotes"),
        ('"rex,dog,', "after line 3: unexpected end of data; mend the quotes"),
    ],
)
def test_a_line_of_a_table_that_does_not_fit_is_told_and_not_cut_short(
    write: Callable[..., Path], subjects: Path, line: str, told: str
) -> None:
    table = subjects / "products.csv"
    table.write_text(f"images,class_noun,prompt\nbello,dog,\n\n{line}\n")
    with pytest.raises(UserError, match=f"products.csv: {told}"):
        load_sweep(write(f"subjects: {{table: {table}}}"))


def test_names_of_cells_are_folders_of_their_own_on_every_system(write: Callable[..., Path]) -> None:
    text = """
settings:
  subject.prompt: ["a photo of {subject}", "a photo of {subject}!", "%s, {subject}"]
  subject.identifier: [SKS, sks]
""" % ("very " * 40)
    found = names(load_sweep(write(text)))
    assert len({name.casefold() for name in found}) == 6
    assert all(len(name) <= 120 and not set(name) & set('/\\:*?"<>| ') for name in found)


MISTAKES = {
    "no section": ("settngs: {}", "settngs: unknown section; there are sweep, subjects"),
    "no key": ("settings: {optim.lrr: [1]}", "settings.optim.lrr: unknown key; did you mean optim.lr?"),
    "no value": ("settings: {train.max_steps: [0]}", "train.max_steps: 0 is too small"),
    "an end": ("settings: {train.max_steps: {range: [0, 9], num: 2}}", "train.max_steps: 0 is too small"),
    "no range": ("settings: {optim.lr: {from: 1, to: 2}}", "write {range: [low, high], num: 4}"),
    "reversed": ("settings: {optim.lr: {range: [2, 1], num: 2}}", "the first number must be below the second"),
    "log of 0": ("settings: {optim.lr: {log_range: [0, 1], num: 2}}", "needs numbers above 0"),
    "twice": ("settings: {optim.lr: [1e-4, 0.0001]}", "0.0001 is there twice"),
    "own key": ("settings: {run.seed: [1, 2]}", "settings.run.seed: the sweep sets it itself"),
    "empty": ("settings: {optim.lr: []}", "an empty list"),
    "variant": ("variants: {a: {optim.lr: high}}", "variants.a.optim.lr: 'high' is not allowed; expected number"),
    "no folder": ("subjects: {folder: nowhere}", "subjects.folder=nowhere: there is no such folder"),
    "both": ("subjects: {folder: a, table: b}", "name either subjects.folder or subjects.table"),
    "type": ("subjects: {folder: [1]}", "subjects.folder: YAML reads this as 1"),
}


@pytest.mark.parametrize(("text", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_file_is_told_with_its_key_and_what_is_allowed(
    text: str, told: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        load_sweep(write(text))
    assert told in str(error.value)
    assert not (tmp_path / "sweeps").exists()


def test_all_mistakes_are_told_at_once(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError) as error:
        load_sweep(write("settings: {optim.lr: [-1], train.max_steps: [x]}\nvariants: 3", seeds="[a]"))
    for key in ("optim.lr", "train.max_steps", "variants", "sweep.seeds"):
        assert key in str(error.value)


def test_a_seed_that_is_there_twice_is_told(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"sweep\.seeds: 7 is there twice; leave one out"):
        load_sweep(write("", seeds="[0, 7, 7, 7]"))


def test_a_range_without_values_is_no_grid(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"optim\.lr: a grid needs the values of a range; add num"):
        load_sweep(write("settings: {optim.lr: {range: [1e-4, 1e-3]}}")).grid()


def test_settings_that_no_run_takes_together_are_told_with_the_cell(write: Callable[..., Path]) -> None:
    sweep = load_sweep(write("settings: {optim.warmup_steps: [0, 50]}"))
    with pytest.raises(UserError, match=r"the cell warmup_steps=50 is no run.*must be below train.max_steps"):
        check_cells(sweep, sweep.cells(sweep.grid()))


def test_a_subject_without_a_noun_is_told(write: Callable[..., Path], subjects: Path) -> None:
    (subjects / "prompts.yaml").unlink()
    with pytest.raises(UserError, match=r"no class noun for bello, rex; write .*prompts.yaml"):
        load_sweep(write(f"subjects: {{folder: {subjects}}}"))


@pytest.mark.parametrize("name", ["two-subjects", "halving", "cluster", "nine-settings"])
def test_every_shipped_sweep_is_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for folder in (
        "data/robot",
        "data/dog",
        "data/second-robot",
        "data/second-dog",
        "outputs/cat",
        "data/products/mug-red",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "products" / "prompts.yaml").write_text("classes: {mug-red: mug}")
    monkeypatch.chdir(tmp_path)
    sweep = load_sweep(Path("configs/sweeps") / f"{name}.yaml")
    check_cells(sweep, sweep.cells(sweep.grid()))


def test_the_help_names_every_key_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    told = capsys.readouterr().out
    for key in ("sweep.config (text; required)", "sweep.seeds (list of whole numbers", "subjects.table", "log_range"):
        assert key in told


# -------------------------------------------------------------------------------- cells


@pytest.fixture(scope="module")
def two_cells(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> Sweep:
    """A sweep of two learning rates, trained in this process; the text encoder stays as it is."""
    from conftest import CONFIG

    from dreambooth import engine
    from dreambooth.sweep.session import locked
    from dreambooth.sweep.worker import Task, train_cell

    folder = tmp_path_factory.mktemp("sweep")
    config = folder / "run.yaml"
    text = CONFIG.format(runs=folder / "runs", base=tiny_base, pictures=pictures)
    config.write_text(text + "method: {name: lora, rank: 2, train_text_encoder: false}\n")
    path = folder / "sweep.yaml"
    path.write_text(f"sweep: {{name: s, dir: {folder}, config: {config}}}\nsettings: {{optim.lr: [1e-3, 2e-3]}}\n")
    sweep = load_sweep(path)
    with locked(sweep):
        for cell in sweep.cells(sweep.grid()):
            assert train_cell(sweep, engine.train, Task(cell)).exit_code == 0
    return sweep


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two runs have the same numbers and weights, bit for bit."""
    from safetensors.torch import load_file

    for name in ("logs/metrics.csv", "logs/scores.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = (load_file(run / "model" / "pytorch_lora_weights.safetensors") for run in (one, other))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.slow
def test_a_cell_is_bit_for_bit_the_run_that_it_would_be_alone(two_cells: Sweep, tmp_path: Path) -> None:
    """The second one: it has the base, the latents and the embeddings of the first."""
    from dreambooth.engine import train

    cell = two_cells.cells(two_cells.grid())[1]
    alone = load_config(two_cells.options.config, [*cell.overrides, f"run.dir={tmp_path}", "run.name=alone"])
    assert train(alone) == 0
    one, other = two_cells.runs / cell.name, tmp_path / "alone"
    assert_same_run(one, other)
    assert (one / "report.html").is_file()


def test_what_cells_have_in_common_is_made_once(two_cells: Sweep) -> None:
    shared = two_cells.folder / "shared"
    assert len(list((shared / "class-latents").iterdir())) == 1
    assert len(list((shared / "class-latents").rglob("*.safetensors"))) == 3  # 6 images in batches of 2
    assert len(list((shared / "photo-latents").iterdir())) == 3
    assert len(list((shared / "embeddings").iterdir())) == 3  # "", the subject's prompt and the class prompt
    assert [list((two_cells.runs / name / "prior").iterdir()) for name in names(two_cells)] == [[], []]


def test_a_finished_cell_is_not_trained_again(two_cells: Sweep) -> None:
    from dreambooth.sweep.search import next_tasks
    from dreambooth.sweep.status import read_status

    assert next_tasks(two_cells) == []
    assert [each.state for each in read_status(two_cells, two_cells.cells(two_cells.grid()))] == ["finished"] * 2


def test_status_is_told_while_nothing_is_trained_yet(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "status", str(sweep.path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: waiting" for name in names(sweep)]
    assert not sweep.folder.exists()


def test_a_cell_that_cannot_be_trained_is_told_and_the_next_command_tries_it_again(sweep: Sweep) -> None:
    from dreambooth import engine
    from dreambooth.sweep.search import next_tasks
    from dreambooth.sweep.session import locked
    from dreambooth.sweep.status import status_of
    from dreambooth.sweep.worker import Task, train_cell

    cell = sweep.cells(sweep.grid())[0]
    (Path(dict(cell.subject.settings)["images"]) / "1.png").write_text("no image")
    with locked(sweep):
        outcome = train_cell(sweep, engine.train, Task(cell))
    assert outcome.exit_code == 2
    status = status_of(sweep, cell)
    assert (status.state, status.exit_code) == ("failed", 2)
    assert "1.png" in status.error
    assert cell in [task.cell for task in next_tasks(sweep)]


@pytest.mark.slow
def test_a_cell_is_stopped_after_a_validation_and_goes_on_to_the_same_bits(two_cells: Sweep, tmp_path: Path) -> None:
    from dreambooth import engine
    from dreambooth.sweep.session import locked
    from dreambooth.sweep.status import status_of
    from dreambooth.sweep.worker import Task, train_cell

    path = tmp_path / "sweep.yaml"
    text = two_cells.path.read_text()
    path.write_text(text.replace(f"dir: {two_cells.options.dir}", f"dir: {tmp_path}"))
    again = load_sweep(path)
    cell = again.cells(again.grid())[1]
    with locked(again):
        assert train_cell(again, engine.train, Task(cell, until=4)).exit_code == 0
        stopped = status_of(again, cell)
        assert (stopped.state, stopped.step) == ("stopped", 5)
        assert train_cell(again, engine.train, Task(cell, until=4)).exit_code == 0
        assert status_of(again, cell).step == 5
        assert train_cell(again, engine.train, Task(cell)).exit_code == 0
    assert_same_run(again.runs / cell.name, two_cells.runs / cell.name)


def test_a_cell_goes_on_whatever_its_config_says_of_that(two_cells: Sweep, tmp_path: Path) -> None:
    config, path = tmp_path / "anew.yaml", tmp_path / "sweep.yaml"
    config.write_text(Path(two_cells.options.config).read_text().replace("run: {", "run: {resume: never, "))
    path.write_text(two_cells.path.read_text().replace(two_cells.options.config, str(config)))
    anew = load_sweep(path)
    assert {anew.config_of(cell).run.resume for cell in anew.cells(anew.grid())} == {"auto"}


def test_editing_the_config_does_not_change_a_session_that_runs(two_cells: Sweep, tmp_path: Path) -> None:
    from dreambooth.sweep.search import next_tasks
    from dreambooth.sweep.session import locked

    config, path = tmp_path / "edited.yaml", tmp_path / "sweep.yaml"
    text = Path(two_cells.options.config).read_text()
    config.write_text(text)
    path.write_text(two_cells.path.read_text().replace(two_cells.options.config, str(config)))
    with locked(load_sweep(path)) as frozen:
        config.write_text(text.replace("max_steps: 8", "max_steps: 9"))
        assert next_tasks(frozen) == [], "finished cells are not finished any more"
    assert len(next_tasks(load_sweep(path))) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("settings: {validate.every_steps: [2, 4]}", "settings.validate.every_steps"),
        (
            "variants: {fine: {validate.every_steps: 2}, long: {train.max_steps: 9}}",
            "variants.fine.validate.every_steps",
        ),
    ],
)
def test_halving_decides_how_long_a_cell_is_trained(two_cells: Sweep, tmp_path: Path, text: str, told: str) -> None:
    from dreambooth.sweep import search

    path, config, vit = tmp_path / "sweep.yaml", tmp_path / "run.yaml", ROOT / "checkpoints/toyworld-encoders/vit"
    own = Path(two_cells.options.config).read_text().replace("dino: null", f"dino: {vit}")
    config.write_text(own.replace("every_steps: 4", "every_steps: 2"))
    path.write_text(f"sweep: {{name: h, dir: {tmp_path}, config: {config}}}\nsearch: {{method: halving}}\n{text}\n")
    sweep = load_sweep(path)
    with pytest.raises(UserError, match=rf"{told}: search.method=halving decides"):
        search.check(sweep, sweep.cells(sweep.grid())[0])


def test_processes_that_a_cell_would_start_are_refused(
    two_cells: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.yaml"
    text = two_cells.path.read_text().replace("name: s", "name: workers")
    path.write_text(f"{text}variants: {{none: {{optim.warmup_steps: 1}}, two: {{data.num_workers: 2}}}}\n")
    assert main(["sweep", str(path)]) == 2
    assert "data.num_workers=2: a cell on this machine starts no processes" in capsys.readouterr().err


def test_two_sessions_of_one_sweep_are_not_possible_at_once(sweep: Sweep) -> None:
    from dreambooth.sweep.session import locked

    with locked(sweep), pytest.raises(UserError, match="another process runs this sweep"), locked(sweep):
        pass


def test_cells_of_a_config_that_was_made_longer_are_not_finished(two_cells: Sweep, tmp_path: Path) -> None:
    from dreambooth.sweep.search import next_tasks

    config, path = tmp_path / "longer.yaml", tmp_path / "sweep.yaml"
    config.write_text(Path(two_cells.options.config).read_text().replace("max_steps: 8", "max_steps: 9"))
    path.write_text(two_cells.path.read_text().replace(two_cells.options.config, str(config)))
    longer = load_sweep(path)
    assert longer.folder == two_cells.folder
    assert len(next_tasks(longer)) == 2


@pytest.fixture
def copied(two_cells: Sweep, tmp_path: Path) -> Path:
    """The file of a finished sweep in a folder of its own, with its config and photos beside it."""
    config, path, photos = tmp_path / "edited.yaml", tmp_path / "own.yaml", tmp_path / "photos"
    text = Path(two_cells.options.config).read_text()
    shutil.copytree(yaml.safe_load(text)["subject"]["images"], photos)
    config.write_text(re.sub("subject: {images: [^,]+", f"subject: {{images: {photos}", text))
    path.write_text(f"sweep: {{name: s, dir: {tmp_path}, config: {config}}}\nsettings: {{optim.lr: [1e-3, 2e-3]}}\n")
    shutil.copytree(two_cells.folder, tmp_path / "s")
    return path


def test_other_settings_than_finished_cells_were_trained_with_are_told_each_time(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(copied)]) == 0
    assert "finished cells were trained" not in capsys.readouterr().err
    config = copied.parent / "edited.yaml"
    config.write_text(config.read_text().replace("optim: {", "optim: {weight_decay: 0.5, "))
    for _ in range(2):
        assert main(["sweep", str(copied)]) == 0
        told = capsys.readouterr()
        assert "optim.weight_decay: finished cells were trained with other values than the sweep has now" in told.err
        assert "2 cells: 2 finished." in told.out


def test_finished_cells_need_their_photos_no_more(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied.parent / "photos")
    assert main(["sweep", str(copied)]) == 0
    assert "2 cells: 2 finished." in capsys.readouterr().out


def test_a_sweep_is_where_its_folder_was_moved_to(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(copied)]) == 0
    moved, before = copied.parent / "elsewhere" / "moved", copied.parent / "s"
    shutil.copytree(before, moved)
    shutil.rmtree(before)
    (copied.parent / "edited.yaml").unlink()
    capsys.readouterr()
    assert main(["sweep", "status", str(moved)]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["finished"] * 2
    for action in (["report"], []):
        assert main(["sweep", *action, str(moved)]) == 0
        told = capsys.readouterr().out
        assert "2 cells: 2 finished." in told
        assert str(moved / "report.html") in told
    assert not before.exists()


def test_a_folder_that_only_holds_a_sweep_file_is_not_the_sweeps_own(two_cells: Sweep, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(two_cells.path.read_text())
    assert load_sweep(tmp_path).folder == two_cells.folder


def test_a_users_folder_with_a_sweep_file_keeps_its_config(two_cells: Sweep, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(two_cells.path.read_text())
    (tmp_path / "config.yaml").write_text("of the user")
    (tmp_path / "slurm").mkdir()
    assert load_sweep(tmp_path).folder == two_cells.folder


def test_a_finished_cell_whose_config_is_of_another_version_stays_finished(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = next((copied.parent / "s" / "runs").glob("*/config.yaml"))
    own.write_text(f"{own.read_text()}\nfoo: {{old_key: 3}}\n")
    assert main(["sweep", str(copied)]) == 0
    told = capsys.readouterr()
    assert "2 cells: 2 finished." in told.out
    assert "what the sweep's config says is taken for it" in told.err


def test_a_folder_without_images_is_found_for_a_setting_that_was_added(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(copied)]) == 0
    for photo in (copied.parent / "photos").iterdir():
        photo.unlink()
    copied.write_text(copied.read_text().replace("2e-3]", "2e-3, 3e-3]"))
    assert main(["sweep", str(copied), "--plan"]) == 2
    assert "lr=0.003 is no run: " in capsys.readouterr().err


def test_steps_that_a_rule_decides_are_those_of_the_cells_own_run(sweep: Sweep) -> None:
    cell = sweep.cells(sweep.grid())[0]
    cell = replace(cell, point=replace(cell.point, values=(("train.max_steps", "auto"),)))
    write_text(sweep.runs / cell.name / "config.yaml", "train: {max_steps: 7}\n")
    log = ValidationLog(sweep.runs / cell.name / "scores.jsonl")
    assert [is_long_enough(sweep, cell, step, log) for step in (6, 7)] == [False, True]


def test_what_a_sweep_takes_is_told_first_and_nothing_is_written(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(sweep.path), "--plan"]) == 0
    cells, num, time, disk = capsys.readouterr().out.splitlines()
    assert cells == f"{sweep.folder}: 8 cells, 0 finished"
    assert num == "cells: 8 to train"
    assert time.startswith("time: at most ")
    assert disk.startswith("disk: ")
    assert not sweep.folder.exists()


def test_a_setting_whose_values_are_lists_is_planned(write: Callable[..., Path]) -> None:
    text = "variants: {lora: {method.name: lora}}\nsettings: {method.targets: [[attention], [attention, projections]]}"
    assert main(["sweep", str(write(text)), "--plan"]) == 0


@pytest.mark.parametrize("has_section", [True, False])
def test_a_folder_without_images_is_told_before_a_sweep_starts(
    has_section: bool, subjects: Path, config_file: Path, write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for photo in (subjects / "rex").iterdir():
        photo.unlink()
    config_file.write_text(re.sub("{images: [^,]+", f"{{images: {subjects / 'rex'}", config_file.read_text()))
    path = write(f"subjects: {{folder: {subjects}}}\n" if has_section else "")
    assert main(["sweep", str(path)]) == 2
    name = "rex" if has_section else "config"
    assert f"the cell {name} is no run: {subjects / 'rex'}: the folder has no images" in capsys.readouterr().err
    assert not (path.parent / "sweeps").exists()


def test_an_image_that_cannot_be_read_does_not_end_the_sweep(sweep: Sweep) -> None:
    cell = sweep.cells(sweep.grid())[0]
    (Path(dict(cell.subject.settings)["images"]) / "1.png").write_text("no image")
    assert main(["sweep", str(sweep.path), "--plan"]) == 0


def test_what_a_rule_chooses_is_told_once_for_all_cells(
    sweep: Sweep, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file.write_text(config_file.read_text().replace("train: {max_steps: 8", "train: {max_steps: auto"))
    assert main(["sweep", str(sweep.path), "--plan"]) == 0
    told = [line for line in "".join(capsys.readouterr()).splitlines() if line.startswith("auto: ")]
    assert told
    assert len(told) == len(set(told))


def test_a_sweep_does_not_take_the_folder_of_a_run(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(sweep.folder / "config.yaml", "a run's")
    assert main(["sweep", str(sweep.path)]) == 2
    assert capsys.readouterr().err == f"error: {sweep.folder}: is the folder of a run; choose another sweep.name\n"
    assert [path.name for path in sweep.folder.iterdir()] == ["config.yaml"]


@pytest.mark.slow
def test_the_command_goes_on_after_a_worker_and_then_the_command_itself_were_killed(
    two_cells: Sweep, tmp_path: Path
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(two_cells.path.read_text().replace(f"dir: {two_cells.options.dir}", f"dir: {tmp_path}"))
    command = [sys.executable, "-m", "dreambooth", "sweep", str(path), "--workers", "1"]
    running = tmp_path / "s" / "running"
    with open(tmp_path / "log", "a") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as parent:
        first = pid_in(running, tmp_path / "log")
        os.kill(first, signal.SIGKILL)
        second = pid_in(running, tmp_path / "log", other_than=first)
        parent.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{second}").exists() and time.monotonic() < deadline:  # it saves, and ends with its parent
        time.sleep(0.1)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "2 cells: 2 finished." in done.stdout
    assert "it is tried again" in (tmp_path / "log").read_text()
    for name in names(two_cells):
        assert_same_run(tmp_path / "s" / "runs" / name, two_cells.runs / name)


def pid_in(running: Path, log: Path, other_than: int = 0) -> int:
    """Return the process that trains a cell, as soon as there is one other than this."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in running.glob("*.json"):
            pid = int(json.loads(path.read_text())["pid"])
            if pid != other_than:
                return pid
        time.sleep(0.02)
    raise AssertionError(log.read_text())
