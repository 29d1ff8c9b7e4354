"""One request and one recipe: whatever writes an image writes what makes it again, and every reader understands it."""

import ast
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.cli import main
from dreambooth.errors import UserError
from dreambooth.generation.images import generate, make_requests
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.models.reference import EmbeddingRef, LoraRef, ModelRef
from dreambooth.generation.numbered_files import slug, taken_number, write
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.prompting.wildcards import Wildcards
from dreambooth.generation.request import (
    PATHS,
    GeneratedImage,
    ImageRequest,
    make_recipe,
    read_recipe,
    recipe_changes,
    request_of,
)
from dreambooth.generation.settings import SamplerSettings

ROOT = Path(__file__).parents[1]
OLD = ROOT / "tests" / "data" / "recipes"  # images of version 0.1.0 at b855b13, by the embedded base
REQUEST = ImageRequest(
    ModelRef(
        *("runs/dog", "bases/sd", "sd1", "main", "fp16", "bfloat16", "vaes/mse"),
        (LoraRef("a.safetensors", 0.5, "ab" * 32), LoraRef("runs/cat")),
        (EmbeddingRef("bad.pt", "<bad>", "cd" * 32),),
    ),
    "a photo of sks dog",
    7,
    64,
    96,
    SamplerSettings(5, 3.0, "dpm++-karras", "a cat", 0.1),
)
# Fields of recipes that earlier versions wrote: their names stay.
PERSISTED = {
    *("prompt", "seed", "width", "height", "model", "config", "dtype", "base", "revision", "variant", "weights"),
    *("num_inference_steps", "guidance_scale", "scheduler", "negative_prompt", "guidance_min_noise"),
    *("torch", "diffusers", "vae", "loras", "embeddings"),
}


def test_a_recipe_gives_back_its_request() -> None:
    assert request_of(json.loads(json.dumps(make_recipe(REQUEST, "ab" * 32)))) == REQUEST
    weighted = replace(REQUEST, text_encoding="weighted")
    assert request_of(json.loads(json.dumps(make_recipe(weighted, "ab" * 32)))) == weighted
    plain = ImageRequest(ModelRef("dog"), "a dog", 0, 8, 8, SamplerSettings())
    assert request_of(make_recipe(plain, "ab" * 32)) == plain


def test_the_fields_of_a_recipe_keep_their_names() -> None:
    assert set(make_recipe(REQUEST, "ab" * 32)) == PERSISTED


def test_the_home_folder_does_not_leave_the_machine() -> None:
    home = os.path.expanduser("~")
    own = replace(REQUEST, model=ModelRef(f"{home}/runs/dog", f"{home}/bases/sd", f"{home}/configs", vae=f"{home}/v"))
    own = replace(own, model=replace(own.model, loras=(LoraRef(f"{home}/a.safetensors"),)))
    recipe = make_recipe(own, "ab" * 32)
    assert recipe["loras"][0]["file"] == "~/a.safetensors"
    assert {key: recipe[key] for key in PATHS} == {
        "model": "~/runs/dog",
        "base": "~/bases/sd",
        "config": "~/configs",
        "vae": "~/v",
    }
    assert request_of(recipe) == own


@pytest.mark.parametrize(
    ("changes", "named"), [({"prompt": None}, "prompt"), ({"seed": None}, "seed"), ({"scheduler": "dimm"}, "ddim")]
)
def test_a_recipe_that_cannot_be_read_is_the_users_mistake(changes: dict[str, object], named: str) -> None:
    recipe = {**make_recipe(REQUEST, "ab" * 32), **changes}
    with pytest.raises(UserError, match=named):
        request_of({key: value for key, value in recipe.items() if value is not None})


def test_what_differs_is_told_and_what_old_recipes_do_not_name_is_no_difference() -> None:
    wanted = make_recipe(replace(REQUEST, model=ModelRef("dog", dtype="float32")), "ab" * 32)
    optional = [each.name for each in fields(ModelRef) if each.name not in ("name", "dtype")]
    old = {**{key: value for key, value in wanted.items() if key not in optional}, "weights": "ab" * 8}
    assert recipe_changes(old, wanted) == []
    assert recipe_changes({**old, "weights": "cd" * 8}, wanted) == [f"weights {'cd' * 8!r} -> {'ab' * 32!r}"]
    assert recipe_changes(old, {**wanted, "variant": "fp16"}) == ["variant None -> 'fp16'"]
    assert recipe_changes({**old, "seed": 1}, wanted) == ["seed 1 -> 7"]


