"""`prepare`: faults that are planted in photos are found, sound photos pass, and the files stay as they are."""

import base64
import hashlib
import html
import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from browser import CHROMIUM, needs_browser
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.data.buckets import make_buckets
from dreambooth.data.image_folder import sort_files
from dreambooth.data.masks import masks_folder
from dreambooth.data.near_duplicates import ImageInfo
from dreambooth.errors import ModelError, UserError
from dreambooth.prepare.captions import edited_captions
from dreambooth.prepare.crops import crops_of
from dreambooth.prepare.findings import Needs, Photo
from dreambooth.prepare.inspection import Inspection, PhotoReaders, inspect_folder
from dreambooth.prepare.measures import Box
from dreambooth.prepare.page import render
from dreambooth.prepare.preparation import Request, is_cut_by_middle, needs_of, prepare, with_accepted
from dreambooth.prepare.tokens import Token, draw_tokens, load_text_sides, rank_tokens
from dreambooth.prepare.writing import caption_files, check_files, mask_files, proposed_mask_files, write_files
from dreambooth.readers.lettering import TextLine, TextReader
from dreambooth.readers.one_photo import SubjectFinder
from dreambooth.readers.usual import MASK
from toyworld import world
from toyworld.photos import photos
from toyworld.second import picture

TOY = Needs(64, [(64, 64)])
BASE = str(Path(__file__).parents[1] / "checkpoints" / "toyworld")


@pytest.fixture
def robot(tmp_path: Path) -> Path:
    """Five sound photos of the toy world."""
    folder = tmp_path / "robot"
    folder.mkdir()
    for number, image in enumerate(photos("robot", 0)):
        image.save(folder / f"{number}.png")
    return folder


def change(path: Path, fault) -> None:
    fault(Image.open(path).convert("RGB")).save(path)


def found(inspection: Inspection) -> dict[str, list[str]]:
    """The kinds of findings by photo; those about all of them under the empty name."""
    kinds = {each.path.name: [one.kind for one in each.findings] for each in inspection.photos}
    return {name: own for name, own in {**kinds, "": [one.kind for one in inspection.findings]}.items() if own}


def test_sound_photos_have_no_findings(robot):
    inspection = inspect_folder(robot, TOY)
    assert found(inspection) == {}
    assert len(inspection.readable) == 5


def in_bars(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (image.width, image.height + 24), "black")
    canvas.paste(image, (0, 12))
    return canvas


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("blurred", lambda image: image.filter(ImageFilter.GaussianBlur(2))),
        ("dark", lambda image: image.point(lambda level: level // 4)),
        ("clipped", lambda image: image.point(lambda level: min(255, 2 * level + 60))),
        ("bars", in_bars),
        ("small", lambda image: image.resize((40, 40))),
        ("shape", lambda image: image.resize((300, 100))),
    ],
)
def test_a_planted_fault_is_found_in_its_photo_alone(robot, kind, fault):
    change(robot / "2.png", fault)
    kinds = found(inspect_folder(robot, TOY))
    assert kind in kinds.pop("2.png")
    assert kinds == {}


def test_a_file_that_cannot_be_read_ends_nothing(robot):
    (robot / "1.png").write_bytes((robot / "1.png").read_bytes()[:300])
    inspection = inspect_folder(robot, TOY)
    assert found(inspection) == {"1.png": ["unreadable"]}
    assert inspection.num == {"error": 1, "warning": 0, "note": 0}
    assert "cut short" in inspection.photos[1].findings[0].text


def test_a_white_backdrop_is_not_overexposed(robot):
    image = Image.new("RGB", (64, 64), "white")
    image.paste(Image.open(robot / "0.png").resize((24, 24)), (20, 20))
    image.save(robot / "0.png")
    assert found(inspect_folder(robot, TOY)) == {}


