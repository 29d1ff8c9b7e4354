"""The verdict on a run is true: by the renderer's truth on the laboratory's runs, and on recorded validations."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dreambooth.metrics.selection import Anchors, Quality, choose, highest, means_of, quality
from dreambooth.metrics.validation_log import ValidationRecord
from dreambooth.metrics.verdict import NOT_JUDGED, NOT_SCORED, NOT_VALIDATED, RAISE_RATE, judge, judge_quality
from toyworld.lab.experiments import EXPERIMENTS

ROOT = Path(__file__).parent.parent
# What the untouched base and the five photos of each subject set as the scale in a validation of the demo: of both
# editions' bases, with an identifier that starts as the base has it, and with one that starts as words for the looks.
ANCHORS = {
    ("first", "itself"): {
        "robot": Anchors(0.916, 0.575, 0.532, 0.355, 0.487, 0.261),
        "dog": Anchors(0.864, 0.392, 0.436, 0.424, 0.496, 0.258),
        "backpack": Anchors(0.927, 0.530, 0.486, 0.482, 0.504, 0.276),
        "cat": Anchors(0.926, 0.404, 0.435, 0.379, 0.479, 0.221),
        "car": Anchors(0.967, 0.498, 0.472, 0.347, 0.513, 0.303),
    },
    ("first", "words"): {
        "robot": Anchors(0.916, 0.585, 0.568, 0.328, 0.504, 0.252),
        "dog": Anchors(0.864, 0.406, 0.422, 0.431, 0.497, 0.253),
        "backpack": Anchors(0.927, 0.547, 0.469, 0.501, 0.500, 0.252),
        "cat": Anchors(0.926, 0.476, 0.403, 0.438, 0.475, 0.220),
        "car": Anchors(0.967, 0.569, 0.489, 0.370, 0.497, 0.278),
    },
    ("second", "itself"): {
        "robot": Anchors(0.701, 0.241, 0.227, 0.622, 0.430, 0.197),
        "dog": Anchors(0.746, 0.158, 0.166, 0.676, 0.441, 0.147),
        "backpack": Anchors(0.847, 0.323, 0.401, 0.459, 0.410, 0.196),
        "cat": Anchors(0.871, 0.249, 0.208, 0.610, 0.454, 0.153),
        "car": Anchors(0.893, 0.299, 0.292, 0.480, 0.428, 0.174),
    },
    ("second", "words"): {
        "robot": Anchors(0.701, 0.369, 0.227, 0.622, 0.442, 0.197),
        "dog": Anchors(0.746, 0.231, 0.166, 0.676, 0.449, 0.147),
        "backpack": Anchors(0.847, 0.402, 0.401, 0.459, 0.431, 0.196),
        "cat": Anchors(0.871, 0.283, 0.208, 0.610, 0.439, 0.153),
        "car": Anchors(0.893, 0.351, 0.292, 0.480, 0.434, 0.174),
    },
}
FAILED = ("not learned", "ignores prompts", "forgot its class")

Run = dict[str, str]  # a line of the laboratory's results


@pytest.fixture(scope="module")
def laboratory() -> list[Run]:
    """Return every run on a base that there are anchors for: its scores, and what the renderer knows of its images."""
    with open(ROOT / "benchmarks" / "lab" / "results.csv", newline="") as file:
        return [run for run in csv.DictReader(file) if edition_of(run) != "flow"]


def edition_of(run: Run) -> str:
    """Return what the run's base is of. Runs on the first's of what is now run on the second's are called "first-"."""
    return "first" if run["lab"].startswith("first-") else EXPERIMENTS[run["lab"]].base


def anchors_of(run: Run) -> Anchors:
    edition, lab, row = edition_of(run), run["lab"], run["row"]
    if edition == "first":
        starts_as = "words" if lab == "first" and row in ("default", "fast identifier") else "itself"
    else:
        starts_as = "itself" if lab == "noun" or row in ("no start words", "frozen") else "words"
    return ANCHORS[edition, starts_as][run["subject"].split()[0]]


