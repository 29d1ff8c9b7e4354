"""Files of prompts and wildcards: what is drawn, what is refused before a model is loaded, and what recipes keep."""

from collections import Counter
from pathlib import Path

import pytest

from dreambooth.api import Model
from dreambooth.cli import main
from dreambooth.errors import UserError
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.options import ImageOptions, with_options
from dreambooth.generation.prompting.prompt_file import read_prompt_file
from dreambooth.generation.prompting.wildcards import Wildcards, draw, texts
from dreambooth.generation.request import read_recipe

USUAL = ImageOptions("", num_images=2, seed=5)


@pytest.fixture
def wildcards(tmp_path: Path) -> Wildcards:
    """Files that name each other, and one that leads back to itself."""
    lines = {
        "colours": "red\n\n# no colour\ngreen\n",
        "animals/all": "{cat|dog}\n__colours__ fox",
        "loop": "__loop__ a",
    }
    for name, text in lines.items():
        path = tmp_path / "wildcards" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Wildcards((tmp_path / "wildcards",))


def drawn(template: str, wildcards: Wildcards, num_seeds: int = 40) -> set[str]:
    return {draw(template, seed, wildcards) for seed in range(num_seeds)}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a {red|blue} {subject}", {"a red {subject}", "a blue {subject}"}),
        ("{a|{b|c}}", {"a", "b", "c"}),
        ("{very |}old", {"very old", "old"}),
        ("{a|{{b}}} {{c}}", {"a {{c}}", "{{b}} {{c}}"}),
        ("{{a|b}} a|b {class}", {"{{a|b}} a|b {class}"}),
        ("{0::a|b}", {"b"}),
        ("a __colours__ hat", {"a red hat", "a green hat"}),
        ("__animals/all__", {"cat", "dog", "red fox", "green fox"}),
        ("snake__case__d", {"snake__case__d"}),
    ],
)
def test_what_is_drawn_is_one_of_the_alternatives(template: str, expected: set[str], wildcards: Wildcards) -> None:
    assert drawn(template, wildcards) == expected


def test_the_same_seed_draws_the_same_and_two_wildcards_of_a_prompt_draw_by_themselves(wildcards: Wildcards) -> None:
    template = "{a|b|c|d} {a|b|c|d}"
    assert [draw(template, seed, wildcards) for seed in range(9)] == [draw(template, s, Wildcards()) for s in range(9)]
    assert len(drawn(template, wildcards, 200)) == 16
    assert draw("{a|b|c|d} more", 3, wildcards)[0] == draw(template, 3, wildcards)[0]


def test_weights_say_how_often(wildcards: Wildcards) -> None:
    counts = Counter(draw("{3::a|b}", seed, wildcards) for seed in range(400))
    assert 250 < counts["a"] < 350


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a __colors__ hat", r"__colors__: there is no file .*colors\.txt; did you mean __colours__\?"),
        ("a __x/../../secret__", "there is no file"),
        ("{a|__loop__}", "__loop__: its lines lead back to itself: loop -> loop"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(template: str, message: str, wildcards: Wildcards) -> None:
    with pytest.raises(UserError, match=message):
        list(texts(template, wildcards))
    with pytest.raises(UserError, match=message):
        drawn(template, wildcards)


def test_a_file_of_prompts_has_options_of_its_own(tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("\n# a comment\na {subject}\n {red|blue} dog \n")
    assert read_prompt_file(plain, USUAL) == [
        with_options(USUAL, {"prompt": "a {subject}"}),
        with_options(USUAL, {"prompt": "{red|blue} dog"}),
    ]
    lines.write_text('{"prompt": "a dog", "seed": 7, "guidance-scale": 3, "size": "64x96", "scheduler": "euler"}\n')
    (found,) = read_prompt_file(lines, USUAL)
    assert found == ImageOptions("a dog", 2, 7, "", None, 3.0, "euler", (96, 64))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'prompt': 'a dog'}", "line 1: no JSON"),
        ('["a dog"]', "line 1: expected an object with a prompt"),
        ('{"prompt": "a dog", "sed": 3}', "line 1: sed: unknown option; did you mean seed"),
        ('{"prompt": "a dog", "steps": 2.5}', r"line 1: steps=2\.5: must be a whole number"),
        ('{"prompt": "a dog", "steps": 0}', "line 1: steps=0: must be from 1 to 1000"),
        ('{"prompt": "a dog", "size": "64"}', "line 1: size=64: not a size"),
        ('{"prompt": "a dog", "guidance_scale": true}', "guidance_scale=True: must be a number"),
        ("", "no prompts in it"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        read_prompt_file(tmp_path / "a.jsonl", USUAL)


def test_the_recipe_keeps_the_drawn_prompt_and_makes_the_image_again(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "colours.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "prompts.txt").write_text("a __colours__ {dog|cat}\n")
    command = ["sample", str(tiny_base), "--prompts", str(tmp_path / "prompts.txt"), "--num-images", "3"]
    assert main([*command, "--steps", "1", "--negative-prompt", "{a|b}", "--out", str(tmp_path / "out")]) == 0
    made = sorted((tmp_path / "out").glob("0*.png"))
    recipes = [read_recipe(path) for path in made]
    wildcards = Wildcards((tmp_path,))
    assert [each["prompt"] for each in recipes] == [
        draw("a __colours__ {dog|cat}", seed, wildcards) for seed in range(3)
    ]
    (tmp_path / "colours.txt").unlink()
    assert main(["sample", "--from-image", str(made[2]), "--out", str(tmp_path / "again")]) == 0
    (again,) = (tmp_path / "again").iterdir()
    assert read_recipe(again) == recipes[2]


def test_programs_give_each_prompt_its_options_or_a_file(tiny_base: Path, tmp_path: Path) -> None:
    model = Model(load_model(str(tiny_base), "cpu"), "cpu")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a dog", "seed": 3, "num_images": 1}\n')
    (one,) = model.generate(["a dog"], num_images=1, seed=3, steps=1)
    (other,) = model.generate([{"prompt": "a dog", "seed": 3}], num_images=1, steps=1)
    (third,) = model.generate(tmp_path / "prompts.jsonl", steps=1)
    assert one.recipe == other.recipe == third.recipe
    assert one.tobytes() == other.tobytes() == third.tobytes()
