"""`prepare` where something is in its way: it refuses before it writes, says what it leaves out, and loses nothing."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.data.cuts import subject_box
from dreambooth.data.image_folder import sort_files
from dreambooth.data.masks import mask_of
from dreambooth.data.near_duplicates import ImageInfo
from dreambooth.errors import UserError
from dreambooth.prepare import measures
from dreambooth.prepare.findings import Needs, Photo, duplicates, photo_findings
from dreambooth.prepare.inspection import PhotoReaders, inspect_folder
from dreambooth.prepare.page import render, sentence
from dreambooth.prepare.preparation import Request, prepare
from dreambooth.prepare.tokens import load_text_sides, rank_tokens
from dreambooth.prepare.writing import caption_files, mask_files, planned_files, proposed_mask_files, write_files
from dreambooth.proposal.draft import run_name

TOY = Needs(64, [(64, 64)])
NUM_PHOTOS = 3


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of noise: 0.png, 1.png, 2.png."""
    folder = tmp_path / "rex"
    folder.mkdir()
    for number in range(NUM_PHOTOS):
        noise(number).save(folder / f"{number}.png")
    return folder


def noise(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def in_the_middle(image: Image.Image, class_noun: str = "") -> Image.Image:
    mask = Image.new("L", image.size)
    mask.paste(255, (image.width // 4, image.height // 4, 3 * image.width // 4, 3 * image.height // 4))
    return mask


def prepared(photos: Path, base: str, out: Path, class_noun: str = "dog"):
    """A preparation with masks and captions by programs."""
    request = Request(photos, base, class_noun, out=out / "config.yaml")
    return prepare(request, PhotoReaders(in_the_middle), lambda image, noun: f"a {noun} on the moon")


@pytest.mark.parametrize("blocked", ["masks/1.png", "captions/0.txt", "config.yaml"])
def test_where_another_file_is_in_the_way_of_one_nothing_is_written(photos, base, tmp_path, blocked):
    (photos / "0.txt").write_text("a red {subject} in the snow")
    out = tmp_path / "out"
    (out / blocked).parent.mkdir(parents=True)
    (out / blocked).write_text("mine")
    before = names_in(tmp_path)
    found = prepared(photos, base, out)
    with pytest.raises(UserError, match=f"{blocked}: is there already, with another"):
        planned_files(found, out, ["captions", "config"])
    assert names_in(tmp_path) == before
    assert (out / blocked).read_text() == "mine"


def test_the_same_command_writes_over_what_it_wrote(photos, base, tmp_path):
    out = tmp_path / "out"
    (photos / "0.txt").write_text("a red {subject} in the snow")
    first = write_files(planned_files(prepared(photos, base, out), out, ["captions"]))
    assert [path for path in first if path.parent != photos] == [
        out / name for name in ("captions/0.txt", "masks/0.png", "masks/1.png", "masks/2.png", "prepare.html")
    ]
    again = write_files(planned_files(prepared(photos, base, out), out, ["captions"]))
    assert again == [path for path in first if path.parent != photos]


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("afile", "afile is a file; name a folder"),
        ("rex", "training reads photos there"),
        ("rex/out", "training reads photos there"),
        ("rex-masks", "training reads masks there"),
    ],
)
def test_an_out_that_nothing_can_go_to_is_refused_before_the_work(photos, base, tmp_path, capsys, out, told):
    (tmp_path / "afile").write_text("mine")
    before = names_in(tmp_path)
    assert main(["prepare", str(photos), "--base", base, "--out", str(tmp_path / out)]) == 2
    assert told in capsys.readouterr().err
    assert names_in(tmp_path) == before


def test_no_config_is_written_of_no_photo(photos, base, tmp_path, capsys):
    for path in photos.iterdir():
        path.write_bytes(b"no image")
    out = tmp_path / "out"
    command = ["prepare", str(photos), "--base", base, "--class", "dog", "--out", str(out), "--accept", "config"]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "--accept config: no photo can be read" in said.err
    assert "not an image" in said.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("level", "severity", "text"),
    [(0, "error", "its mask is black"), (100, "warning", "its mask has no white"), (255, None, "")],
)
def test_a_mask_that_training_refuses_is_an_error(photos, level, severity, text):
    masks = photos.with_name("rex-masks")
    masks.mkdir()
    for number in range(NUM_PHOTOS):
        Image.new("L", (64, 64), level).save(masks / f"{number}.png")
    found = [one for one in inspect_folder(photos, TOY).photos[0].findings if one.kind == "mask"]
    assert [(one.severity, one.text[: len(text)]) for one in found] == ([] if severity is None else [(severity, text)])