def test_copies_and_one_background_are_findings_about_all_photos(robot, tmp_path):
    same = tmp_path / "same"
    same.mkdir()
    for number, image in enumerate(photos("robot", 3, 4, places=["beach"])):
        image.save(same / f"{number}.png")
    Image.open(robot / "1.png").save(robot / "copy.jpg", quality=95)
    (copy,) = inspect_folder(robot, TOY).findings
    assert (copy.kind, copy.photos) == ("duplicate", ("1.png", "copy.jpg"))
    (background,) = inspect_folder(same, TOY).findings
    assert (background.kind, background.number) == ("background", 1)


def test_two_photos_are_few(robot):
    for number in range(2, 5):
        (robot / f"{number}.png").unlink()
    assert found(inspect_folder(robot, TOY)) == {"": ["few"]}


def test_a_transparent_photo_says_what_to_do_with_it(robot):
    image = Image.open(robot / "0.png").convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 16, 64))
    image.save(robot / "0.png")
    ((photo, *_), *_) = [each.findings for each in inspect_folder(robot, TOY).photos]
    assert (photo.kind, photo.severity, photo.number) == ("transparent", "warning", 0.25)
    (alpha, *_) = inspect_folder(robot, Needs(64, [(64, 64)], "alpha")).photos[0].findings
    assert alpha.severity == "note"


def test_masks_beside_the_photos_show_a_subject_that_is_cut_off_or_small(tmp_path):
    folder, masks = tmp_path / "dog", tmp_path / "dog-masks"
    folder.mkdir()
    masks.mkdir()
    rng = random.Random(0)
    spec = world.subject("dog", 1)
    for number, place in enumerate(("grass", "city", "snow")):
        scene = world.random_scene(rng, place)
        pair = world.render(spec, scene), world.object_mask(spec, scene)
        for image, where in zip(pair, (folder, masks), strict=True):
            if number == 1:
                image = image.crop((0, 0, 40, 64))
            if number == 2:
                canvas = Image.new(image.mode, (300, 300), 90 if image.mode == "L" else "tan")
                canvas = canvas.point(lambda level: 0) if image.mode == "L" else canvas
                canvas.paste(image, (120, 200))
                image = canvas
            image.save(where / f"{number}.png")
    inspection = inspect_folder(folder, TOY)
    kinds = found(inspection)
    assert inspection.mask_source == str(masks)
    assert "0.png" not in kinds
    assert "cut off" in kinds["1.png"]
    assert "far away" in kinds["2.png"]
    small = next(one for one in inspection.photos[2].findings if one.kind == "far away")
    assert small.box is not None
    assert 0.39 < small.box[0] < small.box[2] < 0.62


def test_another_thing_of_the_class_is_a_second_candidate(tmp_path):
    rng = random.Random(1)
    dogs = [picture.random_spec(rng, "dog") for _ in range(2)]
    shown = {
        "two": (dogs, "left of"),
        "one": (dogs[:1], ""),
        "other": ([dogs[0], picture.random_spec(rng, "car")], "left of"),
    }
    for name, (specs, relation) in shown.items():
        picture.render(picture.random_picture(rng, specs, relation)).save(tmp_path / f"{name}.png")
    readers = PhotoReaders(SubjectFinder(MASK.embedded))
    inspection = inspect_folder(tmp_path, TOY, "dog", readers=readers)
    kinds = found(inspection)
    assert [name for name, own in kinds.items() if "candidates" in own] == ["two.png"]


@pytest.mark.parametrize(("second", "number"), [((44, 0, 64, 60), 0.5), ((44, 0, 64, 30), 0)], ids=("large", "small"))
def test_a_small_second_part_of_a_mask_is_no_candidate(robot, second, number):
    masks = robot.with_name("robot-masks")
    masks.mkdir()
    for name in range(5):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (2, 2, 42, 62))
        mask.paste(255, second)
        mask.save(masks / f"{name}.png")
    kinds = {one.kind: one for one in inspect_folder(robot, TOY).photos[0].findings}
    assert kinds["candidates"].number == number if number else "candidates" not in kinds