@pytest.mark.parametrize("name", ["sample.png", "evaluate.png"])
def test_an_image_of_an_earlier_version_is_made_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["sample", "--from-image", str(OLD / name), "--out", str(tmp_path)]) == 0
    (again,) = (tmp_path / name for name in os.listdir(tmp_path))
    assert "other weights" not in capsys.readouterr().err
    one, other = (np.asarray(Image.open(path), int) for path in (OLD / name, again))
    assert abs(one - other).max() <= 2, "another image than rounding explains"
    assert recipe_changes(read_recipe(OLD / name), read_recipe(again)) == []


def test_only_one_module_knows_how_a_recipe_is_written() -> None:
    """Every writer and reader of a PNG's text goes through generation/request.py."""
    for path in sorted((ROOT / "dreambooth").rglob("*.py")):
        if path.name == "request.py":
            continue
        names = {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in ast.walk(
            ast.parse(path.read_text(encoding="utf-8"))
        )}  # fmt: skip
        if path.name == "grid.py":  # no image with a recipe: its key of its own says where images lie
            assert "RECIPE" not in names
            continue
        assert not names & {"PngInfo", "add_itxt", "add_text"}, f"{path} writes a PNG's text itself"


def test_an_image_keeps_its_recipe_through_a_file(tmp_path: Path) -> None:
    image = GeneratedImage.from_image(Image.new("RGB", (8, 8), "red"), {"prompt": "a dog"})
    image.save(tmp_path / "a.png")
    with (tmp_path / "b.png").open("wb") as file:
        image.save(file, format="PNG")
    image.save(tmp_path / "c.jpg")
    assert read_recipe(tmp_path / "a.png") == read_recipe(tmp_path / "b.png") == image.recipe
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert image.resize((4, 4)).size == (4, 4)


def test_of_a_grid_the_message_says_which_image_to_take(tmp_path: Path) -> None:
    made = [GeneratedImage.from_image(Image.new("RGB", (8, 8)), {"prompt": "a dog", "seed": n}) for n in range(2)]
    paths = list(write(iter(made), tmp_path, 2))
    with pytest.raises(UserError, match=r"grid-00000\.png: .* take one .* from 00000-a-dog\.png on"):
        read_recipe(paths[-1])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of sks robot", "a-photo-of-sks-robot"),
        ("a photo of sks robot on the beach at night, oil", "a-photo-of-sks-robot-on-the-beach-at"),
        ("", ""),
        ("<word>/../x", "word-x"),
        ("ein Foto, Größe 3", "ein-foto-größe-3"),
        ("x" * 90, "x" * 40),
    ],
)
def test_a_files_name_begins_like_its_prompt(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


def test_files_of_both_kinds_of_names_are_numbered_on(tmp_path: Path) -> None:
    for name in ("00003.png", "00007-a-dog.png", "grid-00012.png", "photo.png"):
        (tmp_path / name).touch()
    with taken_number(tmp_path) as number, taken_number(tmp_path) as other:
        assert (number, other) == (8, 9)
    assert len(list(tmp_path.iterdir())) == 4, "a claim outlived its block"


def test_requests_of_several_settings_come_out_in_order(tiny_base: Path) -> None:
    """A batch holds what is alike; neighbours in a batch change an image by rounding only."""
    model = load_model(str(tiny_base), "cpu")
    few, many = (make_requests(model, [ImageOptions("a dog", 2, steps=steps)], Wildcards()) for steps in (1, 2))
    mixed = list(generate(model, [few[0], many[0], many[1], few[1]], 2))
    alone = [image for request in (few[0], many[0], many[1], few[1]) for image in generate(model, [request], 1)]
    assert [image.recipe for image in mixed] == [image.recipe for image in alone]
    for one, other in zip(mixed, alone, strict=True):
        assert abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