def test_photos_of_one_name_are_told_and_lose_neither_caption_nor_mask(photos, base, tmp_path):
    noise(7).save(photos / "0.jpg")
    found = prepared(photos, base, tmp_path / "out")
    (shared,) = [one for one in found.inspection.findings if one.kind == "same name"]
    assert shared.photos == ("0.jpg", "0.png")
    folder = found.inspection.folder
    captions = write_files(caption_files(found.captions, folder, tmp_path / "out"))
    assert {path.name for path in captions} == {"0.jpg.txt", "0.png.txt", "1.txt", "2.txt"}
    assert sort_files(photos).captions == sorted(captions)
    with pytest.raises(UserError, match=r"--accept masks: 0\.jpg and 0\.png would share a mask"):
        mask_files(found.inspection)
    assert len({file.path for file in proposed_mask_files(found.inspection, tmp_path)}) == NUM_PHOTOS + 1


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("rex", "rex"),
        ("my dog.v2", "my dog.v2"),
        ("rex 10:30", "rex 10-30"),
        ("Rex?", "Rex"),
        ("con", "run-con"),
        ("???", "run"),
        ("é" * 120, "é" * 100),
    ],
)
def test_a_run_gets_a_name_that_every_system_takes(folder, name, config_file):
    assert run_name(folder) == name
    assert load_config(config_file, [f"run.name={name}"]).run.name == name


def test_a_photo_folder_that_no_run_can_be_named_after_gets_its_findings(photos, base, capsys):
    named = photos.rename(photos.with_name("rex 10:30"))
    assert main(["prepare", str(named), "--base", base, "--class", "dog"]) == 0
    assert "name: rex 10-30 " in capsys.readouterr().out


def test_words_are_drawn_only_where_something_compares_images(photos, base, capsys):
    for path in photos.iterdir():
        path.write_bytes(b"no image")
    assert main(["prepare", str(photos), "--base", base, "--class", "dog", "--draw-words"]) == 2
    said = capsys.readouterr()
    assert "no DINO or CLIP is here" in said.err
    assert not said.out, "it is checked before the photos are looked at"


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_model_gives_the_masks_and_captions_that_are_missing(photos, base, tmp_path, has_folder):
    masks = photos.with_name("rex-masks")
    if has_folder:
        masks.mkdir()
        in_the_middle(noise(0)).save(masks / "0.png")
    (photos / "1.txt").write_text("a {subject} in the snow")
    found = prepared(photos, base, tmp_path / "out")
    assert not found.inspection.num["error"]
    proposed = [photo.path.name for photo in found.inspection.proposed_masks]
    assert proposed == (["1.png", "2.png"] if has_folder else ["0.png", "1.png", "2.png"])
    assert "data.mask" not in found.draft, "some lie nowhere yet"
    assert [caption.proposed for caption in found.captions if caption.path.name != "1.png"] == [
        "{subject} on the moon"
    ] * 2
    write_files(planned_files(found, tmp_path / "out", ["masks", "captions"]))
    assert all(mask_of(path, str(masks)).getbbox() == (16, 16, 48, 48) for path in found.inspection.folder.images)
    again = prepared(photos, base, tmp_path / "out")
    assert again.draft["data.mask"][0] == str(masks)
    assert again.draft["data.captions"][0]


