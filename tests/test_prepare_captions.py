"""Captions before training: which words say what the subject looks like, and what is proposed instead."""

import random
from pathlib import Path

import pytest

from dreambooth.data.image_folder import sort_files
from dreambooth.prepare.captions import captions_of_folder, find_leaks, lint, propose
from dreambooth.prepare.preparation import lacking_captions
from toyworld import world
from toyworld.captions import PLURAL_PATTERN
from toyworld.scenes import PHRASES

PHOTO = Path("a.png")


def leaks(text: str, noun: str = "dog") -> list[str]:
    return [text[start:end] for start, end in find_leaks(text, noun, "sks")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red {subject}", ["red"]),
        ("a brown and white dog with floppy ears sitting on a red sofa", ["brown", "white", "floppy", "ears"]),
        ("{subject}, brown fur, grass, sunny day", ["brown", "fur"]),
        ("the {subject} is black and white, in front of a green wall", ["black", "white"]),
        ("a reddish-brown {subject} that is fluffy, on a white rug", ["reddish-brown", "fluffy"]),
        ("sks dog with a black collar asleep", ["black", "collar"]),
        ("{subject} on a red sofa under a blue sky", []),
        ("{subject} wearing a red hat", []),
        ("a {subject} with a blue house in the background", []),
        ("a {subject} on top of green grass with sunflowers around it", []),
        ("{subject} in light rain, black-and-white photography", []),
        ("{subject} on a beach, golden light", []),
        ("{subject}, dark, outdoors", []),
        ("{subject}, dark brown fur, outdoors", ["dark", "brown", "fur"]),
        ("{subject} with ears up in the snow", []),
        ("{subject} has its mouth open, in a park", []),
        ("{subject} with red fur and white back", ["red", "fur"]),
        ("{subject} painted red on a table", ["red"]),
        ("{subject} is made of red plastic, on a table", ["red", "plastic"]),
        ("{subject} - red, shiny - in the snow", ["red", "shiny"]),
        ("{subject} with a cartoon on it, in the snow", ["cartoon"]),
        ("a photo of {subject}", []),
    ],
)
def test_words_of_the_subject_leak_and_words_of_the_place_do_not(text, words):
    assert leaks(text) == words


def test_captions_of_the_toy_world_leak_what_the_renderer_drew():
    for seed in range(300):
        spec, scene, text = world.sample(seed)
        place = next((phrase for phrase in PHRASES[scene.place] if text.endswith(phrase)), "")
        own = {spec.main, spec.second, spec.accent, *PLURAL_PATTERN, *PLURAL_PATTERN.values()}
        wanted = [word for word in text.removesuffix(place).split() if word in own]
        assert leaks(text, spec.class_noun) == wanted, text


@pytest.mark.parametrize(
    ("text", "proposed"),
    [
        ("a brown dog with floppy ears sitting on a red sofa", "{subject} sitting on a red sofa"),
        ("a photo of a red {subject} in the snow", "a photo of {subject} in the snow"),
        ("the {subject} is black and white, standing on grass", "{subject}, standing on grass"),
        ("{subject}, brown fur, grass, sunny day", "{subject}, grass, sunny day"),
        ("asleep on the couch", "a photo of {subject}, asleep on the couch"),
        ("{subject} (red) in the snow", "{subject} in the snow"),
        ("{subject} - red, shiny - in the snow", "{subject} - in the snow"),
        ("a photo of {subject} dog in the snow", "a photo of {subject} in the snow"),
    ],
)
def test_a_proposed_caption_has_the_subject_and_no_leak(text, proposed):
    caption = lint(PHOTO, text, "dog")
    assert caption.proposed == proposed
    again = lint(PHOTO, proposed, "dog")
    assert again.proposed is None
    assert {one.kind for one in again.findings} <= {"bare"}


def test_a_sound_caption_has_no_findings():
    for text in ("{subject} on a red sofa", "a photo of sks dog in the snow at night"):
        assert lint(PHOTO, text, "dog", "sks") == lint(PHOTO, text, "dog", "sks")
        assert lint(PHOTO, text, "dog", "sks").findings == []


@pytest.mark.parametrize(
    ("text", "kind", "severity"),
    [
        ("asleep on the couch", "no subject", "error"),
        ("{subjct} asleep on the couch", "caption", "error"),
        ("a photo of {subject}", "bare", "note"),
        ("a red {subject} in the snow", "leak", "warning"),
        ("a photo of {subject} dog in the snow", "class twice", "warning"),
    ],
)
def test_what_is_wrong_with_a_caption_is_said(text, kind, severity):
    (finding,) = lint(PHOTO, text, "dog").findings
    assert (finding.kind, finding.severity) == (kind, severity)


def test_a_caption_may_be_anything():
    rng = random.Random(0)
    pieces = ["{subject}", "{", "}", "red", ",", "dog", "with", "ears", "\0", "é", "  ", "-", "is", "and", "{class}"]
    for _ in range(500):
        text = " ".join(rng.choices(pieces, k=rng.randrange(9)))
        caption = lint(PHOTO, text, "dog", "sks")
        assert all(0 <= start < end <= len(text) for start, end in caption.leaks)


@pytest.mark.parametrize(
    ("description", "caption"),
    [
        ("a brown dog is sitting on a couch.", "{subject} is sitting on a couch"),
        ("A dog on a couch", "{subject} on a couch"),
        ("there is a red toy dog that is parked on the grass", "{subject} that is parked on the grass"),
        ("two people with a dog in a park", "two people with {subject} in a park"),
        ("a close up of a brown dog's face", "a close up of {subject}'s face"),
        ("An image of a striped red and purple robot on the grass", "An image of {subject} on the grass"),
        ("a golden retriever sitting on grass", "{subject} sitting on grass"),
        ("sitting on grass", "{subject} sitting on grass"),
        ("a dog with a red cartoon on it on a wooden floor", "{subject} on a wooden floor"),
        ("", "{subject}"),
    ],
)
def test_a_description_becomes_a_caption(description, caption):
    assert propose(description, "dog") == caption
    assert find_leaks(caption, "dog") == []


def test_the_advice_for_a_caption_is_what_is_proposed():
    caption = lint(PHOTO, "a spotted dog on grass", "dog")
    assert caption.proposed == "{subject} on grass"
    assert repr(caption.proposed) in caption.findings[0].advice


def test_captions_of_a_folder_tell_which_photo_has_none(tmp_path):
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "0.txt").write_text("a red {subject} in the snow")
    with_one, without = captions_of_folder(sort_files(tmp_path), "dog", None)
    assert (with_one.text, with_one.proposed) == ("a red {subject} in the snow", "{subject} in the snow")
    assert [one.kind for one in without.findings] == ["no caption"]
    (tmp_path / "0.txt").unlink()
    assert captions_of_folder(sort_files(tmp_path), "dog", None) == []


@pytest.mark.parametrize("name", ["metadata.jsonl", "0.txt"])
def test_captions_that_cannot_be_read_are_told_and_not_written_anew(tmp_path, name):
    (tmp_path / "0.png").write_bytes(b"x")
    (tmp_path / name).write_bytes(b"a dog in a caf\xe9")
    (broken,) = captions_of_folder(sort_files(tmp_path), "dog", None)
    (finding,) = broken.findings
    assert (finding.kind, finding.severity) == ("caption", "error")
    assert name in finding.text
    assert lacking_captions(sort_files(tmp_path)) == []
