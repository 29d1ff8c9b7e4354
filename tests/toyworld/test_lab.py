"""The laboratory: its experiments, what is run again and what is not, and what its metrics mean."""

import contextlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.errors import ModelError, UserError
from toyworld import encoders, outcome, world
from toyworld.editions import EDITIONS, edition_of
from toyworld.lab import cli, measure, plan, plots, report, tables
from toyworld.lab.experiments import EXPERIMENTS, SUBJECTS, WORD_AND_LORA, Hypothesis, Variant
from toyworld.lab.metrics import METRICS, fraction_of_range
from toyworld.lab.plan import Trial, Workspace
from toyworld.lab.runs import run_trial
from toyworld.lab.store import Store
from toyworld.outcome import UNSEEN_PLACES, places_of
from toyworld.photos import PLACES, captions, photos
from toyworld.readers import segmenter

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "toyworld.yaml"
CHECKPOINTS = ROOT / "checkpoints"
FIRST_BASE, SECOND_BASE = CHECKPOINTS / "toyworld", CHECKPOINTS / "toyworld-second"
SHIPPED_ENCODERS = {"first": CHECKPOINTS / "toyworld-encoders", "second": CHECKPOINTS / "toyworld-second-encoders"}
SHIPPED_JUDGES = {"first": FIRST_BASE / "judge", "second": SECOND_BASE / "judge"}
VARIANTS = [
    pytest.param(variant, id=f"{name}: {variant.name}")
    for name, experiment in EXPERIMENTS.items()
    for variant in experiment.variants
]