def test_a_model_that_nothing_is_left_for_is_not_loaded(photos, base, capsys):
    masks = photos.with_name("rex-masks")
    masks.mkdir()
    for number in range(NUM_PHOTOS):
        in_the_middle(noise(0)).save(masks / f"{number}.png")
        (photos / f"{number}.txt").write_text("{subject} in the snow at night")
    models = ["--mask-model", "nowhere/such", "--caption-model", "nowhere/such"]
    assert main(["prepare", str(photos), "--base", base, *models]) == 0
    said = capsys.readouterr().out
    assert f"--mask-model: not asked: {masks} has a mask of each photo" in said
    assert "--caption-model: not asked for captions: each photo has one" in said


def test_a_speck_of_a_mask_counts_nothing():
    mask = Image.new("L", (400, 400))
    mask.paste(255, (180, 180, 240, 240))
    sound = subject_box(mask)
    assert sound == mask.getbbox()
    mask.paste(255, (0, 0, 4, 4))
    assert subject_box(mask) == sound
    photo = Photo(Path("a.png"), noise(0, (400, 400)), ImageInfo(Path("a.png"), (400, 400), 1, np.zeros(3)), mask)
    kinds = {one.kind for one in photo_findings(photo, TOY)}
    assert "far away" in kinds
    assert "cut off" not in kinds
    mask.paste(255, (0, 0, 40, 40))
    assert subject_box(mask) == (0, 0, 240, 240), "a second part is none"


@pytest.mark.parametrize("memory", ["inf", "nan", "1e300", "-1"])
@pytest.mark.parametrize("command", ["prepare", "new", "plan"])
def test_a_memory_that_is_no_size_is_told_in_a_line(command, memory, photos, config_file, capsys):
    arguments = [str(config_file)] if command == "plan" else [str(photos), "--class", "dog"]
    assert main([command, *arguments, "--memory", memory]) == 2
    assert f"error: --memory: {float(memory)} is " in capsys.readouterr().err


def test_a_name_that_is_not_utf8_is_told_before_anything_is_written(photos, base, tmp_path, capsys):
    try:
        os.rename(photos / "0.png", os.fsencode(photos) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    out = tmp_path / "out"
    assert main(["prepare", str(photos), "--base", base, "--out", str(out)]) == 2
    assert "\\udcff.png: the name is not UTF-8; rename it" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("num_copies", "text"),
    [(2, "00.png and 01.png are"), (3, "00.png, 01.png and 02.png are"), (30, "05.png and 24 more are")],
)
def test_copies_of_one_photo_are_one_finding(num_copies: int, text: str) -> None:
    colours = np.zeros((16, 16, 3), np.float32)
    infos = [ImageInfo(Path(f"{number:02}.png"), (64, 64), 1, colours) for number in range(num_copies)]
    infos += [ImageInfo(Path(name), (64, 64), 1, colours + 200) for name in ("x.png", "y.png")]
    one, other = duplicates([Photo(info.path, noise(0), info) for info in infos])
    assert one.number == num_copies
    assert f"{text} (nearly) the same photo" in one.text
    assert other.photos == ("x.png", "y.png")


def test_no_word_is_proposed_that_people_know():
    words = {token.word for token in rank_tokens(load_text_sides("someone/else", "sd"), "dog", number=10**6)}
    assert len(words) > 100
    assert not words & {"fck", "sht", "kkk", "dbz", "hmv", "rps", "hgtv", "ssh", "sks", "bbc"}


def test_a_caption_beside_an_own_one_is_said_to_count_once_it_is_moved(photos, base, tmp_path, capsys):
    (photos / "0.png.txt").write_text("a red {subject} in the snow")
    out = tmp_path / "out"
    command = ["prepare", str(photos), "--base", base, "--class", "dog", "--identifier", "zwx", "--out", str(out)]
    assert main([*command, "--accept", "captions"]) == 0
    said = capsys.readouterr().out
    assert f"{out}/captions/0.png.txt: caption; to train with it, move it to {photos}/0.png.txt" in said
    page = (out / "prepare.html").read_text()
    assert f"go to <code>{out}/captions</code>: to train with them, move them over the photos' own" in page


