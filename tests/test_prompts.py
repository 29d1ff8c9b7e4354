"""Templates of prompts, and where the tokenizer reads an identifier in them."""

import random
import unicodedata
from dataclasses import dataclass

import pytest
from tokenizers import pre_tokenizers

from dreambooth.errors import UserError
from dreambooth.prompt_words import WORD, foreign_syntax_warning, has_words, replace_words
from dreambooth.prompts import expand, fill_prompt, has_field, plain_prompt, template_problem
from toyworld.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Subject:
    identifier: str
    class_noun: str


DOG, CAT = Subject("sks", "dog"), Subject("olis", "cat")


# templates


@pytest.mark.parametrize(
    ("template", "hint"),
    [
        ("a photo of {subjct}", "{subjct} is unknown; did you mean {subject}?"),
        ("a photo of {Subject}", "{Subject} is unknown; did you mean {subject}?"),
        ("a photo of {clas}", "{clas} is unknown; did you mean {class}?"),
        ("a photo of {subject 2}", "{subject 2} is unknown; did you mean {subject_2}?"),
        ("on the {beach}", "{beach} is unknown; known are {subject} and {class}. For braces as text write {{beach}}"),
        ("{red|blue} {subject}", "{red|blue} is unknown; known are"),
        ("a {} photo", "{} is unknown; known are"),
        ("a photo of {subject", "a single '{' stands for nothing; write {{ for a brace"),
        ("a photo of subject}", "a single '}' stands for nothing; write }} for a brace"),
        ("{subject_3}", "there is no {subject_3}; what is learned is {subject}, {subject_2}"),
        ("{class_0}", "there is no {class_0}; what is learned is {subject}, {subject_2}"),
    ],
)
def test_a_brace_that_is_no_field_is_an_error_with_the_nearest(template, hint):
    assert hint in str(template_problem(template, num_subjects=2))
    with pytest.raises(UserError) as error:
        fill_prompt(template, [DOG, CAT])
    assert str(error.value).startswith(f"prompt {template!r}: ")
    assert hint in str(error.value)


def test_doubled_braces_stand_for_braces():
    assert fill_prompt("a {{subject}} is {{{subject}}}, }}{{", [DOG]) == "a {subject} is {sks dog}, }{"
    assert plain_prompt("{{{class}}}", ["dog"]) == "{dog}"
    assert not has_field("a {{subject}}")


def test_fields_are_checked_without_subjects_as_far_as_they_can_be():
    assert template_problem("{subject_7}") is None
    assert template_problem("{subject}", num_subjects=0) == "there is no {subject} here"
    assert template_problem("{subjct}") is not None


# words


def test_words_are_those_of_the_tokenizer():
    """Random texts of letters, digits, punctuation, spaces of all kinds, and letters that are two characters."""
    tokenizer = build_tokenizer().backend_tokenizer
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    generator = random.Random(0)
    for _ in range(3000):
        text = "".join(generator.choices("aZbsSt'  dre1_<-.,é\u0301ß中٣\x85\u2028(:)", k=generator.randint(1, 12)))
        theirs = [
            word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        ]
        found = [match[0].lower() for match in WORD.finditer(unicodedata.normalize("NFC", text))]
        assert [as_bytes.pre_tokenize_str(word)[0][0] for word in found] == theirs, repr(text)


@pytest.mark.parametrize(
    ("text", "words", "is_there"),
    [
        ("a photo of sks dog", "sks", True),
        ("a photo of SKS, a dog", "sks", True),
        ("a photo of sks's bowl", "Sks", True),
        ("sks_dog2", "sks", True),  # letters end where others begin
        ("she asks a dog", "sks", False),
        ("a hotdog", "dog", False),
        ("two dogs", "dog", False),
        ("a <sks> dog", "<sks>", True),
        ("a (<SKS>), asleep", "<sks>", True),
        ("a sks dog", "<sks>", False),
        ("a <sks> dog", "sks", True),
        ("my sks dog", "my sks", True),
        ("my, sks dog", "my sks", False),
        ("zwx9 dog", "zwx9", True),
        ("zwx 9 dogs", "zwx9", True),  # the same tokens
        ("a cafe\u0301", "caf\u00e9", True),
        ("", "sks", False),
    ],
)
def test_an_identifier_is_found_where_the_tokenizer_reads_it(text, words, is_there):
    assert has_words(text, words) is is_there


def test_every_place_is_replaced_and_nothing_else():
    assert replace_words("SKS dog asks (<sks>) sks", "sks", "X") == "X dog asks (<X>) X"
    assert replace_words("(<sks>),<SKS>", "<sks>", "a") == "(a),a"
    assert replace_words("sks sks sks", "sks sks", "X") == "X sks"


@pytest.mark.parametrize(
    "piece",
    ["(sks:1.2)", "[dog:cat:0.5]", "<lora:toy:0.8>", "BREAK", "embedding:bad", "sks++", "(red hat)--", "__colours__"],
)
def test_syntax_of_other_tools_is_told(piece):
    warning = foreign_syntax_warning("validate.prompts", f"a photo of {piece} dog")
    assert warning is not None
    assert warning.startswith("validate.prompts: weights and keywords of other tools are plain text here")


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of sks dog (at night)",
        "at 10:30, [a sketch]",
        "<sks> dog",
        "break and",
        "Pop-up -- a dog",
        "snake_case",
    ],
)
def test_plain_prompts_are_not_taken_for_syntax_of_other_tools(prompt):
    assert foreign_syntax_warning("prompt", prompt) is None


# validation prompts


def test_a_subject_that_is_spelled_out_is_scored_as_the_subject():
    prompts = ["a photo of SKS dog on the beach", "a photo of sks", "a hat on sks {class}", "olis cat and sks dog"]
    found = expand(prompts, [DOG, CAT])
    assert [(prompt.kind, prompt.subjects) for prompt in found] == [
        ("subject", (0,)),
        ("subject", (0,)),
        ("subject", (0,)),
        ("subject", (0, 1)),
    ]
    assert [prompt.filled for prompt in found] == [*prompts[:2], "a hat on sks dog", prompts[3]]
    assert [prompt.text for prompt in found] == [
        "a photo of dog on the beach",
        "a photo of dog",
        "a hat on dog",
        "cat and dog",
    ]


def test_a_word_that_merely_holds_an_identifier_makes_no_prompt_of_the_subject():
    (prompt,) = expand(["a dog that asks"], [DOG])
    assert (prompt.kind, prompt.text) == ("other", "a dog that asks")
    (prompt,) = expand(["a photo of a {class}"], [Subject("photo", "dog")])
    assert prompt.kind == "class", "an identifier that is a common word is not the subject in every prompt"