def verdict_on(run: Run) -> str:
    scores = {name: float(run[name]) for name in ("dino", "clip_t", "pres", "div", "drift")}
    return judge_quality(quality(scores, anchors_of(run))).outcome


def is_truly_good(run: Run) -> bool:
    """Whether it is the subject, in the place that the prompt names, and other objects of the class are not it."""
    is_subject, is_in_place = float(run["nearer_to_subject"]) >= 0.6, float(run["place_right"]) >= 0.75
    return is_subject and is_in_place and float(run["true_leak"]) <= 0.4


@pytest.mark.parametrize("edition", ["first", "second"])
def test_nine_of_ten_runs_that_are_called_learned_have_and_of_those_called_failed_one_has(
    laboratory: list[Run], edition: str
) -> None:
    called = Counter((verdict_on(run), is_truly_good(run)) for run in laboratory if edition_of(run) == edition)
    learned, not_learned = called["learned", True], called["learned", False]
    assert learned / (learned + not_learned) > 0.9
    good, bad = (sum(called[outcome, truth] for outcome in FAILED) for truth in (True, False))
    assert good / (good + bad) < 0.1
    assert not_learned / sum(number for (_, truth), number in called.items() if not truth) < 0.15, (
        "failures passed over"
    )


@pytest.mark.parametrize(
    ("experiment", "outcomes", "at_least"),
    [
        ("first/default", {"learned"}, 13),
        ("first/no prior", {"forgot its class"}, 15),
        ("first-noun/wrong", {"forgot its class"}, 6),  # it has no prior either
        ("first-text/frozen", {"not learned"}, 6),
        ("first-map/lr 2e-4, 120 steps", {"not learned", "partly learned"}, 6),  # too short
        ("first-map/lr 8e-4, 480 steps", {"ignores prompts"}, 6),  # too hot and too long
        ("headline/default", {"learned"}, 15),
        ("prior/no prior", {"forgot its class"}, 15),
        ("noun/wrong", {"forgot its class"}, 6),
        ("text/frozen", {"forgot its class"}, 6),
        ("first-pictures/1", {"ignores prompts"}, 3),  # the other three show the right place in three of four images
    ],
)
def test_each_kind_of_failure_is_called_by_its_name(
    laboratory: list[Run], experiment: str, outcomes: set[str], at_least: int
) -> None:
    called = Counter(verdict_on(run) for run in laboratory if f"{run['lab']}/{run['row']}" == experiment)
    assert sum(called[outcome] for outcome in outcomes) >= at_least, called


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """Return runs of the demo's kind as they were recorded: scores of each image, and the renderer's truth by step."""
    return json.loads((Path(__file__).parent / "recorded_runs.json").read_text())


def validations_of(run: dict[str, Any], anchors: Anchors, last_step: int = 10**9) -> list[ValidationRecord]:
    return [
        ValidationRecord(each["step"], 0.0, each["scores"], quality(means_of(each["scores"]), anchors))
        for each in run["validations"]
        if each["step"] <= last_step
    ]


def test_recorded_runs_are_judged_as_the_renderer_does(recorded: dict[str, Any]) -> None:
    for name, run in recorded.items():
        anchors = Anchors(**run["anchors"])
        assert judge(validations_of(run, anchors), anchors).outcome == run["verdict"], name


def test_the_kept_step_of_recorded_runs_is_truly_no_worse_than_the_one_with_the_highest_quality(
    recorded: dict[str, Any],
) -> None:
    for name, run in recorded.items():
        anchors = Anchors(**run["anchors"])
        validations = validations_of(run, anchors)
        kept, top = choose(validations, anchors), highest({each.step: value_of(each) for each in validations})
        if kept is not None and top is not None:
            similarity = run["similarity"]
            assert similarity[str(kept)] >= similarity[str(top)], name