@pytest.fixture(scope="module")
def small_encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained ones of the shipped kind."""
    folder = tmp_path_factory.mktemp("encoders")
    size = encoders.Size(width=16, num_layers=1, num_heads=2, text_width=16, num_text_layers=1, projection_dim=8)
    encoders.save(encoders.build_vit(size), folder / "vit")
    encoders.save(encoders.build_clip(size), folder / "clip")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, tiny_base: Path, small_encoders: Path) -> Workspace:
    """A laboratory on the tiny base, with runs of two steps."""
    more = (f"model.base={tiny_base}", "train.max_steps=2", "prior.num_images=4", "prior.num_inference_steps=2")
    judge, first_judge = SHIPPED_JUDGES["second"], SHIPPED_JUDGES["first"]
    results, work = tmp_path / "lab" / "results.csv", tmp_path / "work"
    return Workspace(CONFIG, small_encoders, judge, results, work, more, small_encoders, first_judge)


def with_encoders(workspace: Workspace, folder: Path) -> Workspace:
    """The same laboratory, measuring with other encoders on every base."""
    return replace(workspace, encoders=folder, first_encoders=folder)


def fingerprint_of(variant: Variant, workspace: Workspace) -> str:
    return plan.trials_of("weight", variant, workspace)[0].fingerprint


def made_up(seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    return {name: rng.random() for name in METRICS}


# ------------------------------------------------------------------------------------------------ the experiments


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_settings_of_every_variant_are_allowed(variant: Variant, workspace: Workspace):
    assert len(plan.trials_of("weight", variant, workspace)) == variant.grid[0] * variant.grid[1]


def test_the_defaults_have_five_subjects_and_three_seeds_on_both_bases_and_all_others_at_least_three_and_two():
    variants = {
        (name, variant.name): variant.grid
        for name, experiment in EXPERIMENTS.items()
        for variant in experiment.variants
    }
    assert load_config(CONFIG).prior.source == "teacher"  # the default is the teacher prior
    for variant in ("default", "no prior", "sampled class pictures"):
        assert variants["headline", variant] == variants["first", variant] == (5, 3)
    assert all(subjects >= 3 and seeds >= 2 for subjects, seeds in variants.values())
    assert len(SUBJECTS) == 5


def test_what_an_experiment_shows_and_claims_is_there():
    for name, experiment in EXPERIMENTS.items():
        variants = [variant.name for variant in experiment.variants]
        assert len(set(variants)) == len(variants), f"{name}: two variants of one name"
        assert set(experiment.metrics) <= set(METRICS), f"{name}: a column that is not measured"
        assert set(experiment.paper) <= set(variants), f"{name}: a value of the paper for an unknown variant"
        for hypothesis in experiment.hypotheses:
            assert {hypothesis.more, hypothesis.less} <= set(variants), f"{name}: {hypothesis.reported}"
            assert hypothesis.metric in METRICS, f"{name}: {hypothesis.reported}"


def test_subjects_are_of_different_classes_and_no_wrong_noun_is_right():
    assert len({subject.class_noun for subject in SUBJECTS}) == len(SUBJECTS)
    for subject in SUBJECTS:
        assert subject.class_noun in world.CLASSES
        assert subject.wrong_noun in set(world.CLASSES) - {subject.class_noun}


@pytest.mark.parametrize(("edition", "folder"), [("first", "dog"), ("second", "second-dog")])
def test_fewer_photos_are_the_first_of_more_and_the_five_are_shipped(edition: str, folder: str):
    five = [image.tobytes() for image in photos("dog", 1, 5, edition=EDITIONS[edition])]
    assert [image.tobytes() for image in photos("dog", 1, 2, edition=EDITIONS[edition])] == five[:2]
    shipped = [Image.open(path).convert("RGB").tobytes() for path in sorted((ROOT / "data" / folder).glob("*.png"))]
    assert five == shipped


def test_photos_with_captions_are_those_without_and_show_no_place_that_is_drawn():
    captioned = ROOT / "data" / "robot-captioned"
    assert [path.read_text().strip() for path in sorted(captioned.glob("*.txt"))] == captions()
    for path in sorted(captioned.glob("*.png")):
        assert path.read_bytes() == (ROOT / "data" / "robot" / path.name).read_bytes()
    assert not set(PLACES) & set(UNSEEN_PLACES)


# ------------------------------------------------------------------------------------------------ the plan


def test_variants_that_come_to_the_same_settings_share_their_runs(workspace: Workspace):
    default = fingerprint_of(Variant("default"), workspace)
    assert (
        fingerprint_of(Variant("other name", ("prior.weight=2", "method.train_text_encoder=true")), workspace)
        == default
    )
    assert fingerprint_of(Variant("not validated", ("validate.num_images=1",)), workspace) == default
    without = fingerprint_of(Variant("no prior", ("prior.source=none",)), workspace)
    assert fingerprint_of(Variant("of no use", ("prior.source=none", "prior.num_images=7")), workspace) == without


def test_whatever_changes_the_results_changes_the_fingerprint(workspace: Workspace, tiny_base_v: Path, tmp_path: Path):
    other_encoders = tmp_path / "other"
    encoders.save(encoders.build_vit(encoders.Size(8, 1, 1)), other_encoders / "vit")
    encoders.save(encoders.build_clip(encoders.Size(8, 1, 1, 8, 1, 8)), other_encoders / "clip")
    variants = [
        fingerprint_of(Variant("default"), workspace),
        fingerprint_of(Variant("lr", ("optim.lr=1e-5",)), workspace),
        fingerprint_of(Variant("weight", ("prior.weight=3",)), workspace),
        fingerprint_of(Variant("none", ("prior.source=none",)), workspace),
        fingerprint_of(Variant("photos", num_photos=4), workspace),
        fingerprint_of(Variant("noun", noun="wrong"), workspace),
        fingerprint_of(Variant("noun", noun="none"), workspace),
        fingerprint_of(Variant("best", validates=True), workspace),
        fingerprint_of(Variant("base"), replace(workspace, more=(*workspace.more, f"model.base={tiny_base_v}"))),
        fingerprint_of(Variant("encoders"), with_encoders(workspace, other_encoders)),
        fingerprint_of(Variant("judge"), replace(workspace, judge=workspace.first_judge)),
    ]
    assert len(set(variants)) == len(variants)
    of_first_base = [
        plan.trials_of("first", Variant("default"), lab)[0].fingerprint
        for lab in (
            workspace,
            replace(workspace, first_judge=workspace.judge),
            replace(workspace, first_encoders=other_encoders),
            replace(workspace, judge=workspace.first_judge, encoders=other_encoders),
        )
    ]
    assert len(set(of_first_base)) == 3
    assert of_first_base[0] == of_first_base[-1], "what measures on the second base does not count here"


def test_other_encoders_need_no_other_training(workspace: Workspace, tmp_path: Path):
    encoders.save(encoders.build_vit(encoders.Size(8, 1, 1)), tmp_path / "other" / "vit")
    encoders.save(encoders.build_clip(encoders.Size(8, 1, 1, 8, 1, 8)), tmp_path / "other" / "clip")
    other = with_encoders(workspace, tmp_path / "other")
    variant = Variant("any", ("method.start_word=null",))  # else CLIP chooses it
    first, second = (plan.trials_of("weight", variant, one)[0] for one in (workspace, other))
    assert first.training == second.training
    assert first.fingerprint != second.fingerprint


def test_another_clip_needs_another_training_where_it_chooses_the_words(workspace: Workspace, tmp_path: Path):
    encoders.save(encoders.build_vit(encoders.Size(8, 1, 1)), tmp_path / "other" / "vit")
    encoders.save(encoders.build_clip(encoders.Size(8, 1, 1, 8, 1, 8)), tmp_path / "other" / "clip")
    for word, is_same in (("auto", False), ("null", True)):
        variant = Variant("any", (f"method.start_word={word}",))
        labs = (workspace, with_encoders(workspace, tmp_path / "other"))
        first, second = (plan.trials_of("weight", variant, lab)[0].training for lab in labs)
        assert (first == second) == is_same


@pytest.fixture
def two_folders(tmp_path: Path) -> list[Path]:
    """Two folders with another mask finder, ViT and CLIP each, at the same paths within."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for width, folder in zip((4, 8), folders, strict=True):
        size = segmenter.Size((4, 4, 8, 8), (1, 1, 1, 1), width)
        segmenter.save(segmenter.build_segmenter(size), folder / "finder")
        encoders.save(encoders.build_vit(encoders.Size(width, 1, 1)), folder / "vit")
        encoders.save(encoders.build_clip(encoders.Size(width, 1, 1, 8, 1, 8)), folder / "clip")
    return folders


