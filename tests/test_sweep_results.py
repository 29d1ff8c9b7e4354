"""What comes of a sweep: its tables and page, and which cells a search trains next. Cells are written by hand."""

import csv
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from browser import assert_is_shown, needs_browser
from PIL import Image

from dreambooth.checkpointing import AtomicCheckpointIO
from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.errors import UserError
from dreambooth.generation.grids.grid import GridRow, draw_grid, write_grid
from dreambooth.metrics import selection
from dreambooth.metrics.selection import Anchors
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord
from dreambooth.run.folder import RunFolder, write_config
from dreambooth.sweep import Sweep, load_sweep
from dreambooth.sweep.cells import Cell
from dreambooth.sweep.folder import note_failure
from dreambooth.sweep.results import read_results
from dreambooth.sweep.search import cells_of, check, next_tasks, planned_tasks, points_of
from dreambooth.sweep.tables import as_csv, as_json, as_markdown, write

ROOT = Path(__file__).parents[1]
ANCHORS = Anchors(real=0.8, dino=0.2, pres=0.2, clip_t=0.3, clip_t_ignored=0.2)
CONFIG = """
run: {name: run}
model: {base: some/base}
subject: {images: data/robot, class_noun: robot}
data: {resolution: 8}
train: {max_steps: 90}
validate: {every_steps: 10, num_images: 2, prompts: ["a photo of {subject}", "a photo of a {class}"], dino: d, clip: c}
"""


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Sweep]:
    """Return a function that makes a sweep from the text below its section `sweep`."""

    def made(text: str) -> Sweep:
        (tmp_path / "config.yaml").write_text(CONFIG)
        path = tmp_path / "sweep.yaml"
        path.write_text(f"sweep: {{name: s, dir: {tmp_path}, config: {tmp_path / 'config.yaml'}}}\n{text}")
        return load_sweep(path)

    return made


@pytest.fixture
def sweep(make: Callable[[str], Sweep], tmp_path: Path) -> Sweep:
    """Two subjects and two learning rates; the last cell has failed, the others have come to step 20."""
    table = tmp_path / "subjects.csv"
    table.write_text(f"name,images,class_noun\nrobot,{ROOT / 'data/robot'},robot\ndog,{ROOT / 'data/dog'},dog\n")
    made = make(f"subjects: {{table: {table}}}\nsettings: {{optim.lr: [1e-3, 2e-3]}}")
    cells = cells_of(made)
    for cell, quality in zip(cells[:3], (0.5, 0.9, 0.7), strict=True):
        pretend(made, cell, {10: 0.1, 20: quality})
    note_failure(made, cells[3], 2, "the photos | are gone")
    return made


def pretend(sweep: Sweep, cell: Cell, qualities: Mapping[int, float]) -> None:
    """Write what a cell with these qualities, by step, leaves in its folder."""
    folder = sweep.runs / cell.name
    for step, quality in ({0: 0.0} | dict(qualities)).items():
        dino = 0.2 + 0.6 * quality
        scores = {"dino": [dino - 0.01, dino + 0.01], "clip_t": [0.3, 0.3], "pres": [0.2, 0.2]}
        found = selection.quality(selection.means_of(scores), ANCHORS)
        log = ValidationLog(folder / "logs" / "scores.jsonl")
        log.add(ValidationRecord(step, 0.1, scores, found, None if step else ANCHORS, None if step else {"dino": "d"}))
        grey = Image.new("RGB", (8, 8), (step, 0, 0))
        rows = [GridRow(f"a photo of sks {cell.subject_name or 'robot'}", [grey, grey]), GridRow("other", [grey, grey])]
        write_grid(folder / "samples" / f"step-{step:06d}.png", draw_grid(rows, f"step {step}"))
    (folder / "state").mkdir(exist_ok=True)
    AtomicCheckpointIO().save_checkpoint({"global_step": max(qualities)}, folder / "state" / "last.ckpt")


# -------------------------------------------------------------------------------- tables and page


def test_cells_come_by_quality_and_those_without_one_last(sweep: Sweep) -> None:
    found = read_results(sweep, cells_of(sweep))
    names = [each.cell.name for each in found.cells]
    assert names == ["dog,lr=0.001", "robot,lr=0.002", "robot,lr=0.001", "dog,lr=0.002"]
    assert [each.quality for each in found.cells[:3]] == pytest.approx([0.9, 0.7, 0.5])
    assert [each.status.state for each in found.cells] == ["stopped", "stopped", "stopped", "failed"]


def test_a_setting_that_lacks_a_cell_is_not_the_best_however_high_its_mean(sweep: Sweep) -> None:
    found = read_results(sweep, cells_of(sweep))
    means = {group.name: group.quality.mean for group in found.by_setting if group.quality is not None}
    assert means == pytest.approx({"lr=0.001": 0.7, "lr=0.002": 0.7})
    assert found.best is not None
    assert found.best.name == "lr=0.001"


