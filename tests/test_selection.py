"""The rule for the best step: no single number can cheat it."""

from pathlib import Path

import numpy as np
import pytest

from dreambooth.errors import UserError
from dreambooth.metrics.selection import (
    Anchors,
    Quality,
    choose,
    fraction_of_range,
    highest,
    is_exhausted,
    means_of,
    quality,
    standard_error,
)
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
    assert quality(noise, ANCHORS).prior_preservation == pytest.approx(0.5)


def test_drift_costs_nothing_while_a_class_picture_is_as_near_the_bases_as_those_are_to_each_other() -> None:
    assert quality({**PERFECT, "drift": 0.8}, ANCHORS).value == 1
    assert quality({**PERFECT, "drift": -6e-8}, ANCHORS).value == 1, "as earlier versions have recorded it"


def test_what_is_not_measured_does_not_count() -> None:
    only_clip = {"clip_i": 0.5, "clip_t": 0.32, "pres": 0.1}
    assert quality(only_clip, ANCHORS).value == pytest.approx(0.5)
    assert quality({"dino": 0.5, "pres": 0.1}, Anchors(real=0.9, dino=0.1, pres=0.1)).value == pytest.approx(0.5)


def test_prompts_that_ask_for_nothing_beyond_the_class_are_compared_with_the_base() -> None:
    anchors = Anchors(real=0.9, dino=0.1, pres=0.1, clip_t=0.3, clip_t_ignored=0.3)
    assert quality({"dino": 0.9, "clip_t": 0.15, "pres": 0.1}, anchors).prompt_fidelity == pytest.approx(0.5)


def test_a_fraction_of_a_range_is_clipped_at_both_ends_and_known_where_the_ends_meet() -> None:
    assert [fraction_of_range(value, 0.2, 0.6) for value in (0.1, 0.2, 0.4, 0.6, 0.7)] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )
    assert [fraction_of_range(value, 0.5, 0.5) for value in (0.4, 0.5)] == [0, 1]


def test_the_highest_step_is_the_earlier_of_equals_and_never_the_base() -> None:
    assert highest({0: 0.9, 100: 0.4, 200: 0.6, 300: 0.6}) == 200
    assert highest({0: 0.0, 100: 0.0}) is None


def validation(step: int, dino: list[float], clip_t: list[float] | None = None) -> ValidationRecord:
    """Return a validation by its images of the subject; the class is as it was."""
    class_scores = {"pres": [0.1] * len(dino), "div": [0.8] * len(dino)}
    scores = {"dino": dino, "clip_t": clip_t or [0.32] * len(dino), **class_scores}
    return ValidationRecord(step, 0.0, scores, quality(means_of(scores), ANCHORS))


NOISY, LOWER_BY_NOISE = [0.5, 0.7, 0.6, 0.8], [0.4, 0.8, 0.5, 0.8]


def test_the_later_step_is_kept_where_its_quality_is_lower_by_no_more_than_the_noise() -> None:
    first, last = validation(100, NOISY), validation(200, LOWER_BY_NOISE)
    assert first.quality is not None
    assert last.quality is not None
    assert first.quality.value > last.quality.value
    assert choose([first, last], ANCHORS) == 200


def test_the_earlier_step_is_kept_where_the_same_loss_is_that_of_every_image() -> None:
    lower_by_as_much = [number - 0.025 for number in NOISY]
    assert sum(lower_by_as_much) == pytest.approx(sum(LOWER_BY_NOISE))
    assert choose([validation(100, NOISY), validation(200, lower_by_as_much)], ANCHORS) == 100


def test_a_step_that_no_longer_follows_prompts_is_not_kept() -> None:
    deaf = validation(200, [0.9] * 4, [0.25, 0.26, 0.24, 0.25])
    assert choose([validation(100, NOISY), deaf], ANCHORS) == 100


def test_many_small_losses_do_not_add_up_to_a_step_that_is_far_worse_than_the_best() -> None:
    """Each step is compared with the best, not with the one before it."""
    rng = np.random.default_rng(0)
    steps = [validation(100 * n, (0.8 - 0.06 * n + rng.normal(0, 0.04, 8)).tolist()) for n in range(1, 7)]
    assert choose(steps, ANCHORS) in (100, 200)


def test_without_a_quality_above_0_no_step_is_chosen_and_a_single_image_leaves_the_highest() -> None:
    assert choose([validation(100, [0.1] * 4)], ANCHORS) is None
    assert choose([validation(100, [0.7]), validation(200, [0.69])], ANCHORS) == 100


def test_the_standard_error_is_that_of_paired_images_where_quality_is_linear_in_them() -> None:
    one, other = validation(1, NOISY).scores, validation(2, LOWER_BY_NOISE).scores
    differences = np.subtract(one["dino"], other["dino"]) / (ANCHORS.real - ANCHORS.dino)
    assert standard_error(one, other, ANCHORS) == pytest.approx(np.std(differences, ddof=1) / 2)


def test_patience_counts_validations_after_the_best() -> None:
    qualities = {0: 0.0, 100: 0.5, 200: 0.4, 300: 0.3}
    assert is_exhausted(qualities, 2)
    assert not is_exhausted(qualities, 3)
    assert not is_exhausted(qualities, 0)
    assert not is_exhausted({0: 0.0, 100: 0.0, 200: 0.0}, 1)


def test_the_validation_log_is_read_back_as_it_was_written_up_to_the_step_that_a_run_goes_on_from(
    tmp_path: Path,
) -> None:
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
    validation_log.path.write_text("{}\n")
    with pytest.raises(UserError, match=r"scores\.jsonl: a line cannot be read"):
        ValidationLog(validation_log.path)