@pytest.mark.parametrize(("probability", "is_found"), [(0.04, True), (0.1, False), (0.9, False)])
def test_a_photo_in_which_nobody_sees_the_class_is_told(robot, probability, is_found):
    asked = []

    def sees(image: Image.Image, class_noun: str) -> float:
        asked.append(class_noun)
        return probability if len(asked) == 2 else 1.0

    inspection = inspect_folder(robot, TOY, "robot", readers=PhotoReaders(sees=sees))
    assert asked == ["robot"] * 5
    found_in = [photo.path.name for photo in inspection.photos if "class" in {one.kind for one in photo.findings}]
    assert found_in == ([inspection.photos[1].path.name] if is_found else [])


def line(text: str, score: float = 0.95, box: Box = (0.1, 0.6, 0.9, 0.8)) -> TextLine:
    return TextLine(text, score, box)


def reads(plain: list[TextLine], mirrored: list[TextLine]) -> PhotoReaders:
    """A reader that sees some lines in a photo and others in its mirror image."""
    answers = itertools.cycle((plain, mirrored))
    return PhotoReaders(read_text=lambda image: next(answers))


@pytest.mark.parametrize(
    ("plain", "mirrored", "kinds"),
    [
        ([line("SALE")], [], ["text"]),
        ([line("SALE", 0.7)], [], []),
        ([line("品"), line("- O -")], [], []),
        ([line("3JA2", 0.6)], [line("SALE")], ["mirrored"]),
        ([line("OXO")], [line("OXO")], ["text"]),
        ([], [], []),
    ],
    ids=("text", "unsure", "few", "mirrored", "either", "none"),
)
def test_text_is_a_finding_and_mirrored_text_another(robot, plain, mirrored, kinds):
    inspection = inspect_folder(robot, TOY, readers=reads(plain, mirrored))
    assert inspection.has_read_text
    for photo in inspection.photos:
        assert [finding.kind for finding in photo.findings] == kinds


def test_lettering_of_the_subject_itself_is_no_text_over_the_photo(robot):
    masks = robot.with_name("robot-masks")
    masks.mkdir()
    for number in range(5):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (0, 0, 64, 64) if number else (0, 0, 64, 40))
        mask.save(masks / f"{number}.png")
    kinds = found(inspect_folder(robot, TOY, readers=reads([line("ROBO")], [])))
    assert [name for name, own in kinds.items() if "text" in own] == ["0.png"]


def test_rapidocr_reads_a_line_over_a_photo_and_in_its_mirror_image(robot):
    pytest.importorskip("rapidocr", reason="the extra 'ocr' is not installed")
    (robot / "2.png").unlink()
    (robot / "4.png").unlink()
    for number, change_it in ((1, lambda image: image), (3, ImageOps.mirror)):
        image = Image.open(robot / f"{number}.png").resize((256, 256))
        ImageDraw.Draw(image).text((40, 90), "Berlin", "white", ImageFont.load_default(48), stroke_width=2,
                                   stroke_fill="black")  # fmt: skip
        change_it(image).save(robot / f"{number}.png")
    kinds = found(inspect_folder(robot, TOY, readers=PhotoReaders(read_text=TextReader(1))))
    assert kinds == {"1.png": ["text"], "3.png": ["mirrored"]}


def test_buckets_keep_a_long_photo_that_a_square_would_cut():
    info = inspect_folder(Path("data/robot"), TOY).photos[0].photo.info
    wide = type(info)(info.path, (1600, 900), 1, info.colours_HWC)
    assert needs_of(BASE, [wide], None).buckets == [(64, 64)]
    assert needs_of("someone/else", [info], None).buckets == [(512, 512)]
    assert needs_of("someone/else", [wide], None).buckets == make_buckets(512, 64)


