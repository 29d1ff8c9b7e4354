"""The rule for the best step: no single number can cheat it."""

from pathlib import Path

import pytest

from dreambooth.metrics.selection import Anchors, Quality, best, is_exhausted, quality, way
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord

ANCHORS = Anchors(real=0.9, dino=0.1, pres=0.1, div=0.8, clip_t=0.32, clip_t_ignored=0.24)
PERFECT = {"dino": 0.9, "clip_t": 0.32, "pres": 0.1, "div": 0.8, "drift": 0.2}
GOOD = {"dino": 0.7, "clip_t": 0.31, "pres": 0.15, "div": 0.75, "drift": 0.4}


def test_the_untouched_base_is_worth_nothing_and_the_subject_with_nothing_lost_1() -> None:
    base = {"dino": ANCHORS.dino, "clip_t": 0.32, "pres": 0.1, "div": 0.8}
    assert quality(base, ANCHORS).value == 0
    assert quality(PERFECT, ANCHORS).value == 1


def test_a_better_number_never_lowers_the_quality_and_none_can_make_up_for_another() -> None:
    worst = {"dino": ("clip_t", 0.24), "clip_t": ("dino", 0.1), "div": ("pres", 0.9)}
    for name, better in (("dino", 0.8), ("clip_t", 0.32), ("pres", 0.1), ("div", 0.8), ("drift", 0.1)):
        assert quality({**GOOD, name: better}, ANCHORS).value >= quality(GOOD, ANCHORS).value, name
    for cheat, (neglected, value) in worst.items():
        assert quality({**GOOD, cheat: 100.0, neglected: value}, ANCHORS).value == 0, (
            f"{cheat} makes up for {neglected}"
        )


@pytest.mark.parametrize(
    ("name", "overfitted"),
    [("clip_t", 0.25), ("pres", 0.7), ("div", 0.1)],
    ids=["draws the photos whatever the prompt", "the class looks like the subject", "the class has become one thing"],
)
def test_a_perfect_likeness_that_costs_the_rest_loses_to_a_good_one(name: str, overfitted: float) -> None:
    assert quality({**PERFECT, name: overfitted}, ANCHORS).value < quality(GOOD, ANCHORS).value


def test_class_pictures_that_turned_to_noise_cost_quality_though_they_are_diverse_and_unlike_the_subject() -> None:
    noise = {**PERFECT, "pres": 0.0, "div": 1.0, "drift": 1.6}
    assert quality(noise, ANCHORS).kept == pytest.approx(0.5)


def test_drift_costs_nothing_while_a_class_picture_is_as_near_the_bases_as_those_are_to_each_other() -> None:
    assert quality({**PERFECT, "drift": 0.8}, ANCHORS).value == 1


def test_what_is_not_measured_does_not_count() -> None:
    only_clip = {"clip_i": 0.5, "clip_t": 0.32, "pres": 0.1}
    assert quality(only_clip, ANCHORS).value == pytest.approx(0.5)
    assert quality({"dino": 0.5, "pres": 0.1}, Anchors(real=0.9, dino=0.1, pres=0.1)).value == pytest.approx(0.5)


def test_prompts_that_ask_for_nothing_beyond_the_class_are_compared_with_the_base() -> None:
    anchors = Anchors(real=0.9, dino=0.1, pres=0.1, clip_t=0.3, clip_t_ignored=0.3)
    assert quality({"dino": 0.9, "clip_t": 0.15, "pres": 0.1}, anchors).obedience == pytest.approx(0.5)


def test_way_is_cut_off_at_both_ends_and_known_where_the_ends_meet() -> None:
    assert [way(value, 0.2, 0.6) for value in (0.1, 0.2, 0.4, 0.6, 0.7)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [way(value, 0.5, 0.5) for value in (0.4, 0.5)] == [0, 1]


def test_the_best_step_is_the_earlier_of_equals_and_never_the_base() -> None:
    assert best({0: 0.9, 100: 0.4, 200: 0.6, 300: 0.6}) == 200
    assert best({0: 0.0, 100: 0.0}) is None


def test_patience_counts_validations_after_the_best() -> None:
    qualities = {0: 0.0, 100: 0.5, 200: 0.4, 300: 0.3}
    assert is_exhausted(qualities, 2)
    assert not is_exhausted(qualities, 3)
    assert not is_exhausted(qualities, 0)
    assert not is_exhausted({0: 0.0, 100: 0.0, 200: 0.0}, 1)


def test_the_journal_is_read_back_as_it_was_written_up_to_the_step_that_a_run_goes_on_from(tmp_path: Path) -> None:
    validation_log = ValidationLog(tmp_path / "scores.jsonl")
    validation_log.add(ValidationRecord(0, 1.25, {"pres": [0.1, 0.3]}, Quality(0, 1, 1), ANCHORS, {"pres": "vit"}))
    validation_log.add(ValidationRecord(100, 1.0, {"dino": [0.5], "pres": [0.2]}, Quality(0.5, 1, 0.5)))
    validation_log.add(ValidationRecord(200, 0.5, {"dino": [0.6], "pres": [0.2]}, Quality(0.6, 1, 0.5)))
    with open(validation_log.path, "a") as file:
        file.write('{"step": 300, "lo')
    assert ValidationLog(validation_log.path).entries == validation_log.entries
    resumed = ValidationLog(validation_log.path, last_step=100)
    assert resumed.entries == validation_log.entries[:2]
    assert resumed.anchors == ANCHORS
    assert (resumed.best, validation_log.best) == (validation_log.entries[1], validation_log.entries[2])
    assert not ValidationLog(validation_log.path, last_step=-1).entries
