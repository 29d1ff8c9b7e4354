"""`evaluate`: the paper's protocol on tiny models, resumed, refused, and its table computed again by another way."""

import csv
import itertools
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from test_metrics_encoders import make_clip, make_vit
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from dreambooth.cli import main
from dreambooth.errors import UserError
from dreambooth.evaluation import paper
from dreambooth.evaluation.encoders import find_encoders
from dreambooth.evaluation.prompts import SETS, load_prompts, read_prompts
from dreambooth.evaluation.protocol import ImageSpec
from dreambooth.evaluation.scoring import Scored
from dreambooth.evaluation.subjects import subjects_of_dataset
from dreambooth.evaluation.verdicts import verdicts
from dreambooth.exporting.result import export_model
from dreambooth.families import load_family
from dreambooth.subject_info import LearnedSubject, SubjectInfo

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT.parent / "shared" / "dreambench"
PROMPTS = ("a {subject} on the beach", "a red {subject}")
DOG = LearnedSubject("sks", "dog", "a photo of {subject}", "a photo of a {class}")
TEAPOT = replace(DOG, class_noun="teapot")
CARD = SubjectInfo((DOG,), 64, 2, 3.0, 8)
T_ONE_DEGREE = 12.706204736  # 97.5 % quantile of Student's t: what an interval over two subjects is made with

Evaluate = Callable[..., tuple[int, str, str]]


def make_run(base: Path, folder: Path, card: SubjectInfo, seed: int) -> Path:
    """A trained model as a run leaves it, other weights for each seed."""
    family = load_family(str(base))
    torch.manual_seed(seed)
    with torch.no_grad():
        for weights in family.denoiser.parameters():
            weights.add_(torch.randn_like(weights) * 0.02)
    export_model(family, card, folder, "float32")
    return folder