def files_of(folder: Path) -> dict[Path, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_command_prints_findings_and_a_config_and_writes_nothing(robot, base, capsys):
    change(robot / "2.png", lambda image: image.resize((40, 40)))
    before = files_of(robot.parent)
    assert main(["prepare", str(robot), "--base", base, "--class", "robot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{robot}: 5 photos, to train at 64 x 64 pixels; 1 warning"
    assert lines[1] == (
        "warning   2.png           40 x 40 pixels, enlarged 1.6 times to 64 x 64; its blur is learned: take the "
        "original, or lower data.resolution"
    )
    config = yaml.safe_load("\n".join(lines[lines.index("") :]))
    assert config["subject"]["class_noun"] == "robot"
    assert config["train"]["max_steps"] == 240
    assert any(line.startswith("warning   settings        memory, disk and time are not known") for line in lines)
    assert files_of(robot.parent) == before


def test_what_is_accepted_is_written_and_nothing_is_written_over(robot, base, tmp_path, capsys):
    (robot / "0.txt").write_text("a red {subject} in the snow at night")
    (robot / "1.txt").write_text("{subject} in the city at noon")
    before = files_of(robot)
    out = tmp_path / "out"
    command = ["prepare", str(robot), "--base", base, "--class", "robot", "--out", str(out)]
    assert main([*command, "--accept", "config", "captions"]) == 0
    said = capsys.readouterr().out
    assert "says what the subject looks like: 'red'" in said
    assert f"{out}/config.yaml: config; train: python -m dreambooth train {out}/config.yaml" in said
    assert files_of(robot) == before
    assert {path.name for path in files_of(out)} == {"prepare.html", "config.yaml", "0.txt"}
    assert (out / "captions" / "0.txt").read_text() == "{subject} in the snow at night\n"
    config = load_config(out / "config.yaml")
    assert (config.subjects[0].images, config.optim.lr) == (str(robot), 4e-4)
    assert not config.data.captions
    assert main([*command, "--accept", "config"]) == 2
    assert "config.yaml: is there already" in capsys.readouterr().err


def test_the_page_is_one_file_that_shows_every_photo_and_setting(robot, tmp_path):
    (robot / "3.png").write_bytes(b"no image")
    for number in (0, 1, 2, 4):
        (robot / f"{number}.txt").write_text("a <b>red</b> & red {subject}")
    found = prepare(Request(robot, BASE, "robot"), PhotoReaders(lambda image, noun: Image.new("L", image.size, 255)))
    page = render(found)
    assert page.count('<article class="photo">') == 5
    assert "Not an image" in page
    assert page.count("after: data.crop=subject") == 4
    assert "&lt;b&gt;red&lt;/b&gt; &amp; <mark>red</mark> {subject}" in page
    assert all(f"<code>{key}</code>" in page for key in found.draft)
    assert "http" not in page.replace("http-equiv", "")
    assert render(found) == page


def test_the_page_runs_its_own_script_alone_which_offers_every_caption(robot):
    (robot / "3.png").write_bytes(b"no image")
    (robot / "0.txt").write_text("a red {subject} in the snow")
    (robot / "1.txt").write_text('{subject} & "friends" at noon')
    page = render(prepare(Request(robot, BASE, "robot", out=Path("out/config.yaml"))))
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    fields = dict(re.findall(r'<textarea name="([^"]*)"[^>]*>(.*?)</textarea>', page))
    texts = {name: html.unescape(text) for name, text in fields.items()}
    assert texts == {
        "0.png": "{subject} in the snow", "1.png": '{subject} & "friends" at noon', "2.png": "", "4.png": "",
    }  # fmt: skip
    assert "--captions metadata.jsonl --out out --accept captions" in page


def test_edited_captions_are_looked_at_and_written_beside_photos_without_one(robot, base, tmp_path, capsys):
    (robot / "0.txt").write_text("a red {subject} in the snow")
    before = files_of(robot)
    edited = {f"{number}.png": f"{{subject}} in place {number} of five" for number in range(4)}
    edited["4.png"] = "a blue {subject} at the lake"
    file = tmp_path / "metadata.jsonl"
    file.write_text("".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in edited.items()))
    command = ["prepare", str(robot), "--base", base, "--class", "robot", "--out", str(tmp_path / "out")]
    assert main([*command, "--captions", str(file), "--accept", "captions", "config"]) == 0
    assert "says what the subject looks like: 'blue'" in capsys.readouterr().out
    assert {path: text for path, text in files_of(robot).items() if path in before} == before
    assert (tmp_path / "out" / "captions" / "0.txt").read_text() == "{subject} in place 0 of five\n"
    for number in range(1, 5):
        assert (robot / f"{number}.txt").read_text() == f"{edited[f'{number}.png']}\n"
    assert load_config(tmp_path / "out" / "config.yaml").data.captions, "each photo has one now"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"file_name": "9.png", "text": "{subject}"}', "9.png: there is no such photo in"),
        ('{"file_name": "0.png", "text": " "}', "0.png: the caption is empty"),
        ('{"file_name": "0.png", "text": "{dog} here"}', "0.png: "),
        ("red", "line 1: expected"),
    ],
    ids=("photo", "empty", "template", "json"),
)
def test_an_edited_caption_that_cannot_be_taken_is_named(line, told, robot, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(line)
    before = files_of(tmp_path)
    assert main(["prepare", str(robot), "--base", BASE, "--captions", str(tmp_path / "a.jsonl")]) == 2
    assert told in capsys.readouterr().err
    assert files_of(tmp_path) == before


@pytest.mark.slow
@needs_browser
def test_a_browser_saves_the_captions_that_were_edited(robot, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = prepare(Request(robot, BASE, "robot"), describe=lambda image, noun: f"a {noun} on the moon")
    (tmp_path / "prepare.html").write_text(render(found))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        messages: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.goto((tmp_path / "prepare.html").as_uri())
        page.fill('textarea[name="1.png"]', "{subject} by a river, as “seen” from above")
        page.fill('textarea[name="2.png"]', "")
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "metadata.jsonl")
        browser.close()
    captions = edited_captions(sort_files(robot), tmp_path / "metadata.jsonl", "robot", None)
    assert not messages
    assert [caption.proposed for caption in captions] == [
        "{subject} on the moon", "{subject} by a river, as “seen” from above", *["{subject} on the moon"] * 2,
    ]  # fmt: skip


def test_masks_that_a_finder_found_are_written_where_training_reads_them(robot):
    def find_mask(image: Image.Image, class_noun: str) -> Image.Image:
        assert class_noun == "robot"
        mask = Image.new("L", image.size)
        mask.paste(255, (8, 8, 40, 64))
        return mask

    found = prepare(Request(robot, BASE, "robot"), PhotoReaders(find_mask))
    assert "data.mask" not in found.draft
    paths = write_files(mask_files(found.inspection))
    assert [path.name for path in paths] == [f"{number}.png" for number in range(5)]
    accepted = with_accepted(found, ["masks", "config"]).draft
    again = prepare(Request(robot, BASE, "robot"))
    assert accepted == again.draft
    assert with_accepted(found, ["config"]).draft == found.draft
    assert again.draft["data.mask"][0] == str(robot.with_name("robot-masks"))
    assert again.inspection.readable[0].box == (8 / 64, 8 / 64, 40 / 64, 1)
    robot.with_name("robot-masks").joinpath("0.png").write_bytes(b"another")
    with pytest.raises(UserError, match=r"robot-masks.0\.png: is there already"):
        check_files(mask_files(found.inspection))
    write_files(mask_files(found.inspection)[:1])
    proposed = write_files(proposed_mask_files(found.inspection, robot.with_name("out")))
    assert proposed == [robot.with_name("out") / "masks" / f"{number}.png" for number in range(5)]
    assert proposed[0].read_bytes() == paths[0].read_bytes()


def test_masks_lie_beside_a_folder_however_it_is_named(robot, monkeypatch):
    assert masks_folder(robot) == robot.with_name("robot-masks")
    monkeypatch.chdir(robot)
    assert masks_folder(Path()) == masks_folder(Path("..", "robot")).resolve() == robot.with_name("robot-masks")
    assert found(inspect_folder(Path(), TOY)) == {}


def test_a_captioner_proposes_captions_that_are_written_beside_photos_without_one(robot, tmp_path):
    found = prepare(Request(robot, BASE, "robot"), describe=lambda image, noun: f"a red {noun} on the moon.")
    assert [caption.proposed for caption in found.captions] == ["{subject} on the moon"] * 5
    files = caption_files(found.captions, found.inspection.folder, tmp_path / "out")
    assert write_files(files) == [robot / f"{number}.txt" for number in range(5)]
    assert prepare(Request(robot, BASE, "robot")).draft["data.captions"][0] is True


def test_the_crop_is_around_the_subject_where_the_middle_would_cut_it():
    image = Image.new("RGB", (900, 300), "tan")
    mask = Image.new("L", image.size)
    mask.paste(255, (20, 50, 220, 250))
    info = ImageInfo(Path("a.png"), image.size, 1, np.zeros((16, 16, 3)))
    photo = Photo(Path("a.png"), image, info, mask)
    assert is_cut_by_middle(photo, TOY)
    crops = crops_of(photo, Needs(64, [(64, 64)]), 0.1)
    assert crops.around is not None
    assert crops.around.size == (64, 64)
    assert 0.45 < crops.weight < 0.55  # 200 x 200 of 300 x 300 pixels count, of the rest a tenth
    assert not is_cut_by_middle(replace(photo, mask=None), TOY)


def test_words_are_one_rare_token_to_every_tokenizer(tiny_xl_base, tiny_z_image_base):
    sides = load_text_sides(str(tiny_xl_base), "sdxl")
    assert len(sides) == 2
    tokens = rank_tokens(sides, "robot")
    assert tokens
    for token in tokens:
        assert [side.tokenize(token.word) for side in sides] == [[number] for number in token.token_ids]
    assert tokens[0].word not in [token.word for token in rank_tokens(sides, f"{tokens[0].word} robot")]
    clip = rank_tokens(load_text_sides("someone/else", "sd"), "dog")
    assert len(clip) == 8
    assert all(len(token.word) in (3, 4) for token in clip)
    qwen = load_text_sides(str(tiny_z_image_base), "z_image")
    assert [token.word for token in rank_tokens(qwen, "dog")] == []  # of its few words sks is one, and a rifle
    with pytest.raises(ModelError, match="its tokenizer is not here"):
        load_text_sides("someone/else", "qwen_image")


def test_words_that_mean_nothing_go_before_words_that_mean_something():
    """The base draws one thing for "same", for "any" whatever the noise says, and beside the class nothing changes."""

    def draw(prompt: str, num_images: int) -> list[Image.Image]:
        levels = [200 if "same" in prompt else 40 * number for number in range(num_images)]
        return [Image.new("RGB", (8, 8), (level, 100, 255 - level)) for level in levels]

    def embed(images):
        pixels_BD = torch.tensor([image.getpixel((0, 0)) for image in images]).float()
        return torch.nn.functional.normalize(pixels_BD, dim=1)

    drawn = draw_tokens([Token("same", (1,)), Token("any", (2,))], "dog", draw, embed)
    assert [token.word for token in drawn] == ["any", "same"]
    assert drawn[0].likeness == pytest.approx(1)
    assert drawn[1].variance == pytest.approx(0, abs=1e-6)
    assert len(drawn[0].images) == 4


def test_the_command_ends_as_training_would_on_a_photo_that_cannot_be_read(robot, capsys):
    (robot / "1.png").write_bytes(b"no image")
    assert main(["prepare", str(robot), "--base", BASE]) == 2
    said = capsys.readouterr().out
    assert "error     1.png           not an image; mend, move or remove it" in said
    assert "note      settings        name the class with --class" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["data/robot", "--masks", "nowhere"], "--masks nowhere: there is no such folder"),
        (["data/robot", "--accept", "captions"], "--accept: says what to write into the folder --out"),
        (["data/robot", "--out", "x", "--accept", "config"], "--accept config: settings need the class"),
        (["data/robot", "--draw-words"], "--draw-words: draws them beside the class"),
        (["data/robot", "--memory", "0"], "--memory: 0.0 is too small"),
        (
            ["data/robot", "--captions", "README.md", "--caption-model", "b"],
            "--captions: not together with --caption-model",
        ),
        (["data/robot", "--captions", "nowhere.jsonl"], "--captions nowhere.jsonl: there is no such file"),
    ],
)
def test_a_mistake_is_told_in_a_line(arguments, told, capsys):
    assert main(["prepare", *arguments, "--base", BASE]) == 2
    assert told in capsys.readouterr().err
