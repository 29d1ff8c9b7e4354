"""Settings: all mistakes told at once, none repaired in silence, every shipped file valid."""

from pathlib import Path

import pytest
import yaml

from dreambooth.config import (
    Change,
    as_overrides,
    config_fields,
    describe_config,
    flatten,
    load_config,
    restricted_changes,
    to_dict,
)
from dreambooth.config.synonyms import SYNONYMS
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
    assert "train.precision: 'fp8' is not allowed; expected auto | 32-true | bf16-mixed | 16-mixed" in message
    assert "optim.lr: -1 is too small; must be above 0" in message


@pytest.mark.parametrize("value", ["nan", "inf", "-3", "much"])
def test_a_learning_rate_that_is_no_positive_number_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"optim\.lr"):
        load_config(written(tmp_path), [f"optim.lr={value}"])


def test_a_number_without_a_decimal_point_before_its_exponent_is_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(REQUIRED) + "optim: {lr: 5e-6}\n")
    assert load_config(path).optim.lr == load_config(path, ["optim.lr=5e-6"]).optim.lr == 5e-6


def test_values_as_overrides_are_read_back_as_they_are(tmp_path: Path) -> None:
    texts = ["a photo of {subject} \U0001f436", 'a "quoted" \\u0041 {class}', "a {class} \u2028\x7f\xa0, später"]
    values = {"validate.prompts": texts, "method.start_word": "\U0001f436", "train.max_steps": 7, "run.name": "no"}
    config = load_config(written(tmp_path), as_overrides(values))
    assert {key: flatten(to_dict(config))[key] for key in values} == values


@pytest.mark.parametrize("written_as", ["1e3", "1.0e+3", "1000.0", "1_000", "1000"])
def test_a_whole_number_may_be_written_as_people_write_it(tmp_path: Path, written_as: str) -> None:
    steps = load_config(with_text(tmp_path, f"train: {{max_steps: {written_as}}}\n")).train.max_steps
    assert (steps, type(steps)) == (1000, int)
    assert load_config(written(tmp_path), [f"train.max_steps={written_as}"]).train.max_steps == 1000


def test_a_text_of_digits_that_only_yaml_takes_for_a_number_stays_a_text(tmp_path: Path) -> None:
    subject = yaml.safe_dump({"run": REQUIRED["run"], "model": REQUIRED["model"]})
    path = tmp_path / "config.yaml"
    path.write_text(f"{subject}subject: {{images: 1:30, identifier: 007, class_noun: 0x10}}\n")
    (read,) = load_config(path).subjects
    assert (read.images, read.identifier, read.class_noun) == ("1:30", "007", "0x10")


@pytest.mark.parametrize("name", ["console", "com", "com10", "auxiliary", "my.con", "nul-dog"])
def test_a_name_that_only_looks_like_a_device_is_a_run(tmp_path: Path, name: str) -> None:
    assert load_config(written(tmp_path), [f"run.name={name}"]).run.name == name


def test_every_synonym_stands_for_a_key_that_there_is_and_hides_none() -> None:
    fields = config_fields()
    assert set(SYNONYMS.values()) <= set(fields)
    assert not set(SYNONYMS) & set(fields)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("learning_rate", "optim.lr"),
        ("train.learning-rate", "optim.lr"),
        ("lr", "optim.lr"),
        ("batch_size", "train.batch_size"),
        ("train.steps", "train.max_steps"),
        ("prior.steps", "prior.num_inference_steps"),
        ("max_train_steps", "train.max_steps"),
        ("train.epochs", "train.max_steps"),
        ("subject.instance_prompt", "subject.prompt"),
        ("class_prompt", "subject.class_prompt"),
        ("instance_data_dir", "subject.images"),
        ("rank", "method.rank"),
        ("method.network_dim", "method.rank"),
        ("network_alpha", "method.alpha"),
        ("output_dir", "run.dir"),
        ("pretrained_model_name_or_path", "model.base"),
        ("mixed_precision", "train.precision"),
        ("seed", "run.seed"),
        ("resolution", "data.resolution"),
        ("train.max_step", "train.max_steps"),
        ("subjects[1].instance_prompt", "subjects[1].prompt"),
    ],
)
def test_the_names_that_other_trainers_have_lead_to_the_key(tmp_path: Path, key: str, meant: str) -> None:
    assert f"{key}: unknown key; did you mean {meant}?" in told(written(tmp_path), f"{key}=1")


def test_a_name_that_several_sections_have_lists_all_keys(tmp_path: Path) -> None:
    assert "num_images: unknown key; did you mean prior.num_images or validate.num_images?" in told(
        written(tmp_path), "num_images=1"
    )


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
        ("method.dropout=1", "method.dropout"),
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
    assert restricted_changes(before, after) == [Change("optim.lr", None, 0.001)]