def trainings(variant: Variant, labs: Sequence[Workspace], folders: Sequence[Path]) -> set[str]:
    """The fingerprints of a variant's training in laboratories that are each run from its own folder."""
    found = set()
    for lab, folder in zip(labs, folders, strict=True):
        with contextlib.chdir(folder):
            found.add(plan.trials_of("weight", variant, lab)[0].training)
    return found


def test_another_mask_finder_needs_another_training_where_it_finds_the_masks(
    workspace: Workspace, two_folders: list[Path]
):
    for mask, num in (("auto", 2), ("alpha", 1)):
        variant = Variant("any", (f"data.mask={mask}", "data.mask_model=finder"))
        assert len(trainings(variant, [workspace, workspace], two_folders)) == num


def test_other_encoders_need_another_training_where_it_validates(workspace: Workspace, two_folders: list[Path]):
    start = "method.start_word=null"  # else CLIP chooses it
    for validates, num in ((True, 2), (False, 1)):
        with_vit = Variant("ViT", (start, "validate.dino=vit"), validates=validates)
        assert len(trainings(with_vit, [workspace, workspace], two_folders)) == num
        labs = [with_encoders(workspace, folder) for folder in two_folders]
        assert len(trainings(Variant("CLIP", (start,), validates=validates), labs, two_folders)) == num


def test_a_laboratory_without_encoders_says_what_is_missing(workspace: Workspace, tmp_path: Path):
    nowhere = with_encoders(workspace, tmp_path / "none")
    for experiment in ("headline", "weight"):
        with pytest.raises(ModelError, match="no weights"):
            plan.trials_of(experiment, Variant("default"), nowhere)


def test_each_base_is_measured_with_the_encoders_and_judge_of_its_edition(workspace: Workspace, tmp_path: Path):
    lab = replace(workspace, first_encoders=tmp_path / "of the first")
    own, first, flow = (lab.of(name) for name in ("headline", "first", "flow"))
    assert own == lab
    assert edition_of(own.judge) is EDITIONS["second"]
    for other in (first, flow):
        assert (other.encoders, other.judge) == (lab.first_encoders, lab.first_judge)
        assert edition_of(other.judge) is EDITIONS["first"]
    assert first.config == lab.config
    assert flow.config == lab.flow_config


