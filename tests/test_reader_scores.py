"""Scores by models that read images: questions, their measures, and what is measured of which prompt."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_metrics_encoders import make_vit

from dreambooth.config import SubjectConfig, load_config
from dreambooth.errors import ModelError, UserError
from dreambooth.metrics.estimates import bounds_of
from dreambooth.metrics.log_names import find_metric
from dreambooth.metrics.reader_scores import ReaderNames, ReaderScores, load_reader_scores
from dreambooth.metrics.subject import Encoders, SubjectScorer, load_encoders
from dreambooth.metrics.validation_scores import ValidationScorer
from dreambooth.prompts import expand
from dreambooth.questions import parse_question, problems_of_questions, question_of
from dreambooth.readers.likelihood import answer_probability
from dreambooth.readers.taught import FILE, write_taught

ROOT = Path(__file__).parents[1]
QUESTIONS = ("is there a {class}?", "beach: where is it? on the beach")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    draws = np.random.default_rng(0)
    return [Image.fromarray(draws.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(6)]


@pytest.fixture(scope="module")
def encoders(tiny_blip2: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    vit = make_vit(tmp_path_factory.mktemp("vit"))
    names = ReaderNames(str(tiny_blip2 / "retrieval"), str(tiny_blip2), QUESTIONS)
    return load_encoders(str(vit), None, read_by=names)


def read_by(encoders: Encoders) -> ReaderScores:
    assert encoders.reader is not None
    return encoders.reader


# questions


@pytest.mark.parametrize(
    ("text", "asked", "measure", "told"),
    [
        ("is there a beach?", ("is there a beach?", "yes", ""), "question_is_there_a_beach", "is there a beach?"),
        ("is there a beach? Yes", ("is there a beach?", "yes", ""), "question_is_there_a_beach", "is there a beach?"),
        ("is it night? no", ("is it night?", "no", ""), "question_is_it_night__no", "is it night? no"),
        (
            "beach: is there  sand?",
            ("is there  sand?", "yes", "beach"),
            "question_is_there_sand__yes__beach",
            "beach: is there sand?",
        ),
        (
            "on the moon : wo ist es? auf dem Mond",
            ("wo ist es?", "auf dem Mond", "on the moon"),
            "question_wo_ist_es__auf_dem_mond__on_the_moon",
            "on the moon: wo ist es? auf dem mond",
        ),
        ("is this {subject}?", ("is this {subject}?", "yes", ""), "question_is_this_subject", "is this subject?"),
    ],
)
def test_a_question_names_its_answer_its_prompts_and_its_measure(text, asked, measure, told):
    question = parse_question(text)
    assert (question.text, question.answer, question.words) == asked
    assert question.measure == measure
    assert question_of(measure) == told
    assert find_metric(f"eval/{measure}").title == f"“{told}”"
    assert bounds_of(measure) == (0, 1)


def test_a_question_is_asked_where_the_prompt_has_its_words():
    question = parse_question("on the Beach: is there sand?")
    assert question.is_about("a dog on the beach, at night")
    assert not question.is_about("a beach with a dog on the sand")
    assert parse_question("is there sand?").is_about("a dog")


def test_class_noun_and_subject_are_filled_in():
    question = parse_question("is this {subject}, the {class}? {class}")
    assert question.filled("dog", "sks dog") == ("is this sks dog, the dog?", "dog")
    assert question.names_subject
    assert not parse_question("is there a {class}?").names_subject


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("is there a beach", "one question mark"),
        ("is it? or is it? yes", "one question mark"),
        ("???", "one question mark"),
        (" ?", "one question mark"),
        (": is it?", "needs words"),
        ("is it? !", "a word as the right answer"),
        ("is this {subjct}?", "did you mean {subject}?"),
        ("is this {subject_2}?", "no numbers of subjects"),
        ("moon: is it the moon?", "no prompt with {subject} has the words 'moon'"),
    ],
)
def test_what_is_wrong_with_a_question_is_told_with_it(text, problem):
    (found,) = problems_of_questions([text], ["a dog on the beach"])
    assert found.startswith(repr(text))
    assert problem in found


def test_a_question_stands_once():
    assert problems_of_questions(["is it?", "is it ?"], None) == ["'is it ?': is there twice; leave one"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["validate.questions=['is it?']"], "validate.questions: set, but validate.reader is null"),
        (["validate.reader=some/model"], "validate.reader: set, but validate.questions is empty"),
        (
            ["validate.reader=some/model", "validate.questions=['at sea: is it?']"],
            "validate.questions: 'at sea: is it?': no prompt",
        ),
        (["validate.reader=some/model", "validate.questions=['is it']"], "validate.questions: 'is it': must be"),
    ],
    ids=("no reader", "no question", "no prompt", "no mark"),
)
def test_a_config_with_a_wrong_question_is_refused(overrides, problem):
    with pytest.raises(UserError) as error:
        load_config(ROOT / "configs" / "toyworld.yaml", overrides)
    assert problem in str(error.value)


# scores


def test_each_question_scores_the_images_of_its_prompts(encoders, images):
    subject = SubjectConfig(identifier="sks", class_noun="robot")
    prompts = expand(["{subject} in the snow", "{subject} on the beach", "a {class}"], [subject])
    rows = [images[:2], images[2:4], images[4:]]
    found = ValidationScorer([SubjectScorer(encoders, images[:1], "robot")], prompts)(rows)
    reader = read_by(encoders)
    assert found["match"] == [
        *reader.matcher.match(rows[0], "robot in the snow"),
        *reader.matcher.match(rows[1], "robot on the beach"),
    ]
    asked = [answer_probability(reader.reader, row, "is there a robot?", "yes") for row in rows[:2]]
    assert found["question_is_there_a_class"] == [*asked[0], *asked[1]]
    assert found["question_where_is_it__on_the_beach__beach"] == answer_probability(
        reader.reader, rows[1], "where is it?", "on the beach"
    )
    assert {*found} == {"dino", "pres", "div", *reader.names}
    assert encoders.names["match"].endswith("retrieval")


def test_without_models_that_read_nothing_is_added(images):
    plain = SubjectScorer(Encoders(), images[:1], "robot")
    assert plain.read(images[:2], "robot on the beach") == {}
    assert load_reader_scores(ReaderNames()) is None


def test_photos_are_asked_what_is_about_every_prompt(encoders, images):
    assert [*read_by(encoders).of_photos(images[:2], "robot")] == ["question_is_there_a_class"]


def test_a_reader_is_asked_for_the_subject_that_it_was_taught(tiny_blip2, tmp_path):
    names = ReaderNames(None, str(tiny_blip2), ("is this {subject}?",))
    with pytest.raises(UserError, match="has been taught no subject"):
        load_reader_scores(names)
    taught = shutil.copytree(tiny_blip2, tmp_path / "taught", ignore=shutil.ignore_patterns("retrieval"))
    write_taught(taught, "sks dog", "dog")
    found = load_reader_scores(ReaderNames(None, str(taught), ("is this {subject}?",)))
    assert found is not None
    assert found.subject == "sks dog"
    (taught / FILE).write_text("{}")
    with pytest.raises(ModelError, match=r"subject\.json: cannot be read"):
        load_reader_scores(ReaderNames(None, str(taught), ("is this {subject}?",)))
