"""Settings: all mistakes told at once, none repaired in silence, every shipped file valid."""

from pathlib import Path

import pytest
import yaml

from dreambooth.config import config_fields, describe_config, differences, load_config, to_dict
from dreambooth.errors import UserError

ROOT = Path(__file__).parent.parent
REQUIRED = {
    "run": {"name": "x"},
    "model": {"base": "checkpoints/toyworld"},
    "subject": {"images": "data/robot", "class_noun": "robot"},
}


def written(tmp_path: Path, **sections: object) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**REQUIRED, **sections}))
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid_and_states_a_reason_for_its_values(path: Path) -> None:
    config = load_config(path)
    assert config.run.name
    assert path.read_text().count("#") >= 5, f"{path.name} does not say why its values are what they are"


def test_all_mistakes_are_reported_together_with_key_value_and_what_is_allowed(tmp_path: Path) -> None:
    path = written(tmp_path, train={"max_step": 3, "batch_size": 0, "precision": "fp8"}, optim={"lr": -1})
    with pytest.raises(UserError) as caught:
        load_config(path)
    message = str(caught.value)
    for part in (
        "train.max_step: unknown key; did you mean train.max_steps?",
        "train.batch_size: 0 is too small; at least 1",
    ):
        assert part in message
    assert "train.precision: 'fp8' is not allowed; expected 32-true | bf16-mixed | 16-mixed" in message
    assert "optim.lr: -1 is too small; must be above 0" in message


@pytest.mark.parametrize("value", ["nan", "inf", "-3", "much"])
def test_a_learning_rate_that_is_no_positive_number_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"optim\.lr"):
        load_config(written(tmp_path), [f"optim.lr={value}"])


def test_a_number_without_a_decimal_point_before_its_exponent_is_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(REQUIRED) + "optim: {lr: 5e-6}\n")
    assert load_config(path).optim.lr == load_config(path, ["optim.lr=5e-6"]).optim.lr == 5e-6


def test_a_text_that_yaml_reads_as_something_else_must_be_quoted(tmp_path: Path) -> None:
    path = written(tmp_path, subject={**REQUIRED["subject"], "identifier": 7})
    with pytest.raises(UserError, match=r"subject\.identifier: YAML reads this as 7, not as text; put it in quotes"):
        load_config(path)


def test_on_the_command_line_a_text_stays_as_it_is_typed(tmp_path: Path) -> None:
    config = load_config(written(tmp_path), ["subject.identifier=007", "subject.class_noun=no"])
    assert (config.subjects[0].identifier, config.subjects[0].class_noun) == ("007", "no")


def test_missing_required_keys_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {max_steps: 3}\n")
    with pytest.raises(UserError) as caught:
        load_config(path)
    for key in ("run.name", "model.base", "subject.images", "subject.class_noun"):
        assert f"{key}: required" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("subject.prompt=a photo of a dog", "subject.prompt"),
        ("subject.class_prompt=a photo of {subject}", "subject.class_prompt"),
        ("prior.source=folder", "prior.folder"),
        ("prior.folder=somewhere", "prior.folder"),
        ("optim.warmup_steps=1000", "optim.warmup_steps"),
        ("run.name=../elsewhere", "run.name"),
    ],
)
def test_rules_that_join_keys_are_checked(tmp_path: Path, override: str, key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        load_config(written(tmp_path), [override])


@pytest.mark.parametrize("text", ["just words", "train: 3", "a: [", "- 1"])
def test_a_file_that_holds_no_sections_is_a_users_mistake(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_config(path)


def test_a_runs_own_config_can_be_read_back(tmp_path: Path) -> None:
    config = load_config(written(tmp_path), ["train.max_steps=7"])
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump({**to_dict(config), "provenance": {"torch": "2"}}))
    assert load_config(path) == config


def test_a_rate_for_what_does_not_train_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, optim={"identifier_lr": 1e-3})
    assert load_config(path, ["method.name=pivotal"]).optim.identifier_lr == 1e-3
    with pytest.raises(UserError, match=r"optim\.identifier_lr: lora trains no row"):
        load_config(path, ["method.name=lora"])


def test_only_settings_that_may_change_within_a_run_pass_unnoticed(tmp_path: Path) -> None:
    before = to_dict(load_config(written(tmp_path)))
    after = to_dict(load_config(written(tmp_path), ["train.max_steps=9", "log.tensorboard=false", "optim.lr=1e-3"]))
    assert differences(before, after) == ["optim.lr: None -> 0.001"]


def test_help_lists_every_key_with_type_and_default() -> None:
    text = describe_config()
    for key, field in config_fields().items():
        assert f"  {key} (" in text
        assert field.metadata["text"] in text