def make_photos(folder: Path, colours: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    for number, colour in enumerate(colours):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((8, 4 + 6 * number, 44, 50), fill=colour)
        image.save(folder / f"{number:02d}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Encoders, a data set of two subjects, a run a subject, and a file of prompts."""
    folder = tmp_path_factory.mktemp("evaluate")
    make_vit(folder / "vit")
    make_clip(folder / "clip")
    make_photos(folder / "data" / "dog6", ("red", "green", "blue"))
    make_photos(folder / "data" / "teapot", ("black", "orange"))
    lists = {"classes": {"dog6": "dog", "teapot": "teapot"}, "live": ["dog6"]}
    (folder / "data" / "prompts.yaml").write_text(yaml.safe_dump(lists))
    (folder / "prompts.txt").write_text("# ours\n\n" + "\n".join(PROMPTS) + "\n")
    make_run(tiny_base, folder / "runs" / "dog6", CARD, seed=1)
    make_run(tiny_base, folder / "runs" / "teapot", replace(CARD, subjects=(TEAPOT,)), seed=2)
    return folder


@pytest.fixture
def evaluate(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """`evaluate WORDS ...` on this place; returns exit code, output, errors. Later options go over the usual ones."""

    def call(*words: str | Path, out: Path = tmp_path / "out") -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*command(place, out), *map(str, words)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def command(place: Path, out: Path) -> list[str]:
    encoders = ["--dino", str(place / "vit"), "--clip", str(place / "clip")]
    counts = ["--num-images", "2", "--class-prompt-images", "3"]
    return ["evaluate", "--prompts", str(place / "prompts.txt"), *encoders, *counts, "--out", str(out)]


@pytest.fixture(scope="module")
def done(place: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation of two rows, a run a subject and the base, on two subjects."""
    out = tmp_path_factory.mktemp("done") / "out"
    words = [str(place / "runs" / "{name}"), str(tiny_base), "--dataset", str(place / "data"), "--base", str(tiny_base)]
    assert main([*command(place, out), *words]) == 0
    return out


def scores_of(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def recipe_of(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return dict(json.loads(image.text["dreambooth"]))


def contents(out: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(out.rglob("*.png"))}


# the prompts


def test_each_named_set_has_the_papers_25_prompts() -> None:
    for name, prompts in SETS.items():
        assert len(set(prompts)) == len(prompts) == 25, name
        assert all(prompt.count("{subject}") == 1 for prompt in prompts), name
    assert len(set(SETS["objects"]) & set(SETS["live"])) == 15, "10 places and 5 properties are common to both"


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the DreamBench photographs are not beside the repository")
def test_the_named_sets_are_those_published_with_the_data_set() -> None:
    published = yaml.safe_load((PHOTOGRAPHS / "prompts.yaml").read_text())
    assert list(SETS["objects"]) == published["object_prompts"]
    assert list(SETS["live"]) == published["live_prompts"]


def test_auto_takes_the_set_of_the_subjects_kind() -> None:
    assert load_prompts("auto", True) == SETS["live"]
    assert load_prompts("auto", False) == load_prompts("auto", None) == SETS["objects"]
    assert load_prompts("live", False) == SETS["live"]


def test_prompts_come_from_yaml_or_from_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\ufeff" + PROMPTS[0] + "\n\n  # not this\n  " + PROMPTS[1] + "  \n", "utf-8")
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(list(PROMPTS)))
    assert read_prompts(tmp_path / "p.txt") == read_prompts(tmp_path / "p.yaml") == PROMPTS


def test_the_shipped_toy_world_prompts_are_prompts() -> None:
    assert len(read_prompts(ROOT / "data" / "toyworld-prompts.yaml")) == 8


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.txt", "a dog\na {subjct}\na {subject}\na {subject}\n", "1 of 4 prompts have no {subject} in them: 'a dog'"),
        ("p.txt", "a dog\na {subject}\na {subject}\n", "named twice: 'a {subject}'"),
        ("p.txt", "# nothing\n", "no prompts in it"),
        ("p.yaml", "prompts: [a]\n", "expected a list of texts"),
        ("p.yaml", "- [\n", "not a YAML file"),
    ],
)
def test_all_that_is_wrong_with_a_file_of_prompts_is_told_at_once(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_prompts(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert told in str(error.value)


# the subjects


def test_the_published_list_of_the_data_set_gives_classes_and_who_lives(tmp_path: Path) -> None:
    for name in ("backpack_dog", "cat2", "new"):
        make_photos(tmp_path / name, ("red",))
    lines = ["Classes", "", "subject_name,class", "backpack_dog,backpack", "cat2,cat", "", "Prompts", "a,b"]
    (tmp_path / "prompts_and_classes.txt").write_text("\n".join(lines))
    found = [(one.name, one.class_noun, one.is_live) for one in subjects_of_dataset(tmp_path, None, None)]
    assert found == [("backpack_dog", "backpack", False), ("cat2", "cat", True), ("new", None, None)]


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the DreamBench photographs are not beside the repository")
def test_the_photographs_of_the_data_set_are_read_as_they_lie() -> None:
    found = subjects_of_dataset(PHOTOGRAPHS, None, None)
    assert {one.name: (one.class_noun, len(one.photos)) for one in found} == {
        "backpack_dog": ("backpack", 5),
        "cat2": ("cat", 5),
        "dog6": ("dog", 5),
        "grey_sloth_plushie": ("stuffed animal", 5),
        "rc_car": ("toy", 5),
        "teapot": ("teapot", 5),
    }
    assert [one.name for one in found if one.is_live] == ["cat2", "dog6"]


# what is sampled


def test_a_model_gets_its_own_words_and_a_base_the_class_noun(done: Path, place: Path, tiny_base: Path) -> None:
    prompts = {(line["model"], line["subject"], line["prompt"]) for line in scores_of(done)}
    run, base = str(place / "runs" / "{name}"), str(tiny_base)
    assert {prompt for model, subject, prompt in prompts if (model, subject) == (run, "dog6")} == {
        "a sks dog on the beach",
        "a red sks dog",
        "a photo of a dog",
    }
    assert {prompt for model, subject, prompt in prompts if (model, subject) == (base, "teapot")} == {
        "a teapot on the beach",
        "a red teapot",
        "a photo of a teapot",
    }


def test_a_picture_lies_where_its_name_says_and_holds_its_recipe(done: Path, place: Path) -> None:
    (line,) = [
        line
        for line in scores_of(done)
        if line["prompt"] == "a red sks dog" and line["seed"] == "1001" and line["model"].endswith("{name}")
    ]
    assert line["file"].endswith("runs-name/dog6/01-a-red-subject/001.png")
    wanted = {"prompt": "a red sks dog", "seed": 1001, "num_inference_steps": 2, "guidance_scale": 3.0, "width": 64}
    assert {**wanted, "model": str(place / "runs" / "dog6")}.items() <= recipe_of(done / line["file"]).items()


def test_prompts_share_no_seed_and_models_share_all(done: Path) -> None:
    seeds: dict[tuple[str, str], list[int]] = {}
    for line in scores_of(done):
        if line["dino"]:
            seeds.setdefault((line["model"], line["subject"]), []).append(int(line["seed"]))
    assert set(map(tuple, seeds.values())) == {(0, 1, 1000, 1001)}


def test_steps_guidance_and_size_are_one_for_all_rows_and_those_of_the_runs(done: Path) -> None:
    recipes = [recipe_of(path) for path in done.rglob("*.png")]
    assert {(one["num_inference_steps"], one["guidance_scale"], one["width"]) for one in recipes} == {(2, 3.0, 64)}


# the scores


def test_a_score_is_what_the_plain_encoders_give_for_the_file(done: Path, place: Path) -> None:
    line = next(line for line in scores_of(done) if line["prompt"] == "a red sks dog")
    photos = [Image.open(path).convert("RGB") for path in sorted((place / "data" / "dog6").iterdir())]
    picture = Image.open(done / line["file"]).convert("RGB")
    vit, clip = (AutoModel.from_pretrained(place / kind).eval() for kind in ("vit", "clip"))
    see_vit, see_clip = (AutoImageProcessor.from_pretrained(place / kind) for kind in ("vit", "clip"))
    with torch.no_grad():
        classes = [vit(**see_vit(one, return_tensors="pt")).last_hidden_state[0, 0] for one in [picture, *photos]]
        text = AutoTokenizer.from_pretrained(place / "clip")("a red dog", return_tensors="pt")
        pairs = [clip(**see_clip(one, return_tensors="pt"), **text) for one in [picture, *photos]]
    cosine = torch.nn.functional.cosine_similarity
    expected = {
        "dino": np.mean([cosine(classes[0], photo, dim=0) for photo in classes[1:]]),
        "clip_i": np.mean([cosine(pairs[0].image_embeds, pair.image_embeds).item() for pair in pairs[1:]]),
        "clip_t": cosine(pairs[0].image_embeds, pairs[0].text_embeds).item(),
    }
    for measure, value in expected.items():
        assert float(line[measure]) == pytest.approx(value, abs=1e-5), measure


@torch.no_grad()
def test_div_is_among_the_pictures_of_one_prompt_and_pres_of_the_class_prompt(done: Path, place: Path) -> None:
    lines = [line for line in scores_of(done) if line["subject"] == "teapot" and line["model"].endswith("{name}")]
    vit, see = AutoModel.from_pretrained(place / "vit").eval(), AutoImageProcessor.from_pretrained(place / "vit")

    def embed(path: Path) -> np.ndarray:
        vector = vit(**see(Image.open(path).convert("RGB"), return_tensors="pt")).last_hidden_state[0, 0]
        return (vector / vector.norm()).numpy()

    photos = np.stack([embed(path) for path in sorted((place / "data" / "teapot").iterdir())])
    for prompt, measure in (("a red sks teapot", "div"), ("a photo of a teapot", "class_div")):
        own = [line for line in lines if line["prompt"] == prompt]
        vectors = np.stack([embed(done / line["file"]) for line in own])
        numbers = range(len(own))
        expected = [np.mean([1 - vectors[i] @ vectors[j] for j in numbers if j != i]) for i in numbers]
        np.testing.assert_allclose([float(line[measure]) for line in own], expected, atol=1e-5)
    np.testing.assert_allclose(
        [float(line["pres"]) for line in own], [np.mean(photos @ vector) for vector in vectors], atol=1e-5
    )


def test_the_base_has_not_drifted_from_itself_and_a_run_has(done: Path, tiny_base: Path) -> None:
    lines = [line for line in scores_of(done) if line["drift"]]
    own = [float(line["drift"]) for line in lines if line["model"] == str(tiny_base)]
    others = [float(line["drift"]) for line in lines if line["model"] != str(tiny_base)]
    assert len(own) == len(others) == 2 * 3
    assert max(map(abs, own)) < 1e-5
    assert min(others) > 1e-3


# the table


def test_the_table_is_what_the_scores_of_the_pictures_give(done: Path) -> None:
    lines = scores_of(done)
    with (done / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "ours" and row["model"] != "Real images"]
    measures = ("dino", "clip_i", "clip_t", "div", "pres", "class_div", "drift")
    assert len(rows) == 2 * 3, "two models, each over all subjects and on each of two"
    for row, measure in itertools.product(rows, measures):
        own = [line for line in lines if line["model"] == row["model"] and line[measure]]
        names = ["dog6", "teapot"] if row["subject"] == "all" else [row["subject"]]
        means = [np.mean([float(line[measure]) for line in own if line["subject"] == name]) for name in names]
        assert float(row[measure]) == pytest.approx(np.mean(means), abs=1e-12)
        if row["subject"] == "all":
            half = T_ONE_DEGREE * np.std(means, ddof=1) / np.sqrt(2)
            low, high = (-1, 1) if measure in ("dino", "clip_i", "clip_t", "pres") else (0, 2)
            assert float(row[f"{measure}_high"]) == pytest.approx(min(high, np.mean(means) + half), abs=1e-9)
            assert float(row[f"{measure}_low"]) == pytest.approx(max(low, np.mean(means) - half), abs=1e-9)


def test_a_verdict_on_each_model_and_subject_stands_below_the_table(done: Path) -> None:
    """Noise on the weights is no training: neither subject is learned."""
    lines = [line for line in (done / "table.md").read_text().splitlines() if line.startswith("- **")]
    assert [line.split("**")[2].split(":")[0] for line in lines] == [", dog6", ", teapot"], "and none on the base"
    assert all("; " in line for line in lines), "each says what to do"


def test_a_verdict_is_that_of_the_quality_between_the_base_and_the_photos(done: Path) -> None:
    shot = ImageSpec("run", "run", "dog", False, "", "", 0, Path("0.png"))
    of_class = replace(shot, is_class=True)
    scored = [
        *(Scored(shot, {"dino": 0.7, "clip_t": 0.3, "div": 0.1}) for _ in range(2)),
        *(Scored(of_class, {"pres": 0.2, "class_div": 0.4, "drift": 0.1}) for _ in range(2)),
        Scored(replace(shot, row="base"), {"dino": 0.2, "clip_t": 0.3, "div": 0.5}),
        Scored(replace(of_class, row="base"), {"pres": 0.2, "class_div": 0.4, "drift": 0.0}),
    ]
    (found,) = verdicts(scored, {"dog": {"dino": 0.8}}, "base", {"dog": 0.2})
    assert (found.model, found.subject, found.verdict.outcome) == ("run", "dog", "learned")
    assert "83% of the way" in found.verdict.reason
    assert verdicts(scored, {"dog": {"dino": 0.8}}, None, {"dog": 0.2}) == [], "there is nothing to measure from"
    (of_one_photo,) = verdicts(scored, {"dog": {}}, "base", {"dog": 0.2})
    assert "62% of the way" in of_one_photo.verdict.reason, "which is as like itself as can be"


def test_of_one_subject_the_interval_is_over_prompts_and_never_over_diversities_of_one_prompt(done: Path) -> None:
    content = json.loads((done / "table.json").read_text())
    (row,) = [row for row in content["rows"] if row["subject"] == "dog6" and row["model"].endswith("{name}")]
    nums = {measure: found["num"] for measure, found in row["scores"].items()}
    assert nums == {"dino": 2, "clip_i": 2, "clip_t": 2, "div": 2, "pres": 3, "class_div": 1, "drift": 3}
    assert row["scores"]["class_div"]["low"] is None


def test_markdown_csv_and_json_tell_the_same_numbers(done: Path) -> None:
    content = json.loads((done / "table.json").read_text())
    markdown = (done / "table.md").read_text()
    with (done / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["rows"])
    for row, of_json in zip(rows, content["rows"], strict=True):
        assert (row["source"], row["model"], row["subject"]) == tuple(
            of_json[k] for k in ("source", "model", "subject")
        )
        assert {name for name in content["measured_by"] if row[name]} == set(of_json["scores"])
        for name, found in of_json["scores"].items():
            assert float(row[name]) == found["mean"]
            assert f"{found['mean']:.3f}".replace("-0.000", "0.000") in markdown


def test_the_papers_rows_stand_below_a_line_that_marks_them_as_other_data(done: Path) -> None:
    lines = (done / "table.md").read_text().splitlines()
    mark = next(number for number, line in enumerate(lines) if "from the paper" in line)
    assert "other data, other models; not comparable row by row" in lines[mark]
    papers = [number for number, line in enumerate(lines) if line.startswith("| *paper:*")]
    assert papers == list(range(mark + 1, mark + 1 + len(paper.ROWS)))
    assert "| *paper:* DreamBooth, Stable Diffusion | 0.668 | 0.803 | 0.305 |" in "\n".join(lines)
    of_json = [row for row in json.loads((done / "table.json").read_text())["rows"] if "paper" in row["source"]]
    assert [row["model"] for row in of_json] == [row.name for row in paper.ROWS]
    assert {row["source"] for row in of_json} == {"paper (other data, other models)"}


def test_the_papers_figures_are_those_of_its_tables() -> None:
    by_name = {row.name: list(row.means.values()) for row in paper.ROWS}
    assert list(by_name.values()) == [
        [0.774, 0.885],
        [0.696, 0.812, 0.306],
        [0.668, 0.803, 0.305],
        [0.569, 0.780, 0.255],
        [0.684, 0.815, 0.308, 0.391, 0.493],
        [0.712, 0.828, 0.306, 0.371, 0.664],
    ]


def test_the_table_says_by_what_and_how_it_was_measured(done: Path, place: Path, tiny_base: Path) -> None:
    text = (done / "table.md").read_text()
    for told in (
        "2 subjects: dog6 (dog), teapot (teapot). 2 prompts a subject, 2 images a prompt, and 3 of",
        "ddim, 2 steps, guidance 3, 64x64 pixels, seed 0",
        "95 % interval over subjects",
        f"Without an identifier, as it has learned no subject: {tiny_base}.",
        f"| DINO ↑ | {place / 'vit'} |",
        f"| DIV ↑ | cosine distance, {place / 'vit'} |",
        f"(base: {tiny_base})",
    ):
        assert told in text, told


@torch.no_grad()
def test_real_images_are_the_photos_among_themselves(done: Path, place: Path) -> None:
    vit, see = AutoModel.from_pretrained(place / "vit").eval(), AutoImageProcessor.from_pretrained(place / "vit")
    means = []
    for name in ("dog6", "teapot"):
        photos = [Image.open(path).convert("RGB") for path in sorted((place / "data" / name).iterdir())]
        vectors = [vit(**see(photo, return_tensors="pt")).last_hidden_state[0, 0] for photo in photos]
        cosine = torch.nn.functional.cosine_similarity
        means.append(np.mean([cosine(a, b, dim=0).item() for a, b in itertools.combinations(vectors, 2)]))
    rows = json.loads((done / "table.json").read_text())["rows"]
    found = next(
        row["scores"] for row in rows if (row["source"], row["model"], row["subject"]) == ("ours", "Real images", "all")
    )
    assert found["dino"]["mean"] == pytest.approx(np.mean(means), abs=1e-5)


def test_models_that_read_score_beside_the_encoders_and_only_what_a_question_is_about(
    done: Path, place: Path, tiny_base: Path, tiny_blip2: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    words = [str(place / "runs" / "{name}"), str(tiny_base), "--dataset", str(place / "data"), "--base", str(tiny_base)]
    read = ["--matcher", str(tiny_blip2 / "retrieval"), "--reader", str(tiny_blip2)]
    asked = ["--question", "beach: is there a beach?", "--question", "is there a {class}?"]
    assert main([*command(place, out), *words, *read, *asked]) == 0
    before, beach, noun = scores_of(done), "question_is_there_a_beach__yes__beach", "question_is_there_a_class"
    for line, old in zip(scores_of(out), before, strict=True):
        assert {name: line[name] for name in old} == old, "what the encoders score stays"
        filled = {name for name in ("match", beach, noun) if line[name]}
        of_subject = {"match", beach, noun} if "beach" in line["prompt"] else {"match", noun}
        assert filled == (of_subject if line["dino"] else set())
    content = json.loads((out / "table.json").read_text())
    assert content["measured_by"][beach] == content["measured_by"][noun] == str(tiny_blip2)
    real = next(row["scores"] for row in content["rows"] if row["model"] == "Real images")
    assert (noun in real, beach in real, "match" in real) == (True, False, False)
    text = (out / "table.md").read_text()
    assert "| Match ↑ | “beach: is there a beach?” ↑ | “is there a class?” ↑ |" in text
    assert "subject prompts: probability of the right answer" in text


# going on, and refusing to


def test_the_same_command_again_makes_no_picture_again_and_says_so(
    done: Path, place: Path, tiny_base: Path, evaluate: Evaluate
) -> None:
    before, table = contents(done), (done / "table.md").read_text()
    words = [place / "runs" / "{name}", tiny_base, "--dataset", place / "data", "--base", tiny_base]
    code, out, err = evaluate(*words, out=done)
    assert code == 0
    assert f"{len(before)} images, {len(before)} of them were there already" in err
    assert contents(done) == before
    assert table in out
    assert (done / "table.md").read_text() == table


def test_a_missing_picture_alone_is_made_again_and_is_the_same(
    done: Path, place: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(done, out)
    before = contents(out)
    (gone,) = out.glob("*runs-name/dog6/01-a-red-subject/001.png")
    gone.unlink()
    code, _, err = evaluate(place / "runs" / "{name}", "--dataset", place / "data", out=out)
    assert code == 0
    assert "14 images, 13 of them were there already" in err
    after = contents(out)
    assert {path: kept for path, kept in after.items() if path != gone} == {
        path: kept for path, kept in before.items() if path != gone
    }
    again, first = (np.asarray(Image.open(path), int) for path in (gone, done / gone.relative_to(out)))
    assert abs(again - first).max() <= 1, "the same recipe gave another picture"


def test_more_images_later_leave_the_first_ones_as_they_are(place: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    words = (place / "runs" / "dog6", "--images", place / "data" / "dog6")
    assert evaluate(*words)[0] == 0
    before = contents(tmp_path / "out")
    code, _, err = evaluate(*words, "--num-images", "3")
    assert code == 0
    assert "9 images, 7 of them were there already" in err
    assert before.items() <= contents(tmp_path / "out").items()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--guidance-scale", "5"], "guidance_scale 3.0 -> 5.0"),
        (["--steps", "1"], "num_inference_steps 2 -> 1"),
        (["--size", "64x48"], "height 64 -> 48"),
        (["--seed", "1"], "seed 0 -> 1"),
        (["--dtype", "bfloat16"], "dtype 'float32' -> 'bfloat16'"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_with_the_difference(
    done: Path, place: Path, evaluate: Evaluate, options: list[str], told: str
) -> None:
    before = contents(done)
    code, _, err = evaluate(place / "runs" / "{name}", "--dataset", place / "data", *options, out=done)
    assert code == 2
    assert told in err
    assert "name another --out" in err
    assert contents(done) == before


def test_a_run_that_was_trained_on_is_another_model(
    place: Path, tiny_base: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    run = make_run(tiny_base, tmp_path / "run", CARD, seed=3)
    words = (run, "--images", place / "data" / "dog6")
    assert evaluate(*words)[0] == 0
    make_run(tiny_base, run, CARD, seed=4)
    code, _, err = evaluate(*words)
    assert code == 2
    assert "made otherwise: weights" in err


def test_a_picture_from_elsewhere_is_not_taken_for_one_of_ours(place: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    words = (place / "runs" / "dog6", "--images", place / "data" / "dog6")
    assert evaluate(*words)[0] == 0
    path = next((tmp_path / "out").rglob("class-*/000.png"))
    Image.new("RGB", (64, 64)).save(path)
    assert "an image without a recipe" in evaluate(*words)[2]
    path.write_bytes(b"nothing")
    assert "not an image" in evaluate(*words)[2]


def interrupt_once(condition: Callable[[], bool], give_up: threading.Event) -> None:
    """Do what Ctrl-C does, as soon as the condition holds; again where Python drops it, as in a destructor."""
    while not give_up.wait(0.01):
        if condition():
            os.kill(os.getpid(), signal.SIGINT)
            give_up.wait(5)


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_the_same_command_goes_on(place: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    words = (place / "runs" / "dog6", "--images", place / "data" / "dog6", "--batch-size", "1")
    ended = threading.Event()
    four_are_there = lambda: len(list((tmp_path / "out").rglob("*.png"))) >= 4  # noqa: E731
    user = threading.Thread(target=interrupt_once, args=(four_are_there, ended))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
    user.start()
    code, _, err = evaluate(*words, "--num-images", "400")
    ended.set()
    user.join()
    signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "interrupted" in err
    assert not (tmp_path / "out" / "table.md").exists()
    kept = contents(tmp_path / "out")
    assert 4 <= len(kept) < 400
    code, _, err = evaluate(*words, "--num-images", "4")
    assert code == 0
    assert "11 images, 4 of them were there already" in err
    assert kept.items() <= contents(tmp_path / "out").items(), "what was there has been made again"


# mistakes


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["{run}", "./nowhere", "--images", "{dog}"], 3, "./nowhere: there is no such folder or file"),
        (["{runs}/{name}x", "--dataset", "{data}"], 3, "dog6x: "),
        (["{run}", "--images", "{dog}", "--base", "./nowhere"], 3, "./nowhere: "),
        (["{run}", "--images", "./nowhere"], 2, "nowhere: no such folder"),
        (["{run}", "--dataset", "./nowhere"], 2, "--dataset: nowhere is no folder"),
        (["{run}", "--dataset", "{dog}"], 2, "has no folders; for a single folder of images there is --images"),
        (["{run}", "--dataset", "{data}", "--subjects", "dog7"], 2, "has no dog7; did you mean dog6?"),
        (["{run}", "--images", "{dog}", "--subjects", "dog6"], 2, "--subjects: chooses among those of --dataset"),
        (["{run}", "--images", "{dog}", "--prompts", "objcts"], 2, "'objcts' is neither objects, live, auto nor"),
        (["{run}", "--images", "{dog}", "--dino", "./nowhere"], 3, "./nowhere: no encoder to measure with"),
        (["{run}", "--images", "{dog}", "--clip", "./nowhere"], 3, "./nowhere: no encoder to measure with"),
        (["{run}", "--images", "{dog}", "--dino", "none", "--clip", "none"], 2, "no encoder to measure with"),
        (["{base}", "--images", "{dog}"], 2, "dog6: unknown class"),
        (["{runs}/dog6", "{runs}/teapot", "--images", "{dog}"], 2, "call it 'dog' and 'teapot': name one --class-noun"),
        (["{base}", "--dataset", "{data}", "--class-noun", "dog"], 2, "--class-noun: 'dog' for 2 subjects at once"),
        (["{run}", "{other}", "--images", "{dog}"], 2, "--steps: the runs sampled with 2, 7; set one for all"),
        (["{run}", "{lms}", "--images", "{dog}"], 2, "--scheduler: the runs sampled with ddim, lms; set one for all"),
        (["{run}", "{run}", "--images", "{dog}"], 2, "would write to one folder"),
        (["{run}", "--images", "{dog}", "--prompts", "{long}"], 2, "tokens with start and end"),
        (["{run}", "--images", "{dog}", "--size", "60x64"], 2, "must be multiples of 8 pixels"),
        (
            ["{run}", "--images", "{dog}", "--scheduler", "dimm"],
            2,
            "--scheduler dimm: unknown sampler; did you mean ddim?",
        ),
        (["{run}", "--images", "{dog}", "--num-images", "0"], 2, "--num-images 0: must be at least 1"),
        (["{run}", "--images", "{dog}", "--base", "{base}", "--class-prompt-images", "0"], 2, "--base: drift is"),
        (["{run}", "--images", "{dog}", "--out", "{long}"], 2, "is a file; name a folder"),
        (
            ["some/cat", "--images", "{dog}", "--base", "../some/cat"],
            2,
            "MODEL: some/cat and ../some/cat would write to one folder, some-cat",
        ),
        (["{run}", "--images", "{dog}", "--question", "is it?"], 2, "asks a model that --reader names"),
        (
            ["{run}", "--images", "{dog}", "--reader", "./none", "--question", "is it?"],
            3,
            "--reader ./none: there is no",
        ),
        (["{run}", "--images", "{dog}", "--reader", "a/b", "--question", "is it"], 2, "'is it': must be a question"),
        (["{run}", "--images", "{dog}", "--reader", "a/b", "--question", "sea: is it?"], 2, "has the words 'sea'"),
        (["{run}", "--images", "{dog}", "--reader", "{vit}", "--question", "is it?"], 3, "a vit describes no images"),
        (["{run}", "--images", "{dog}", "--matcher", "{vit}"], 3, "a vit has no matching head"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    place: Path, tiny_base: Path, tmp_path: Path, evaluate: Evaluate, words: list[str], code: int, named: str
) -> None:
    (tmp_path / "long.txt").write_text("a {subject} " + "very " * 50)
    for name, change in {"other": {"num_inference_steps": 7}, "lms": {"scheduler": "lms"}}.items():
        if f"{{{name}}}" in words:
            make_run(tiny_base, tmp_path / name, replace(CARD, **change), seed=5)
    places = {
        "{runs}": place / "runs",
        "{run}": place / "runs" / "dog6",
        "{other}": tmp_path / "other",
        "{lms}": tmp_path / "lms",
        "{base}": tiny_base,
        "{data}": place / "data",
        "{dog}": place / "data" / "dog6",
        "{long}": tmp_path / "long.txt",
        "{vit}": place / "vit",
    }
    for name, path in places.items():
        words = [word.replace(name, str(path)) for word in words]
    found, _, err = evaluate(*words)
    assert found == code
    assert named in err
    assert len([line for line in err.splitlines() if not line.startswith("note:")]) <= 2
    assert not (tmp_path / "out").exists(), "something was written"


# what need not be there


def test_a_run_without_a_validation_is_measured_by_the_encoders_of_its_config(
    place: Path, tiny_base: Path, tmp_path: Path
) -> None:
    make_run(tiny_base, tmp_path / "silent" / "model", CARD, seed=5)
    (tmp_path / "silent" / "config.yaml").write_text(f"validate: {{dino: {place / 'vit'}, clip: null}}")
    encoders = find_encoders("auto", "none", [str(tmp_path / "silent")], "cpu", lpips=False)
    assert encoders.dino is not None
    assert encoders.dino.name == str(place / "vit")


def test_a_plain_base_is_measured_by_the_class_noun_alone(place: Path, tiny_base: Path, evaluate: Evaluate) -> None:
    words = (tiny_base, "--images", place / "data" / "dog6", "--class-noun", "cat", "--steps", "1", "--dino", "none")
    code, out, _ = evaluate(*words, "--class-prompt-images", "0", "--num-images", "1")
    assert code == 0
    assert "| model | CLIP-I ↑ | CLIP-T ↑ |\n" in out, "what was not measured has no column"


def test_an_unknown_kind_of_subject_gets_the_papers_prompts_for_objects_and_that_is_said(
    place: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    words = (place / "runs" / "dog6", "--images", place / "data" / "dog6", "--prompts", "auto", "--steps", "1")
    code, _, err = evaluate(*words, "--num-images", "1", "--class-prompt-images", "0", "--guidance-scale", "1")
    assert code == 0
    assert "whether dog6 lives is not known; it gets the prompts for objects" in err
    expected = [prompt.replace("{subject}", "sks dog") for prompt in SETS["objects"]]
    assert [line["prompt"] for line in scores_of(tmp_path / "out")] == expected