def test_the_interval_of_a_setting_is_over_its_subjects(sweep: Sweep) -> None:
    from dreambooth.metrics.estimates import estimate

    found = read_results(sweep, cells_of(sweep)).by_setting[0].quality
    expected = estimate([0.5, 0.9], bounds=(0, 1))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_tables_say_the_same_and_what_failed_and_why(sweep: Sweep) -> None:
    found = read_results(sweep, cells_of(sweep))
    rows = list(csv.DictReader(as_csv(found).splitlines()))
    cells = json.loads(as_json(found))["cells"]
    assert [row["cell"] for row in rows] == [cell["cell"] for cell in cells]
    assert [float(row["quality"]) for row in rows[:3]] == [cell["quality"] for cell in cells[:3]]
    assert [row["optim.lr"] for row in rows] == ["0.001", "0.002", "0.001", "0.002"]
    assert (rows[3]["exit_code"], rows[3]["error"]) == ("2", "the photos | are gone")
    text = as_markdown(found)
    assert "| dog,lr=0.001 | stopped | 20 | 0.900 ± " in text
    assert "- **dog,lr=0.002** (2): the photos | are gone" in text
    assert json.loads(as_json(found))["best"] == {"setting": "lr=0.001", "overrides": ["optim.lr=0.001"]}


def test_the_best_config_is_one_that_trains(sweep: Sweep) -> None:
    paths = write(read_results(sweep, cells_of(sweep)))
    assert [path.name for path in paths] == ["table.csv", "table.json", "table.md", "best.yaml", "report.html"]
    best = load_config(sweep.folder / "best.yaml")
    assert (best.optim.lr, best.subjects[0].class_noun) == (0.001, "dog")


def test_the_best_config_is_what_the_best_cell_was_trained_with_whatever_the_config_says_now(sweep: Sweep) -> None:
    for cell in cells_of(sweep):
        config = sweep.config_of(cell)
        write_config(RunFolder(config), config)
    path = Path(sweep.options.config)
    path.write_text(f"{CONFIG}optim: {{weight_decay: 0.5}}\n")
    write(read_results(sweep, cells_of(sweep)))
    best = load_config(sweep.folder / "best.yaml")
    assert (best.optim.lr, best.optim.weight_decay, best.subjects[0].class_noun) == (0.001, 0.01, "dog")
    assert best.run.name == "dog,lr=0.001"
    page = (sweep.folder / "report.html").read_text()
    assert f"train {path} optim.lr=0.001 optim.weight_decay=0.01</code>" in page


def test_the_page_shows_each_cell_with_its_image_and_the_command_of_the_best(sweep: Sweep) -> None:
    write(read_results(sweep, cells_of(sweep)))
    page = (sweep.folder / "report.html").read_text()
    assert page.count("<img ") == 3 + 2, "of three cells, and a photo of both subjects"
    assert "failed, no images: lr=0.002</p>" in page
    assert page.count('class="whisker"') == 3 + 2, "the interval of each cell and each setting"
    assert f"train {sweep.options.config} optim.lr=0.001</code>" in page
    assert "the photos | are gone" in page
    assert "<script" not in page
    assert "://" not in page


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_the_whole_page_of_a_sweep_on_a_phone_and_on_a_desk(sweep: Sweep, tmp_path: Path) -> None:
    write(read_results(sweep, cells_of(sweep)))
    assert_is_shown(sweep.folder / "report.html", tmp_path)


def test_a_report_can_be_written_before_anything_is_trained(make: Callable[[str], Sweep], capsys) -> None:
    sweep = make("settings: {optim.lr: [1e-3, 2e-3]}")
    assert main(["sweep", "report", str(sweep.path)]) == 0
    assert "2 cells: 2 waiting." in capsys.readouterr().out
    assert "No setting has a quality in all its cells yet." in (sweep.folder / "report.html").read_text()


# -------------------------------------------------------------------------------- searches


def test_random_points_are_drawn_within_their_ranges_and_do_not_change(make: Callable[[str], Sweep]) -> None:
    text = (
        "settings: {optim.lr: {log_range: [1e-5, 1e-3]}, train.batch_size: {range: [1, 4]}, "
        "loss.weighting: [none, min_snr]}\n"
        "search: {method: random, num_points: 12, seed: 3}"
    )
    points = points_of(make(text))
    assert len({point.name for point in points}) == 12
    assert all(1e-5 <= dict(point.values)["optim.lr"] <= 1e-3 for point in points)
    assert {dict(point.values)["train.batch_size"] for point in points} == {1, 2, 3, 4}
    assert points_of(make(text.replace("num_points: 12", "num_points: 20")))[:12] == points


HALVING = "settings: {optim.lr: {log_range: [1e-5, 1e-3], num: 9}}\nsearch: {method: halving}"