def test_the_page_repeats_what_it_was_made_with(photos, base, tmp_path):
    masks = tmp_path / "my-masks"
    masks.mkdir()
    for number in range(NUM_PHOTOS):
        Image.new("L", (64, 64), 0).save(masks / f"{number}.png")
    request = Request(photos, base, "dog", "zwx", str(masks), tmp_path / "out" / "config.yaml", mask_model="a/b")
    page = render(prepare(request))
    assert f"--class dog --identifier zwx --masks {masks} --mask-model a/b" in page
    assert "Its mask is black" in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dark: 99 of 100", "Dark: 99 of 100"),
        ("black.jpg and b.jpg are one", "black.jpg and b.jpg are one"),
        ("black and b are one", "black and b are one"),
        ("data.mask=alpha lets it count less", "data.mask=alpha lets it count less"),
    ],
)
def test_a_file_or_a_key_gets_no_capital(text, shown):
    assert sentence(text, ("black", "b")) == shown


@pytest.mark.parametrize(
    ("masks", "text", "advice"),
    [
        ({}, "has no mask in ", "add it, or move that folder to train without masks"),
        ({"0.png": (64, 64), "0.bmp": (64, 64)}, "has 2 masks in ", "leave one of them there"),
        ({"0.png": (8, 8)}, "8x8 pixels", ""),
        ({"0.png": (32, 32)}, "32x32 pixels; 0.png has 64x64", "mend that mask, or take another one"),
    ],
    ids=("none", "two", "tiny", "size"),
)
def test_what_is_wrong_with_a_mask_says_what_to_do(photos, masks, text, advice):
    folder = photos.with_name("rex-masks")
    folder.mkdir()
    for name, size in masks.items():
        Image.new("L", size, 255).save(folder / name)
    (found,) = [one for one in inspect_folder(photos, TOY).photos[0].findings if one.kind == "mask"]
    assert found.severity == "error"
    assert text in found.text
    assert advice in found.advice
    assert "data.mask" not in f"{found.text}{found.advice}", "nobody has set it"


def test_a_class_that_a_mask_model_does_not_know_is_one_of_the_option(photos, base, capsys):
    command = ["prepare", str(photos), "--base", base, "--class", "dragonfly"]
    assert main([*command, "--mask-model", "checkpoints/toyworld-segmenter"]) == 2
    assert "error: --class dragonfly: checkpoints/toyworld-segmenter has no label of it" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_a_tiny_photo_in_bars_is_plain():
    image = Image.new("RGB", (16, 16))
    image.paste(noise(0, (16, 4)), (0, 6))
    found = photo_findings(Photo(Path("a.png"), image, ImageInfo(Path("a.png"), (16, 16), 1, np.zeros(3))), TOY)
    assert "bars" in {one.kind for one in found}
    assert math.isfinite(measures.blur(image.crop((0, 6, 16, 10))))
    assert measures.blur(image.crop((0, 6, 16, 7))) == 0


def test_the_first_line_counts_captions_apart_as_the_exit_code_does(photos, base, capsys):
    for number in range(NUM_PHOTOS):
        (photos / f"{number}.txt").write_text("asleep on the couch")
    assert main(["prepare", str(photos), "--base", base, "--class", "dog"]) == 0
    assert "; captions: 3 errors" in capsys.readouterr().out.splitlines()[0]


def test_an_identifier_of_several_tokens_is_warned_of(photos, base, capsys):
    assert main(["prepare", str(photos), "--base", base, "--class", "dog", "--identifier", "two words"]) == 0
    assert "--identifier 'two words' is 2 tokens" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_named_and_no_temporary_one(photos, base, tmp_path):
    name = "x" * 247  # so that the temporary name is too long, and its own is not
    (photos / "0.png").rename(photos / f"{name}.png")
    found = prepared(photos, base, tmp_path / "out")
    files = caption_files(found.captions, found.inspection.folder, tmp_path / "out")
    with pytest.raises(UserError) as error:
        write_files(files)
    assert f"{photos}/{name}.txt: cannot be written to" in str(error.value)