def told(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def with_text(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(REQUIRED) + text)
    return path


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.resolution=60", "data.resolution: 60 is not a multiple of 8; 56 or 64"),
        ("data.resolution=-8", "data.resolution: -8 is too small; at least 8"),
        ("data.resolution=80000", "data.resolution: 80000 is too large; at most 16384"),
        ("train.max_steps=1.5e0", "train.max_steps: 1.5 is not allowed; expected whole number"),
        ("train.max_steps=0100", "train.max_steps: '0100' is not allowed; expected whole number; did you mean 100?"),
        ("optim.lr=007", "optim.lr: '007' is not allowed; expected number or null; did you mean 7?"),
        ("train.max_steps=1:30", "train.max_steps: '1:30' is not allowed; expected whole number"),
        ("optim.lr=1:30.0", "optim.lr: '1:30.0' is not allowed"),
        ("train.max_steps=0x10", "train.max_steps: '0x10' is not allowed"),
        (
            "validate.prompts=a dog",
            """; write 'validate.prompts=["a dog"]' on the command line, ["a dog"] in the file""",
        ),
        ("train.max_steps=true", "train.max_steps: True is not allowed; expected whole number"),
        ("run.seed=" + "9" * 30, "run.seed: 999999999999999999999999999999 is too large"),
        ("run.seed=" + "9" * 400, "is too large"),
        ("train.max_steps=" + "9" * 5000, "is not allowed; expected whole number"),
        ("data.buckets=-1", "data.buckets: -1 is not allowed; expected true or false"),
        ("method.targets={}", "method.targets: {} is not allowed; expected list of texts"),
        ("optim.lr=.inf", "optim.lr: inf is not a finite number"),
        ("train.precision=32-tru", "expected auto | 32-true | bf16-mixed | 16-mixed; did you mean 32-true?"),
        ("subject.identifier=???", "subject.identifier: '???' stands for a value that is missing"),
        ("run.name=a\nb", r"run.name: 'a\nb' must name a folder"),
        ("run.name=" + "x" * 300, "must name a folder: short"),
        ("run.name=con", "is a device on Windows"),
        ("run.name=Aux.first try", "is a device on Windows"),
        ("run.name=LPT1", "is a device on Windows"),
        ("run.name=dog.", "ends with a dot or a space"),
        ("run.name=\udcff", "holds characters that are no text"),
        ("subject.images=a\0b", "holds characters that are no text"),
        ("validate.prompts=[]", "validate.prompts: empty"),
        ("train.max_steps=" + "[" * 5000, "is not allowed"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_its_key_and_what_is_allowed(
    tmp_path: Path, override: str, expected: str
) -> None:
    message = told(written(tmp_path), override)
    assert message.startswith(f"{tmp_path / 'config.yaml'}: {override.split('=')[0]}: ")
    assert expected in message
    assert len(message.splitlines()) == 1
    assert len(message) < 400 + len(str(tmp_path))


def test_the_words_that_yaml_takes_for_something_else_are_told_all_at_once(tmp_path: Path) -> None:
    path = with_text(tmp_path, "").with_name("words.yaml")
    path.write_text(
        "validate: {clip: off, prompts: [a dog, 12]}\nrun: {name: 7}\nmodel: {base: 1e3.0, family: null}\n"
        "subject: {images: 2026-11-21, identifier: no, class_noun: 1.5}\n"
    )
    message = told(path)
    for part in (
        "run.name: YAML reads this as 7,",
        "identifier: YAML reads this as False,",
        "class_noun: YAML reads this",
        "validate.clip: YAML reads this as False,",
        "validate.prompts: YAML reads this as 12,",
    ):
        assert part in message
    assert "model.family: None is not allowed; expected text" in message
    assert "subject.images" not in message, "a date is as good a folder's name as any"


def test_mistakes_of_single_keys_and_of_several_together_are_told_at_once(tmp_path: Path) -> None:
    message = told(written(tmp_path), "train.batch_size=0", "optim.warmup_steps=5000", "subject.prompt=a dog")
    for part in (
        "train.batch_size: 0 is too small",
        "optim.warmup_steps: 5000 must be below",
        "must contain {subject}",
    ):
        assert part in message
    assert "below train.max_steps" not in told(written(tmp_path), "train.max_steps=x", "optim.warmup_steps=5000")


def test_a_key_that_is_there_twice_is_told_with_its_lines(tmp_path: Path) -> None:
    text = "train:\n  max_steps: 3\n  batch_size: 0\n  max_steps: 4\noptim: {lr: 1.0e-6}\noptim: {}\n"
    message = told(with_text(tmp_path, text))
    first = len(yaml.safe_dump(REQUIRED).splitlines()) + 1
    assert f"train.max_steps: stands there twice, in lines {first + 1} and {first + 3}" in message
    assert f"optim: stands there twice, in lines {first + 4} and {first + 5}" in message
    assert "train.batch_size: 0 is too small" in message


@pytest.mark.parametrize(
    "value",
    [
        '!!python/object/apply:os.system ["touch {canary}"]',
        '!!python/object/new:os.system ["touch {canary}"]',
        "!!python/name:os.system",
        '!!int "abc"',
        "!!timestamp abc",
        "!own {{max_steps: 3}}",
    ],
)
def test_a_tag_is_refused_and_runs_nothing(tmp_path: Path, value: str) -> None:
    message = told(with_text(tmp_path, f"train: {value.format(canary=tmp_path / 'canary')}\n"))
    assert "the tag !" in message
    assert "leave it out" in message
    override = f"train.max_steps={value.format(canary=tmp_path / 'canary')}"
    assert "train.max_steps: " in told(with_text(tmp_path, ""), override)
    assert not (tmp_path / "canary").exists()


@pytest.mark.timeout(10)
def test_a_few_lines_that_grow_to_gigabytes_are_refused(tmp_path: Path) -> None:
    lines = ["x0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert "*a0 repeats another place; write the value out" in told(with_text(tmp_path, "\n".join(lines)))
    assert "repeats another place" in told(with_text(tmp_path, "train: &a {max_steps: *a}\n"))
    assert "levels deep" in told(with_text(tmp_path, "train: " + "[" * 20000))
    assert "keys are no config" in told(with_text(tmp_path, "".join(f"k{n}: 1\n" for n in range(2000))))
    assert "bytes are no such file" in told(with_text(tmp_path, "#" * 200_000))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected sections (run, model"),
        (b"\0" * 100, "not a YAML file"),
        (bytes(range(256)), "not a text in UTF-8 (byte 0x80 in line 2)"),
        ("run: {name: x}".encode("utf-16"), "not a text in UTF-8 (it is UTF-16)"),
        (b"run:\n\tname: x\n", "line 2, column 1: found character '\\t'"),
        (b"run: {name: x", "not a YAML file: line 1"),
        (b"? [a]\n: b", "not a YAML file"),
        (b"train: 3\ndata: [1]\nsubjects: 4", "data: a section must hold keys, found [1]"),
    ],
)
def test_a_file_that_is_no_config_is_told_in_a_few_words(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    assert expected in told(tmp_path / "config.yaml")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(path).run.name == "x"


@pytest.mark.parametrize(
    "key", ["subject.identifier", "subject.prompt", "run.name", "validate.prompts", "train.max_steps"]
)
@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "${oc.env:HOME,{subject}}",
        "${ oc.env : HOME }",
        "${oc.decode:${oc.env:HOME}}",
        "${run.${oc.env:HOME}}",
        "a ${oc.env:HOME} {subject}",
        "\\${oc.env:HOME}",
        "${",
        "${run.nothing}",
        "${run.name}${oc.env:HOME}",
    ],
)
def test_what_the_environment_holds_never_gets_into_a_setting(
    tmp_path: Path, key: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/canary")
    section, name = key.split(".")
    in_file = {section: {**REQUIRED.get(section, {}), name: [value] if key == "validate.prompts" else value}}
    override = f"{key}={[value] if key == 'validate.prompts' else value}"
    for message in (told(written(tmp_path, **in_file)), told(written(tmp_path), override)):
        assert f"{key}: " in message
        assert "is not allowed" in message
        assert "canary" not in message


def test_a_reference_to_another_key_is_checked_as_if_the_value_stood_there(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path), ["run.name=${subject.class_noun}-${train.max_steps}", "run.seed=${data.resolution}"]
    )
    assert (config.run.name, config.run.seed) == ("robot-1000", 512)
    assert "train.max_steps: 0 is too small" in told(written(tmp_path), "train.max_steps=${data.num_workers}")
    for name in ("${run.name}", "${subject.identifier}"):
        message = told(written(tmp_path), f"run.name={name}", "subject.identifier=${run.name}")
        assert "run.name: " in message, "two keys that refer to each other"


def test_help_lists_every_key_with_type_and_default() -> None:
    text = describe_config()
    for key, field in config_fields().items():
        assert f"  {key} (" in text
        assert field.metadata["text"] in text