def value_of(validation: ValidationRecord) -> float:
    assert validation.quality is not None
    return validation.quality.value


# ------------------------------------------------------------------------------------------------ what is said

SCALE = Anchors(real=0.9, dino=0.1, pres=0.1, div=0.8, clip_t=0.32, clip_t_ignored=0.24)


def record(
    step: int, fidelity: float, prompt_fidelity: float = 1.0, prior_preservation: float = 1.0
) -> ValidationRecord:
    """Return a validation of six images that are all alike."""
    means = {
        "dino": 0.1 + 0.8 * fidelity,
        "clip_t": 0.24 + 0.08 * prompt_fidelity,
        "pres": 0.1,
        "div": 0.8 * prior_preservation,
    }
    scores = {name: [mean] * 6 for name, mean in means.items()}
    return ValidationRecord(step, 0.0, scores, quality(means_of(scores), SCALE))


def test_a_run_that_has_moved_nothing_is_told_to_raise_the_rate() -> None:
    verdict = judge([record(0, 0.0), record(100, 0.02), record(200, 0.03)], SCALE)
    assert (verdict.outcome, verdict.advice) == ("not learned", RAISE_RATE)
    assert "train longer" in judge([record(0, 0.0), record(100, 0.2), record(200, 0.4)], SCALE).advice


def test_a_run_of_a_few_steps_is_told_to_train_longer_not_to_raise_the_rate() -> None:
    verdict = judge([record(0, 0.0), record(4, 0.02)], SCALE)
    assert (verdict.outcome, verdict.advice) == ("not learned", "train longer (train.max_steps): 4 steps are few")
    best_early = [record(0, 0.0), record(50, 0.03), record(500, 0.02)]
    assert judge(best_early, SCALE).advice == RAISE_RATE, "the run is long, whichever of its steps is the best"


def test_the_verdict_says_since_when_prompts_are_ignored_though_an_earlier_step_is_kept() -> None:
    run = [record(0, 0), record(100, 0.8), record(200, 0.95, 0.4), record(300, 0.95, 0.2)]
    verdict = judge(run, SCALE)
    assert verdict.outcome == "learned"
    assert "at step 100; from step 200 on the run ignores prompts" in verdict.reason
    assert "from step 200 on" in judge(run, SCALE, step=300).reason, "where the last step is what comes out"
    assert judge(run, SCALE, step=300).outcome == "ignores prompts"


def test_a_class_that_has_become_one_thing_is_forgotten() -> None:
    assert judge([record(0, 0), record(100, 0.9, prior_preservation=0.2)], SCALE).outcome == "forgot its class"


def test_a_factor_within_its_error_of_failing_is_not_decided_and_asks_for_more_images() -> None:
    dino = [0.1, 0.9, 0.2, 0.9, 0.1, 0.9]
    scores = {**record(100, 0.5).scores, "dino": dino}
    unclear = ValidationRecord(100, 0.0, scores, quality(means_of(scores), SCALE))
    verdict = judge([record(0, 0), unclear], SCALE)
    assert verdict.outcome == "not decided"
    assert "fidelity 0.52 ± 0.22" in verdict.reason
    assert "validate.num_images" in verdict.advice


def test_what_was_not_measured_is_not_judged() -> None:
    assert judge([], None) == NOT_VALIDATED
    assert judge([ValidationRecord(0, 0.1, {})], None) == NOT_SCORED
    assert judge([record(0, 0.0)], SCALE) == NOT_JUDGED
    assert str(NOT_SCORED).startswith("not scored: the run had no encoder to measure its images with; ")


def test_no_quality_is_without_a_verdict_and_something_to_do() -> None:
    for fidelity in (0.0, 0.6, 1.0):
        for prompt_fidelity in (0.0, 1.0):
            for prior_preservation in (0.0, 1.0):
                verdict = judge_quality(Quality(fidelity, prompt_fidelity, prior_preservation))
                assert all((verdict.outcome, verdict.reason, verdict.advice)), verdict
