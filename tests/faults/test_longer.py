"""A run made longer, or divided otherwise: what stays the same, and what is said where it does not."""

import csv
import re
from pathlib import Path

import pytest

from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.run.folder import RunFolder
from dreambooth.training.optimizer import SHAPES, OptimSettings, rate_note

SHORT = ("optim.warmup_steps=1", "validate.every_steps=0", "prior.source=none", "optim.lr=1e-3")


def figures(config_file: Path, name: str = "train/loss") -> list[float]:
    with open(RunFolder(load_config(config_file)).metrics, encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("schedule", SHAPES)
def test_a_falling_rate_made_longer_is_reported_and_any_other_is_not(schedule: str) -> None:
    settings = {"lr": 1e-3, "text_encoder_lr": 1e-3, "schedule": schedule, "warmup_steps": 2}
    before, longer = OptimSettings(max_steps=10, **settings), OptimSettings(max_steps=20, **settings)
    assert rate_note(before, before, 10) is None
    assert rate_note(before, longer, 2) is None, "in the warm-up nothing differs"
    note = rate_note(before, longer, 10)
    if schedule == "constant":
        assert note is None
        return
    assert note is not None
    assert note.startswith(f"optim.schedule={schedule}: train.max_steps 10 -> 20 stretches the curve; ")
    last, following = (float(number) for number in re.findall(r"is ([\d.e-]+), after ([\d.e-]+) of step 10", note)[0])
    assert last > following


def test_rates_of_their_own_go_on_as_they_were_too() -> None:
    settings = {"lr": 1e-3, "text_encoder_lr": 1e-4, "schedule": "linear", "max_steps": 10}
    note = rate_note(OptimSettings(**settings), OptimSettings(**{**settings, "max_steps": 20}), 5)
    assert note is not None
    assert "optim.lr=0.0006 optim.text_encoder_lr=6e-05 --override optim.schedule --override optim.lr --over" in note
    rows = {**settings, "identifier_lr": 1e-2}
    note = rate_note(OptimSettings(**rows), OptimSettings(**{**rows, "max_steps": 20}), 5)
    assert note is not None
    assert "to go on at the last rate" not in note, "optim.identifier_lr cannot change within a run"


def test_the_settings_that_are_offered_go_on_at_the_last_rate(
    config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(load_config(config_file, [*SHORT, "optim.schedule=cosine", "train.max_steps=3"]))
    rates = figures(config_file, "optim/lr")
    assert train(load_config(config_file, [*SHORT, "optim.schedule=cosine", "train.max_steps=6"])) == 0
    assert figures(config_file, "optim/lr")[3] > rates[2]
    note = next(record.getMessage() for record in caplog.records if "stretches the curve" in record.getMessage())
    assert "after 0.0005 of step 3" in note
    words = note.split("to go on at the last rate: ")[1].split()
    overrides = [word for word in words if "=" in word]
    accepted = [word for word in words if "." in word and "=" not in word]
    assert overrides == ["optim.schedule=constant", "optim.lr=0.0005"]
    caplog.clear()
    longer = load_config(config_file, [*SHORT, *overrides, "train.max_steps=8"])
    assert train(longer, accepted_changes=accepted) == 0
    assert "stretches" not in caplog.text
    assert len(set(figures(config_file, "optim/lr")[6:])) == 1


def test_the_samples_of_a_step_may_be_divided_otherwise_with_the_same_figures_but_for_rounding(
    config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = (*SHORT, "optim.schedule=constant")
    train(load_config(config_file, [*settings, "train.max_steps=6", "train.batch_size=2"]))
    whole = figures(config_file)
    again = ("run.resume=never", "train.max_steps=3", "train.batch_size=2")
    train(load_config(config_file, [*settings, *again]))
    divided = load_config(config_file, [*settings, "train.max_steps=6", "train.batch_size=1", "train.accumulate=2"])
    assert train(divided) == 0
    assert "train.batch_size: 2 -> 1, train.accumulate: 1 -> 2: each step sees the same samples" in caplog.text
    assert figures(config_file) == pytest.approx(whole, rel=1e-5)


def test_devices_and_machines_count_as_batches_do(config_file: Path) -> None:
    for division in (["train.batch_size=8"], ["train.batch_size=2", "train.devices=2", "train.num_nodes=2"]):
        assert load_config(config_file, division).train.samples_per_step == 8
