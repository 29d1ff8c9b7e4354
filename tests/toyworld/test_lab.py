"""The laboratory: its experiments, what is run again and what is not, and that its figures mean what they say."""

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.errors import ModelError, UserError
from toyworld import encoders, world
from toyworld.lab import cli, measure, plan, plots, report, tables
from toyworld.lab.experiments import LABS, SUBJECTS, WORD_AND_LORA, Hypothesis, Variant
from toyworld.lab.figures import FIGURES, way
from toyworld.lab.plan import Trial, Workspace
from toyworld.lab.pool import run_tasks
from toyworld.lab.runs import run_cell
from toyworld.lab.store import Store
from toyworld.outcome import UNSEEN_PLACES, places_of
from toyworld.photos import PLACES, photos

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "toyworld.yaml"
SHIPPED_ENCODERS = ROOT / "checkpoints" / "toyworld-encoders"
ROWS = [pytest.param(row, id=f"{name}: {row.name}") for name, lab in LABS.items() for row in lab.rows]


@pytest.fixture(scope="module")
def small_encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained ones of the shipped kind."""
    folder = tmp_path_factory.mktemp("encoders")
    size = encoders.Size(width=16, num_layers=1, num_heads=2, text_width=16, num_text_layers=1, projection_dim=8)
    encoders.save(encoders.build_vit(size), folder / "vit")
    encoders.save(encoders.build_clip(size), folder / "clip")
    return folder


@pytest.fixture
def bench(tmp_path: Path, tiny_base: Path, small_encoders: Path) -> Workspace:
    """A laboratory on the tiny base, with runs of two steps."""
    more = (f"model.base={tiny_base}", "train.max_steps=2", "prior.num_images=4", "prior.num_inference_steps=2")
    judge = ROOT / "checkpoints" / "toyworld" / "judge"
    return Workspace(CONFIG, small_encoders, judge, tmp_path / "lab" / "results.csv", tmp_path / "work", more)


def fingerprint_of(row: Variant, bench: Workspace) -> str:
    return plan.cells_of_row("any", row, bench)[0].fingerprint


def made_up(seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    return {name: rng.random() for name in FIGURES}


# ------------------------------------------------------------------------------------------------ the experiments


@pytest.mark.parametrize("row", ROWS)
def test_the_settings_of_every_row_are_allowed(row: Variant, bench: Workspace):
    assert len(plan.cells_of_row("any", row, bench)) == row.grid[0] * row.grid[1]


def test_headline_rows_have_five_subjects_and_three_seeds_and_all_others_at_least_three_and_two():
    rows = {(name, row.name): row.grid for name, lab in LABS.items() for row in lab.rows}
    assert load_config(CONFIG).prior.source == "teacher"  # the default is the teacher prior
    for row in ("default", "no prior", "sampled class pictures"):
        assert rows["headline", row] == (5, 3)
    assert all(subjects >= 3 and seeds >= 2 for subjects, seeds in rows.values())
    assert len(SUBJECTS) == 5


def test_what_a_lab_shows_and_claims_is_there():
    for name, lab in LABS.items():
        rows = [row.name for row in lab.rows]
        assert len(set(rows)) == len(rows), f"{name}: two rows of one name"
        assert set(lab.figures) <= set(FIGURES), f"{name}: a column that is not measured"
        assert set(lab.paper) <= set(rows), f"{name}: the paper's figures for a row that there is not"
        for claim in lab.claims:
            assert {claim.more, claim.less} <= set(rows), f"{name}: {claim.said}"
            assert claim.figure in FIGURES, f"{name}: {claim.said}"


def test_subjects_are_of_different_classes_and_no_wrong_noun_is_right():
    assert len({subject.class_noun for subject in SUBJECTS}) == len(SUBJECTS)
    for subject in SUBJECTS:
        assert subject.class_noun in world.CLASSES
        assert subject.wrong_noun in set(world.CLASSES) - {subject.class_noun}


def test_fewer_photos_are_the_first_of_more_and_show_no_place_that_is_drawn():
    five = [picture.tobytes() for picture in photos("dog", 1, 5)]
    assert [picture.tobytes() for picture in photos("dog", 1, 2)] == five[:2]
    shipped = [Image.open(path).convert("RGB").tobytes() for path in sorted((ROOT / "data" / "dog").glob("*.png"))]
    assert five == shipped
    assert not set(PLACES) & set(UNSEEN_PLACES)


# ------------------------------------------------------------------------------------------------ the plan


def test_rows_that_come_to_the_same_settings_share_their_runs(bench: Workspace):
    default = fingerprint_of(Variant("default"), bench)
    assert fingerprint_of(Variant("other name", ("prior.weight=2", "method.train_text_encoder=true")), bench) == default
    assert fingerprint_of(Variant("not validated", ("validate.num_images=1",)), bench) == default
    without = fingerprint_of(Variant("no prior", ("prior.source=none",)), bench)
    assert fingerprint_of(Variant("of no use", ("prior.source=none", "prior.num_images=7")), bench) == without


def test_whatever_changes_the_figures_changes_the_fingerprint(bench: Workspace, tiny_base_v: Path, tmp_path: Path):
    other_encoders = tmp_path / "other"
    encoders.save(encoders.build_vit(encoders.Size(8, 1, 1)), other_encoders / "vit")
    encoders.save(encoders.build_clip(encoders.Size(8, 1, 1, 8, 1, 8)), other_encoders / "clip")
    variants = [
        fingerprint_of(Variant("default"), bench),
        fingerprint_of(Variant("lr", ("optim.lr=1e-5",)), bench),
        fingerprint_of(Variant("weight", ("prior.weight=3",)), bench),
        fingerprint_of(Variant("none", ("prior.source=none",)), bench),
        fingerprint_of(Variant("photos", num_photos=4), bench),
        fingerprint_of(Variant("noun", noun="wrong"), bench),
        fingerprint_of(Variant("noun", noun="none"), bench),
        fingerprint_of(Variant("best", validates=True), bench),
        fingerprint_of(
            Variant("base"), Workspace(CONFIG, bench.encoders, bench.judge, more=(f"model.base={tiny_base_v}",))
        ),
        fingerprint_of(Variant("encoders"), Workspace(CONFIG, other_encoders, bench.judge, more=bench.more)),
    ]
    assert len(set(variants)) == len(variants)


def test_other_encoders_need_no_other_training(bench: Workspace, tmp_path: Path):
    encoders.save(encoders.build_vit(encoders.Size(8, 1, 1)), tmp_path / "other" / "vit")
    encoders.save(encoders.build_clip(encoders.Size(8, 1, 1, 8, 1, 8)), tmp_path / "other" / "clip")
    other = Workspace(CONFIG, tmp_path / "other", bench.judge, more=bench.more)
    first, second = (plan.cells_of_row("any", Variant("default"), one)[0] for one in (bench, other))
    assert first.training == second.training
    assert first.fingerprint != second.fingerprint


def test_a_laboratory_without_encoders_says_what_is_missing(bench: Workspace, tmp_path: Path):
    nowhere = Workspace(CONFIG, tmp_path / "none", bench.judge, more=bench.more)
    with pytest.raises(ModelError, match="no weights"):
        plan.cells_of_row("any", Variant("default"), nowhere)


def test_each_cell_is_planned_once_and_first_seeds_come_first(bench: Workspace):
    cells = plan.plan(["headline", "prior", "weight", "map"], bench)
    assert len({cell.key for cell in cells}) == len(cells)
    early, late = ([cell for cell in cells if LABS[cell.lab].late == is_late] for is_late in (False, True))
    assert cells == early + late
    for part in (early, late):
        assert [cell.seed for cell in part] == sorted(cell.seed for cell in part)
    assert {cell.row.name for cell in cells[:5]} == {row.name for row in LABS["headline"].rows}


def test_only_some_rows_subjects_and_seeds_can_be_run(bench: Workspace):
    cells = plan.plan(["headline"], bench, only=["no prior"], num_subjects=2, num_seeds=1)
    assert [(cell.row.name, str(cell.subject), cell.seed) for cell in cells] == [
        ("no prior", "robot 21", 0),
        ("no prior", "dog 1", 0),
    ]


def test_a_lab_that_there_is_not_is_told_with_those_there_are():
    with pytest.raises(UserError, match="headline"):
        cli.names_of(["headlin"])
    assert cli.names_of(["map", "all"]) == list(LABS)


def test_the_command_tells_what_it_would_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(ROOT)
    limits = ["--only", "frozen", "--subjects", "2", "--seeds", "1", "--work", str(tmp_path / "work"), "--dry-run"]
    assert main(["lab", "text", *limits]) == 0
    *told, count = capsys.readouterr().out.splitlines()
    assert set(told) <= {"text / frozen / robot 21 / seed 0", "text / frozen / dog 1 / seed 0"}
    assert count == f"{len(told)} of 2 cells to run"
    assert not (tmp_path / "work").exists()
    assert main(["lab", "text", "--only", "frosen"]) == 2
    assert "trained, frozen" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the store


@pytest.fixture
def cells(bench: Workspace) -> list[Trial]:
    return plan.plan(["weight"], bench)


def test_what_was_stored_is_there_in_the_next_process(bench: Workspace, cells: list[Trial]):
    Store(bench.results).add(cells[0], made_up(0))
    Store(bench.results).add(cells[1], made_up(1))
    again = Store(bench.results)
    found = again.get(cells[1])
    assert found is not None
    assert found.figures == pytest.approx(made_up(1), rel=1e-5)
    assert again.get(cells[0]) is not None
    assert again.get(cells[2]) is None


def test_lines_of_other_settings_are_kept_but_not_used(bench: Workspace, cells: list[Trial]):
    Store(bench.results).add(cells[0], made_up(0))
    changed = plan.plan(["weight"], Workspace(CONFIG, bench.encoders, bench.judge, more=(*bench.more, "optim.lr=1e-5")))
    store = Store(bench.results)
    assert all(store.get(cell) is None for cell in changed)
    store.add(changed[0], made_up(1))
    assert Store(bench.results).get(cells[0]) is not None


def test_a_line_torn_by_a_kill_costs_that_cell_only(bench: Workspace, cells: list[Trial]):
    store = Store(bench.results)
    for number in range(2):
        store.add(cells[number], made_up(number))
    text = bench.results.read_text()
    bench.results.write_text(text[: len(text) - 30])
    torn = Store(bench.results)
    assert torn.get(cells[0]) is not None
    assert torn.get(cells[1]) is None
    torn.add(cells[2], made_up(2))
    assert Store(bench.results).get(cells[2]) is not None


def test_a_file_of_another_version_is_refused(bench: Workspace):
    bench.results.parent.mkdir(parents=True)
    bench.results.write_text("some,other,columns\n")
    with pytest.raises(UserError, match="other columns"):
        Store(bench.results)


def test_the_shipped_results_are_of_the_shipped_base_and_config() -> None:
    """Else the tables would be empty: what a cell was measured with is part of its fingerprint."""
    base, results = ROOT / "checkpoints" / "toyworld", ROOT / "benchmarks" / "lab" / "results.csv"
    shipped = Workspace(CONFIG, SHIPPED_ENCODERS, base / "judge", results, more=(f"model.base={base}",))
    store = Store(results)
    cells = [cell for row in LABS["map"].rows for cell in plan.cells_of_row("map", row, shipped)]
    assert [str(cell) for cell in cells if store.get(cell) is None] == []


# ------------------------------------------------------------------------------------------------ tables and plots


@pytest.fixture
def filled(bench: Workspace, cells: list[Trial]) -> Store:
    store = Store(bench.results)
    for number, cell in enumerate(cells):
        store.add(cell, made_up(number))
    return store


def test_tables_show_mean_interval_and_range_over_subjects(bench: Workspace, cells: list[Trial], filled: Store):
    rows = tables.collect("weight", bench, filled)
    text = tables.main_table(LABS["weight"], rows)
    for row in LABS["weight"].rows:
        by_subject: dict[str, list[float]] = {}
        for number, cell in enumerate(cells):
            if cell.row.name == row.name:
                by_subject.setdefault(str(cell.subject), []).append(made_up(number)["place_right"])
        means = [np.mean(numbers) for numbers in by_subject.values()]
        low, high = stats.t.interval(0.95, len(means) - 1, np.mean(means), stats.sem(means))
        values = [value for numbers in by_subject.values() for value in numbers]
        low, high = max(0, low), min(1, high)
        is_even = round(np.mean(means) - low, 3) == round(high - np.mean(means), 3)
        interval = f"± {(high - low) / 2:.3f}" if is_even else f"({low:.3f} to {high:.3f})"
        told = f"**{np.mean(means):.3f}** {interval}<br>{min(values):.3f} – {max(values):.3f}"
        line = next(line for line in text.splitlines() if line.startswith(f"| {row.name} | 6 of 6 |"))
        assert told in line


def test_rows_are_compared_on_the_same_subject_and_seed(bench: Workspace, cells: list[Trial]):
    store = Store(bench.results)
    for number, cell in enumerate(cells):
        same = 10 * SUBJECTS.index(cell.subject) + cell.seed  # subjects differ by far more than rows
        more = {"1": 0.0, "0": 0.5, "0.5": -0.25, "2": 0.0}[cell.row.name]
        store.add(cell, {**made_up(number), "dino": same + more})
    by_name = {row.row.name: row for row in tables.collect("weight", bench, store)}
    found = tables.difference(by_name["0"], by_name["1"], "dino")
    assert found is not None
    assert (found.mean, found.high - found.low) == pytest.approx((0.5, 0), abs=1e-5)
    assert "**agrees**" in tables.verdict(Hypothesis("dino", "0", "1", ""), by_name)
    assert "**contradicts**" in tables.verdict(Hypothesis("dino", "0.5", "1", ""), by_name)
    assert "not decided" in tables.verdict(Hypothesis("dino", "2", "1", ""), by_name)


def test_a_row_without_results_is_shown_as_such(bench: Workspace, cells: list[Trial]):
    store = Store(bench.results)
    store.add(cells[0], made_up(0))
    text = tables.lab_text("weight", tables.collect("weight", bench, store))
    assert "| 2 | 1 of 6 |" in text
    assert "| 1 | 0 of 6 | – |" in text


@pytest.mark.parametrize("name", ["noun", "map"])
def test_every_lab_can_be_plotted_whatever_is_there_yet(name: str, bench: Workspace, tmp_path: Path):
    store = Store(bench.results)
    for number, cell in enumerate(plan.plan([name], bench, num_seeds=1)[:7]):
        store.add(cell, made_up(number))
    plots.plot(LABS[name], tables.collect(name, bench, store), tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size > (500, 300)


def test_the_report_replaces_its_own_section_and_nothing_else(bench: Workspace, filled: Store, tmp_path: Path):
    path = tmp_path / "lab" / "RESULTS.md"
    path.write_text("# Results\n\nBefore.\n")
    written = report.refresh(bench, filled, path, ["weight", "images"])
    assert written == [path, bench.results.parent / "weight.png"]
    path.write_text(path.read_text() + "\nAfter.\n")
    text = path.read_text()
    report.refresh(bench, filled, path, ["weight", "images"])
    assert path.read_text() == text
    assert text.startswith("# Results\n\nBefore.\n")
    assert text.count("## The laboratory") == 1
    assert LABS["images"].title not in text, "a lab without results has no place there"


# ------------------------------------------------------------------------------------------------ processes


def test_a_task_that_fails_is_told_and_the_others_are_done(tmp_path: Path):
    done = {one.task: one for one in run_tasks([4.0, -1.0, 9.0, -4.0, 16.0], math.sqrt, 2, tmp_path)}
    assert {task: one.result for task, one in done.items()} == {4.0: 2.0, -1.0: None, 9.0: 3.0, -4.0: None, 16.0: 4.0}
    assert "ValueError" in done[-1.0].error


def test_a_worker_that_dies_without_a_word_takes_its_task_alone(tmp_path: Path):
    done = list(run_tasks([3, 4], os._exit, 1, tmp_path))
    assert [one.error.split(":")[0] for one in done] == ["exit code 3", "exit code 4"]


def test_no_task_is_started_when_the_time_is_over(tmp_path: Path):
    answers = iter([True, True, False, False, False])
    done = list(run_tasks([1.0, 4.0, 9.0, 16.0], math.sqrt, 1, tmp_path, lambda: next(answers)))
    assert [one.result for one in done] == [1.0, 2.0]


ORPHANS = """
import math, multiprocessing, pathlib, sys, time
from toyworld.lab.pool import run_tasks
if __name__ == "__main__":
    tasks = run_tasks([1.0, 4.0], math.sqrt, 2, pathlib.Path(sys.argv[1]))
    next(tasks)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path):
    (tmp_path / "parent.py").write_text(ORPHANS)
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as parent:
        assert parent.stdout is not None
        workers = [int(number) for number in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(_is_alive(number) for number in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 2
    assert not any(_is_alive(number) for number in workers)


def _is_alive(pid: int) -> bool:
    """Whether it still runs; a zombie that nobody has buried does not."""
    status = Path(f"/proc/{pid}/status")
    try:
        return re.search(r"State:\s+[ZX]", status.read_text()) is None
    except (FileNotFoundError, ProcessLookupError):
        return False


# ------------------------------------------------------------------------------------------------ measuring


def test_a_way_is_0_at_its_start_and_1_at_its_end():
    assert (way(0.2, 0.2, 0.7), way(0.7, 0.2, 0.7), way(0.45, 0.2, 0.7)) == pytest.approx((0, 1, 0.5))


@pytest.fixture(scope="module")
def tools() -> measure.Tools:
    if not (SHIPPED_ENCODERS / "vit" / "model.safetensors").is_file():
        pytest.skip("the shipped encoders are not there yet")
    return measure.load_tools(SHIPPED_ENCODERS, ROOT / "checkpoints" / "toyworld" / "judge")


def fresh(spec: world.Spec, places: Sequence[str | None], seed: int) -> list[Image.Image]:
    """Renderings that no anchor shows."""
    rng = random.Random(f"fresh {seed}")
    return [world.render(spec, world.random_scene(rng, place)) for place in places]


def fresh_others(class_noun: str, places: Sequence[str | None], seed: int) -> list[Image.Image]:
    rng = random.Random(f"fresh others {seed}")
    return [world.render(world.random_spec(rng, class_noun), world.random_scene(rng, place)) for place in places]


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_a_perfect_model_comes_all_the_way_and_one_that_learned_nothing_none_of_it(tools: measure.Tools, subject):
    spec, own = world.subject(subject.class_noun, subject.seed), photos(subject.class_noun, subject.seed)
    places, anywhere = places_of(24), [None] * 24
    base = fresh_others(spec.class_noun, anywhere, 1)
    perfect = measure.measure(tools, spec, own, measure.Pictures(fresh(spec, places, 0), base, base))
    nothing = measure.measure(tools, spec, own, measure.Pictures(fresh_others(spec.class_noun, places, 2), base, base))
    assert perfect["fidelity_way"] == pytest.approx(1, abs=0.1)
    assert nothing["fidelity_way"] == pytest.approx(0, abs=0.15)
    assert perfect["div_share"] == pytest.approx(1)
    assert perfect["drift"] == pytest.approx(0, abs=1e-4)
    assert perfect["pres_way"] == pytest.approx(0, abs=0.15)
    for name in ("place_right", "class_right", "main_right", "second_right", "pattern_right"):
        assert perfect[name] >= 0.95, name
    assert perfect["true_similarity"] > 0.7 > 0.4 > nothing["true_similarity"]


def test_a_model_that_draws_the_subject_for_the_class_has_leaked_all_of_it(tools: measure.Tools):
    spec, own = world.subject("robot", 21), photos("robot", 21)
    base = fresh_others("robot", [None] * 24, 1)
    leaked = measure.measure(
        tools, spec, own, measure.Pictures(fresh(spec, places_of(24), 0), fresh(spec, [None] * 24, 3), base)
    )
    assert leaked["pres_way"] == pytest.approx(1, abs=0.15)
    assert leaked["div_share"] < 0.5
    assert leaked["base_pres_way"] == pytest.approx(0, abs=0.15)
    wrong_place = measure.Pictures(fresh(spec, ["snow"] * 24, 0), base, base)
    assert measure.measure(tools, spec, own, wrong_place)["place_right"] <= 0.05


# ------------------------------------------------------------------------------------------------ a cell


def test_a_cell_has_every_figure_and_is_not_drawn_again(bench: Workspace):
    cell = plan.plan(["headline"], bench)[0]
    figures = run_cell(bench, cell)
    assert set(figures) == set(FIGURES)
    assert figures["kept_step"] == 2
    assert figures["seconds_training"] > 0
    assert figures["seconds_prior"] > 0
    assert not list((bench.work / "runs").iterdir()), "a run's folder is deleted when it has been drawn from"
    start = time.process_time()
    assert run_cell(bench, cell) == figures
    assert time.process_time() - start < 5


@pytest.mark.slow
def test_cells_share_class_pictures_which_changes_nothing(bench: Workspace):
    default, double = plan.plan(["weight"], bench, only=["1", "2"], num_subjects=1, num_seeds=1)
    run_cell(bench, default)
    shared = run_cell(bench, double)
    assert len(list((bench.work / "priors").iterdir())) == 1
    alone = run_cell(
        Workspace(CONFIG, bench.encoders, bench.judge, bench.results, bench.work / "own", bench.more), double
    )
    costs = [name for name in FIGURES if name.startswith("seconds")]
    assert {**alone, **{name: shared[name] for name in costs}} == shared


def test_the_lora_of_the_laboratory_is_the_shipped_config() -> None:
    """Else its figures would be of something that nobody trains. Only the file is in half precision."""
    lora, shipped = (
        plan.settings_of(load_config(path, overrides))
        for path, overrides in ((CONFIG, WORD_AND_LORA), (CONFIG.with_name("toyworld-lora.yaml"), []))
    )
    assert lora == {key: value for key, value in shipped.items() if key != "model.export_dtype"}
