"""Weights, blends and long prompts: how they are read, what each does at its limits, and what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreambooth.cli import main
from dreambooth.errors import UserError
from dreambooth.families import Family, load_family
from dreambooth.families.protocols import ReadsWeights
from dreambooth.generation.images import generate, make_requests, reproduce
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.prompting.prompt_reading import WEIGHTED, as_typed, encoder, find_encoding
from dreambooth.generation.prompting.weight_syntax import check_blends, parse_weights
from dreambooth.generation.prompting.wildcards import Wildcards
from dreambooth.generation.request import PLAIN, GeneratedImage, read_recipe

LONG = "a photo of a dog " + "on the beach in the evening sun " * 5  # the tiny base reads 32 tokens at once


@pytest.fixture(params=["tiny_base", "tiny_xl_base"])
def reader(request: pytest.FixtureRequest) -> Family:
    return load_family(str(request.getfixturevalue(request.param)))


@torch.no_grad()
def hidden(family: Family, *prompts: str) -> Tensor:
    encode = encoder(family, WEIGHTED)
    assert encode is not None
    return encode(list(prompts))["encoder_hidden_states"]


# ------------------------------------------------------------------------------------------------ how they are written


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a dog", [("a dog", 1)]),
        ("a (dog:1.3) here", [("a ", 1), ("dog", 1.3), (" here", 1)]),
        ("((a)) b", [("a", 1.21), (" b", 1)]),
        ("[a] (b)", [("a", 1 / 1.1), (" ", 1), ("b", 1.1)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1), (" c", 0.5)]),
        (r"a \(dog\) \[x\]", [("a (dog) [x]", 1)]),
        ("(the film: a story)", [("the film: a story", 1.1)]),
    ],
)
def test_a_prompt_is_cut_into_pieces_with_weights(prompt: str, expected: Sequence[tuple[str, float]]) -> None:
    (found,) = parse_weights(prompt).prompts
    assert [each.text for each in found.fragments] == [text for text, _ in expected]
    assert [each.weight for each in found.fragments] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a (dog:big)", r"the weight 'big' is no number; write \(word:1\.3\)"),
        ("a (dog:99)", "the weight 99 is not from 0 to 10"),
        ("a (dog", r"a '\(' that nothing closes; write \\\( for the character"),
        ("a dog]", r"a '\]' that closes nothing"),
        ("[cat:dog:0.5]", "change the prompt between the steps, are not done here"),
        ('("a", "b").blend(1)', "1 numbers for 2 prompts"),
        ('("a", "b").blend(1, x)', "must be numbers"),
        ('("a", "b").blend(1, -1)', "must add up to more than 0"),
    ],
)
def test_what_cannot_be_read_is_told_before_a_model_is_loaded(prompt: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        parse_weights(prompt)


@pytest.mark.parametrize("prompt", ['a photo, ("a dog", "a cat").blend(0.7, 0.3)', '(("a", "b").blend(1, 1):1.2)'])
def test_a_blend_in_a_longer_prompt_is_refused_before_loading_and_in_programs(
    prompt: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"  # no model, which would be an error of code 3
    base.mkdir()
    (base / "model_index.json").write_text("{}")
    for prompts in ([prompt], ["a dog", "--negative-prompt", prompt]):
        assert main(["sample", str(base), *prompts, "--out", str(tmp_path / "out")]) == 2
        assert "a blend must be the whole prompt" in capsys.readouterr().err
    with pytest.raises(UserError, match="a blend must be the whole prompt"):
        _made(tiny_base, prompt)
    for text in ('("a dog", "a cat").blend(1, 2) ', r'a \("dog"\).blend(1)', 'a "dog" (asleep)'):
        check_blends(text)


def test_the_recipe_of_an_image_that_had_a_blend_as_text_makes_it_again(tiny_base: Path) -> None:
    model = load_model(str(tiny_base), "cpu")
    (request,) = make_requests(model, [ImageOptions("a (dog:1.5)", 1, steps=1)], Wildcards())
    earlier = replace(request, prompt='a photo, ("a dog", "a cat").blend(0.7, 0.3)')
    image = next(generate(model, [earlier], 1))
    again = next(generate(model, [reproduce(image.recipe, model)], 1))
    assert again.tobytes() == image.tobytes()


# ------------------------------------------------------------------------------------------------ what they do


def test_weight_one_has_the_bits_of_a_plain_prompt(reader: Family) -> None:
    plain = reader.encode_prompts(["a photo of a dog", ""])
    encode = encoder(reader, WEIGHTED)
    assert encode is not None
    read = encode(["a photo of a (dog:1.0)", ""])
    assert set(read) == set(plain)
    assert all(torch.equal(read[name], plain[name]) for name in plain)


def test_a_weight_moves_the_words_it_stands_at_and_no_others(reader: Family) -> None:
    plain, empty = hidden(reader, "a photo of a dog on grass")[0], hidden(reader, " ")[0]
    first = 1 + len(reader.tokenize("a photo of a"))
    upto = first + len(reader.tokenize("dog"))
    is_dog_N = torch.zeros(len(plain), dtype=torch.bool)
    is_dog_N[first:upto] = True
    for weight in (0.0, 0.5, 2.0):
        weighted = hidden(reader, f"a photo of a (dog:{weight}) on grass")[0]
        assert torch.equal(weighted[~is_dog_N], plain[~is_dog_N])
        expected = empty + weight * (plain - empty)
        torch.testing.assert_close(weighted[is_dog_N], expected[is_dog_N])


def test_a_blend_is_the_mean_of_what_its_prompts_mean(reader: Family) -> None:
    both = hidden(reader, "a dog", "a cat")
    torch.testing.assert_close(hidden(reader, '("a dog", "a cat").blend(3, 1)')[0], 0.75 * both[0] + 0.25 * both[1])
    torch.testing.assert_close(hidden(reader, '("a dog", "a cat").blend(1, 0)')[0], both[0])


def test_of_a_long_prompt_nothing_is_dropped(reader: Family) -> None:
    """Each part is read as a prompt of its own; a shorter neighbour ends in what an empty prompt means."""
    kept, dropped = reader.truncate(LONG)
    parts = hidden(reader, kept, *[dropped[: len(reader.truncate(dropped)[0])]])
    read = hidden(reader, LONG, "a dog", "")
    length = parts.shape[1]
    torch.testing.assert_close(read[0, : 2 * length], parts.flatten(0, 1))
    assert read.shape[1] > length
    torch.testing.assert_close(read[1, length : 2 * length], hidden(reader, " ")[0])
    torch.testing.assert_close(read[2, length : 2 * length], hidden(reader, "")[0])


def test_a_weight_reaches_words_of_a_later_part(family: Family) -> None:
    prompt = LONG + "and a cat"
    plain, weighted = hidden(family, prompt)[0], hidden(family, LONG + "and a (cat:1.5)")[0]
    changed = (plain != weighted).any(-1).nonzero()[:, 0].tolist()
    assert len(changed) == len(family.tokenize("cat"))
    assert changed[0] >= 32


# ------------------------------------------------------------------------------------------------ in requests


def test_only_prompts_that_ask_for_more_are_read_otherwise(family: Family) -> None:
    assert find_encoding(family, ["a dog, at 10:30", ""]) == PLAIN
    for prompt in ("a (dog)", r"a \(dog\)", LONG, '("a", "b").blend(1, 1)'):
        assert find_encoding(family, [prompt, ""]) == find_encoding(family, ["", prompt]) == WEIGHTED


def test_an_image_does_not_depend_on_longer_prompts_beside_it(tiny_base: Path) -> None:
    model = load_model(str(tiny_base), "cpu")
    wanted = [ImageOptions(prompt, 1, steps=2) for prompt in ("a (dog:1.3)", LONG, "a cat")]
    requests = make_requests(model, wanted, Wildcards())
    assert [each.text_encoding for each in requests] == [WEIGHTED, WEIGHTED, PLAIN]
    together = [image.tobytes() for image in generate(model, requests, 3)]
    assert together == [next(generate(model, [request], 1)).tobytes() for request in requests]
    assert len(set(together)) == 3


def test_the_recipe_says_how_its_prompt_is_read_and_an_old_one_stays_plain(tiny_base: Path, tmp_path: Path) -> None:
    command = ["sample", str(tiny_base), "a (dog:1.5)", "--steps", "1", "--num-images", "1", "--out"]
    assert main([*command, str(tmp_path / "a")]) == 0
    image = next((tmp_path / "a").iterdir())
    assert main(["sample", "--from-image", str(image), "--out", str(tmp_path / "b")]) == 0
    again = next((tmp_path / "b").iterdir())
    assert again.read_bytes() == image.read_bytes()
    recipe = read_recipe(image)
    assert recipe["text_encoding"] == WEIGHTED
    assert "text_encoding" not in _made(tiny_base, "a dog").recipe


def _made(base: Path, prompt: str) -> GeneratedImage:
    model = load_model(str(base), "cpu")
    return next(generate(model, make_requests(model, [ImageOptions(prompt, 1, steps=1)], Wildcards()), 1))


class PlainText:
    """A family that reads prompts as they are."""


def test_a_family_that_reads_plain_text_refuses_weights_by_name() -> None:
    assert not isinstance(PlainText(), ReadsWeights)
    other: Family = PlainText()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"prompt 'a \(dog:1\.3\)': PlainText reads prompts as plain text; weights and"):
        find_encoding(other, ["a (dog:1.3)"])
    assert find_encoding(other, ["a dog (asleep)", ":)"]) == PLAIN
    with pytest.raises(UserError, match="PlainText reads prompts as plain text"):
        encoder(other, WEIGHTED)
    assert as_typed(other, r"a dog \(asleep\)") == "a dog (asleep)"