def test_experiments_on_the_first_base_are_so_unless_they_are_told_otherwise(
    workspace: Workspace, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    assert replace(workspace, more=()).of("first").base.resolve() == FIRST_BASE
    assert replace(workspace, more=()).of("headline").base.resolve() == SECOND_BASE
    assert workspace.of("first").base == tiny_base


def test_each_trial_is_planned_once_and_first_seeds_come_first(workspace: Workspace):
    trials = plan.plan(["headline", "prior", "weight", "map"], workspace)
    assert len({trial.key for trial in trials}) == len(trials)
    early, late = (
        [trial for trial in trials if EXPERIMENTS[trial.experiment].late == is_late] for is_late in (False, True)
    )
    assert trials == early + late
    for part in (early, late):
        assert [trial.seed for trial in part] == sorted(trial.seed for trial in part)
    names = {variant.name for variant in EXPERIMENTS["headline"].variants}
    assert {trial.variant.name for trial in trials[: len(names)]} == names


def test_only_some_variants_subjects_and_seeds_can_be_run(workspace: Workspace):
    trials = plan.plan(["headline"], workspace, only=["no prior"], num_subjects=2, num_seeds=1)
    assert [(trial.variant.name, str(trial.subject), trial.seed) for trial in trials] == [
        ("no prior", "robot 21", 0),
        ("no prior", "dog 1", 0),
    ]


def test_an_unknown_experiment_is_reported_with_the_known_ones():
    with pytest.raises(UserError, match="headline"):
        cli.names_of(["headlin"])
    assert cli.names_of(["map", "all"]) == list(EXPERIMENTS)


def test_the_command_lists_what_it_would_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(ROOT)
    limits = ["--only", "frozen", "--subjects", "2", "--seeds", "1", "--work", str(tmp_path / "work"), "--dry-run"]
    assert main(["lab", "text", *limits]) == 0
    *listed, count = capsys.readouterr().out.splitlines()
    assert set(listed) <= {"text / frozen / robot 21 / seed 0", "text / frozen / dog 1 / seed 0"}
    assert count == f"{len(listed)} of 2 trials to run"
    assert not (tmp_path / "work").exists()
    for names in (["frosen"], ["frozen", "frosen"]):
        assert main(["lab", "text", "--only", *names, "--dry-run"]) == 2
        message = capsys.readouterr().err
        assert "--only=frosen" in message
        assert "trained, frozen" in message


@pytest.mark.parametrize("option", ["--seeds", "--subjects", "--workers"])
def test_no_seeds_subjects_or_workers_are_reported_by_their_option(option: str, capsys: pytest.CaptureFixture[str]):
    assert main(["lab", "text", option, "0", "--dry-run"]) == 2
    assert f"{option}=0: too few" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the store


@pytest.fixture
def trials(workspace: Workspace) -> list[Trial]:
    return plan.plan(["weight"], workspace)


def test_what_was_stored_is_there_in_the_next_process(workspace: Workspace, trials: list[Trial]):
    Store(workspace.results).add(trials[0], made_up(0))
    Store(workspace.results).add(trials[1], made_up(1))
    again = Store(workspace.results)
    found = again.get(trials[1])
    assert found is not None
    assert found.metrics == pytest.approx(made_up(1), rel=1e-5)
    assert again.get(trials[0]) is not None
    assert again.get(trials[2]) is None


def test_lines_of_other_settings_are_kept_but_not_used(workspace: Workspace, trials: list[Trial]):
    Store(workspace.results).add(trials[0], made_up(0))
    changed = plan.plan(["weight"], replace(workspace, more=(*workspace.more, "optim.lr=1e-5")))
    store = Store(workspace.results)
    assert all(store.get(trial) is None for trial in changed)
    store.add(changed[0], made_up(1))
    assert Store(workspace.results).get(trials[0]) is not None


def test_a_line_torn_by_a_kill_costs_that_trial_only(workspace: Workspace, trials: list[Trial]):
    store = Store(workspace.results)
    for number in range(2):
        store.add(trials[number], made_up(number))
    text = workspace.results.read_text()
    workspace.results.write_text(text[: len(text) - 30])
    torn = Store(workspace.results)
    assert torn.get(trials[0]) is not None
    assert torn.get(trials[1]) is None
    torn.add(trials[2], made_up(2))
    assert Store(workspace.results).get(trials[2]) is not None


def test_a_file_of_another_version_is_refused(workspace: Workspace):
    workspace.results.parent.mkdir(parents=True)
    workspace.results.write_text("some,other,columns\n")
    with pytest.raises(UserError, match="other columns"):
        Store(workspace.results)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_shipped_results_are_of_the_shipped_bases_and_configs(name: str, monkeypatch: pytest.MonkeyPatch):
    """Else the tables would be empty: what a trial was measured with is part of its fingerprint."""
    monkeypatch.chdir(ROOT)
    shipped = Workspace()
    store = Store(shipped.results)
    trials = [trial for variant in EXPERIMENTS[name].variants for trial in plan.trials_of(name, variant, shipped)]
    assert [str(trial) for trial in trials if store.get(trial) is None] == []


# ------------------------------------------------------------------------------------------------ tables and plots


@pytest.fixture
def filled(workspace: Workspace, trials: list[Trial]) -> Store:
    store = Store(workspace.results)
    for number, trial in enumerate(trials):
        store.add(trial, made_up(number))
    return store


def test_tables_show_mean_interval_and_range_over_subjects(workspace: Workspace, trials: list[Trial], filled: Store):
    variants = tables.collect("weight", workspace, filled)
    text = tables.main_table(EXPERIMENTS["weight"], variants)
    for variant in EXPERIMENTS["weight"].variants:
        by_subject: dict[str, list[float]] = {}
        for number, trial in enumerate(trials):
            if trial.variant.name == variant.name:
                by_subject.setdefault(str(trial.subject), []).append(made_up(number)["place_right"])
        means = [np.mean(numbers) for numbers in by_subject.values()]
        low, high = stats.t.interval(0.95, len(means) - 1, np.mean(means), stats.sem(means))
        values = [value for numbers in by_subject.values() for value in numbers]
        low, high = max(0, low), min(1, high)
        is_even = round(np.mean(means) - low, 3) == round(high - np.mean(means), 3)
        interval = f"± {(high - low) / 2:.3f}" if is_even else f"({low:.3f} to {high:.3f})"
        cell = f"**{np.mean(means):.3f}** {interval}<br>{min(values):.3f} – {max(values):.3f}"
        line = next(line for line in text.splitlines() if line.startswith(f"| {variant.name} | 6 of 6 |"))
        assert cell in line


def test_variants_are_compared_on_the_same_subject_and_seed(workspace: Workspace, trials: list[Trial]):
    store = Store(workspace.results)
    for number, trial in enumerate(trials):
        same = 10 * SUBJECTS.index(trial.subject) + trial.seed  # subjects differ by far more than variants
        more = {"1": 0.0, "0": 0.5, "0.5": -0.25, "2": 0.0}[trial.variant.name]
        store.add(trial, {**made_up(number), "dino": same + more})
    by_name = {variant.variant.name: variant for variant in tables.collect("weight", workspace, store)}
    found = tables.difference(by_name["0"], by_name["1"], "dino")
    assert found is not None
    assert (found.mean, found.high - found.low) == pytest.approx((0.5, 0), abs=1e-5)
    assert "**agrees**" in tables.verdict(Hypothesis("dino", "0", "1", ""), by_name)
    assert "**contradicts**" in tables.verdict(Hypothesis("dino", "0.5", "1", ""), by_name)
    assert "not decided" in tables.verdict(Hypothesis("dino", "2", "1", ""), by_name)


def test_a_variant_without_results_is_shown_as_such(workspace: Workspace, trials: list[Trial]):
    store = Store(workspace.results)
    store.add(trials[0], made_up(0))
    text = tables.experiment_text("weight", tables.collect("weight", workspace, store))
    assert "| 2 | 1 of 6 |" in text
    assert "| 1 | 0 of 6 | – |" in text


@pytest.mark.parametrize("name", ["noun", "map"])
def test_every_experiment_can_be_plotted_whatever_is_there_yet(name: str, workspace: Workspace, tmp_path: Path):
    store = Store(workspace.results)
    for number, trial in enumerate(plan.plan([name], workspace, num_seeds=1)[:7]):
        store.add(trial, made_up(number))
    plots.plot(EXPERIMENTS[name], tables.collect(name, workspace, store), tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size > (500, 300)


def test_the_report_replaces_its_own_section_and_nothing_else(workspace: Workspace, filled: Store, tmp_path: Path):
    path = tmp_path / "lab" / "RESULTS.md"
    path.write_text("# Results\n\nBefore.\n")
    written = report.refresh(workspace, filled, path, ["weight", "images"])
    assert written == [path, workspace.results.parent / "weight.png"]
    path.write_text(path.read_text() + "\nAfter.\n")
    text = path.read_text()
    report.refresh(workspace, filled, path, ["weight", "images"])
    assert path.read_text() == text
    assert text.startswith("# Results\n\nBefore.\n")
    assert text.count("## The laboratory") == 1
    assert EXPERIMENTS["images"].title not in text, "an experiment without results has no place there"


# ------------------------------------------------------------------------------------------------ measuring


def test_a_way_is_0_at_its_start_and_1_at_its_end():
    assert (
        fraction_of_range(0.2, 0.2, 0.7),
        fraction_of_range(0.7, 0.2, 0.7),
        fraction_of_range(0.45, 0.2, 0.7),
    ) == pytest.approx((0, 1, 0.5))


@pytest.fixture(scope="module", params=["first", "second"])
def tools(request: pytest.FixtureRequest) -> measure.Tools:
    """Return what images of an edition are measured with."""
    folder = SHIPPED_ENCODERS[request.param]
    if not all((folder / name / "model.safetensors").is_file() for name in encoders.NAMES):
        pytest.skip(f"{folder.name}: the shipped encoders are not there yet")
    found = measure.load_tools(folder, SHIPPED_JUDGES[request.param])
    assert found.edition is EDITIONS[request.param]
    return found


def fresh(tools: measure.Tools, spec: Any, places: Sequence[str | None], seed: int) -> list[Image.Image]:
    """Renderings that no anchor shows."""
    rng = random.Random(f"fresh {seed}")
    return [tools.edition.show(rng, spec, place) for place in places]


def fresh_others(tools: measure.Tools, class_noun: str, places: Sequence[str | None], seed: int) -> list[Image.Image]:
    rng = random.Random(f"fresh others {seed}")
    return [tools.edition.show(rng, tools.edition.random_spec(rng, class_noun), place) for place in places]


@pytest.mark.parametrize(
    "subject",
    [pytest.param(subject, marks=() if number < 3 else pytest.mark.slow) for number, subject in enumerate(SUBJECTS)],
    ids=str,
)
def test_a_perfect_model_comes_all_the_way_and_one_that_learned_nothing_none_of_it(tools: measure.Tools, subject):
    spec = tools.edition.subject(subject.class_noun, subject.seed)
    own = photos(subject.class_noun, subject.seed, edition=tools.edition)
    places, anywhere = places_of(24), [None] * 24
    base = fresh_others(tools, spec.class_noun, anywhere, 1)
    right, wrong = fresh(tools, spec, places, 0), fresh_others(tools, spec.class_noun, places, 2)
    perfect, nothing = (
        measure.measure(tools, spec, own, measure.Samples(drawn, base, base)) for drawn in (right, wrong)
    )
    assert perfect["fidelity_way"] == pytest.approx(1, abs=0.1)
    assert nothing["fidelity_way"] == pytest.approx(0, abs=0.15)
    assert perfect["div_share"] == pytest.approx(1)
    assert perfect["drift"] == pytest.approx(0, abs=1e-4)
    assert perfect["pres_way"] == pytest.approx(0, abs=0.15)
    for name in ("place_right", "class_right", "main_right", "second_right", "pattern_right"):
        assert perfect[name] >= 0.95, name
    assert perfect["true_similarity"] > 0.7 > 0.4 > nothing["true_similarity"]


def test_a_model_that_draws_the_subject_for_the_class_has_leaked_all_of_it(tools: measure.Tools):
    spec, own = tools.edition.subject("robot", 21), photos("robot", 21, edition=tools.edition)
    base, anywhere = fresh_others(tools, "robot", [None] * 24, 1), fresh(tools, spec, [None] * 24, 3)
    leaked = measure.measure(tools, spec, own, measure.Samples(fresh(tools, spec, places_of(24), 0), anywhere, base))
    assert leaked["pres_way"] == pytest.approx(1, abs=0.15)
    assert leaked["div_share"] < 0.5
    assert leaked["base_pres_way"] == pytest.approx(0, abs=0.15)
    wrong_place = measure.Samples(fresh(tools, spec, ["snow"] * 24, 0), base, base)
    assert measure.measure(tools, spec, own, wrong_place)["place_right"] <= 0.05


# ------------------------------------------------------------------------------------------------ a trial


@pytest.mark.parametrize("experiment", ["headline", "first"])
def test_a_trial_has_every_metric_and_is_not_sampled_again(
    experiment: str, workspace: Workspace, small_encoders: Path, monkeypatch: pytest.MonkeyPatch
):
    """The start word is chosen by a CLIP."""
    monkeypatch.setattr(outcome, "NUM_STEPS", 2)
    workspace = replace(workspace, more=(*workspace.more, f"validate.clip={small_encoders / 'clip'}"))
    trial = plan.plan([experiment], workspace)[0]
    metrics = run_trial(workspace, trial)
    assert set(metrics) == set(METRICS)
    assert metrics["kept_step"] == 2
    assert metrics["seconds_training"] > 0
    assert metrics["seconds_prior"] > 0
    assert not list((workspace.work / "runs").iterdir()), "a run's folder is deleted when it has been drawn from"
    sampled = {path: path.stat().st_mtime_ns for path in workspace.work.rglob("*.npz")}
    assert len(sampled) == 2, "the trial's and the base's"
    assert run_trial(workspace, trial) == metrics
    assert {path: path.stat().st_mtime_ns for path in workspace.work.rglob("*.npz")} == sampled


def test_a_trial_with_captions_takes_the_class_images_that_were_made_for_it(workspace: Workspace, monkeypatch):
    """Their prompts are the captions without the identifier."""
    monkeypatch.setattr(outcome, "NUM_STEPS", 2)
    plain, captioned = (
        plan.trials_of("weight", Variant("any", overrides), workspace)[0] for overrides in ((), ("data.captions=true",))
    )
    for number, trial in enumerate((plain, captioned), start=1):
        run_trial(workspace, trial)
        assert len(list((workspace.work / "priors").iterdir())) == number, "what the run itself finds there"


@pytest.mark.slow
def test_trials_share_class_images_which_changes_nothing(workspace: Workspace):
    default, double = plan.plan(["weight"], workspace, only=["1", "2"], num_subjects=1, num_seeds=1)
    run_trial(workspace, default)
    shared = run_trial(workspace, double)
    assert len(list((workspace.work / "priors").iterdir())) == 1
    alone = run_trial(replace(workspace, work=workspace.work / "own"), double)
    costs = [name for name in METRICS if name.startswith("seconds")]
    assert {**alone, **{name: shared[name] for name in costs}} == shared


def test_the_lora_of_the_laboratory_is_the_shipped_config() -> None:
    """Else its results would be of something that nobody trains. Only the file is in half precision."""
    lab = Workspace().of("lora")
    variant = Variant("word and LoRA", WORD_AND_LORA, validates=True)
    lora, shipped = (
        plan.settings_of(load_config(path, overrides))
        for path, overrides in (
            (CONFIG, plan.overrides_of(variant, lab)),
            (CONFIG.with_name("toyworld-lora.yaml"), []),
        )
    )
    assert lora == {key: value for key, value in shipped.items() if key != "model.export_dtype"}