def test_halving_trains_a_third_of_the_points_on_at_each_rung(make: Callable[[str], Sweep]) -> None:
    sweep = make(HALVING)
    cells = cells_of(sweep)
    assert [(task.cell, task.until) for task in next_tasks(sweep)] == [(cell, 10) for cell in cells]
    for number, cell in enumerate(cells):
        pretend(sweep, cell, {10: 0.1 * number})
    assert [(task.cell, task.until) for task in next_tasks(sweep)] == [(cell, 30) for cell in cells[6:]]
    for cell, quality in zip(cells[6:], (0.9, 0.3, 0.8), strict=True):
        pretend(sweep, cell, {20: quality, 30: quality})
    assert [(task.cell, task.until) for task in next_tasks(sweep)] == [(cells[6], None)]


def test_halving_plans_a_quarter_of_the_steps(make: Callable[[str], Sweep]) -> None:
    sweep = make(HALVING)
    steps = sum(task.until or 90 for task in planned_tasks(sweep, cells_of(sweep)))
    assert steps / (9 * 90) == pytest.approx((6 * 10 + 2 * 30 + 90) / 810)


def test_a_cell_that_failed_loses_and_does_not_stop_the_search(make: Callable[[str], Sweep]) -> None:
    sweep = make(HALVING)
    cells = cells_of(sweep)
    for cell in cells[:8]:
        pretend(sweep, cell, {10: 0.5})
    assert [task.cell for task in next_tasks(sweep)] == [cells[8]]
    assert cells[8] not in [task.cell for task in next_tasks(sweep, {cells[8].name})]
    assert len(next_tasks(sweep, {cells[8].name})) == 3


def test_halving_without_any_quality_says_what_to_set(make: Callable[[str], Sweep]) -> None:
    sweep = make(HALVING)
    with pytest.raises(UserError, match="no cell has a quality at step 10; name encoders"):
        next_tasks(sweep, {cell.name for cell in cells_of(sweep)})
    config = Path(sweep.options.config)
    config.write_text(CONFIG.replace("dino: d, clip: c", "dino: null, clip: null"))
    with pytest.raises(UserError, match=r"search\.method=halving: compares qualities; set validate\.every_steps"):
        check(sweep, cells_of(sweep)[0])


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs the extra 'search'")
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_optuna_proposes_points_by_what_the_folder_says(sampler: str, make: Callable[[str], Sweep]) -> None:
    sweep = make(
        "settings: {optim.lr: {log_range: [1e-5, 1e-3]}, method.rank: {range: [2, 16]}, "
        "loss.weighting: [none, min_snr]}\n"
        "variants: {lora: {method.name: lora}, dora: {method.name: lora, method.dora: true}}\n"
        f"search: {{method: optuna, sampler: {sampler}, num_points: 10, batch: 4}}"
    )
    seen: list[str] = []
    for expected in (4, 4, 2, 0):
        tasks = next_tasks(sweep)
        assert len(tasks) == expected
        for task in tasks:
            config = sweep.config_of(task.cell)
            assert 1e-5 <= config.optim.lr <= 1e-3
            assert 2 <= config.method.rank <= 16
            pretend(sweep, task.cell, {10: config.optim.lr * 1e3})
            finish(sweep, task.cell)
        seen += [task.cell.name for task in tasks]
    assert len(set(seen)) == 10
    assert [cell.name for cell in cells_of(sweep)] == seen


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs the extra 'search'")
def test_a_search_goes_on_within_a_narrower_range_and_not_with_a_new_setting(make: Callable[[str], Sweep]) -> None:
    from dreambooth.sweep.optuna_points import ask

    search, rates = "search: {method: optuna, num_points: 4}", "optim.lr: {{log_range: [{}, 1e-3]}}"
    first = make(f"settings: {{{rates.format('1e-5')}}}\n{search}")
    tried = [(point, 0.5) for point in ask(first, [], 4)]
    narrower = make(f"settings: {{{rates.format('9e-4')}}}\n{search}")
    assert all(9e-4 <= dict(point.values)["optim.lr"] <= 1e-3 for point in ask(narrower, tried, 2))
    more = make(f"settings: {{{rates.format('1e-5')}, method.rank: {{range: [2, 16]}}}}\n{search}")
    with pytest.raises(UserError, match=r"settings\.method\.rank: is new, and the points so far have no value of it"):
        ask(more, tried, 2)


def finish(sweep: Sweep, cell: Cell) -> None:
    """Make a cell count as finished: its model is written, and its config asks for no more steps."""
    folder = sweep.runs / cell.name / "model"
    folder.mkdir(parents=True, exist_ok=True)
    card = {
        "identifier": "sks", "class_noun": "robot", "prompt": "a", "class_prompt": "b", "resolution": 8,
        "num_inference_steps": 1, "guidance_scale": 1.0, "step": 10, "scheduler": "ddim", "last_step": 10,
        "method": "lora", "base": "some/base",
    }  # fmt: skip
    (folder / "dreambooth.json").write_text(json.dumps(card))
    path = Path(sweep.options.config)
    path.write_text(yaml.safe_dump({**yaml.safe_load(CONFIG), "train": {"max_steps": 10}}))
