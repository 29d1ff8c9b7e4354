"""Captions: where they are found, what becomes of them, and that each sample is trained with its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreambooth.build.subjects import folder_notes
from dreambooth.config import SubjectConfig, load_config
from dreambooth.data.captions import Captions, read_captions, without_subjects
from dreambooth.data.image_folder import list_images, open_folder
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.randomness import Randomness
from dreambooth.run.folder import RunFolder


@pytest.fixture
def captioned(pictures: Path, tmp_path: Path) -> Path:
    """Three pictures, two with a text beside them, the third in the folder's list."""
    folder = tmp_path / "captioned"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "0.txt").write_text("a photo of {subject} on the beach\n")
    (folder / "1.txt").write_text("sks dog, at night,\n  in the snow")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "2.png", "text": "{subject}"}) + "\n")
    return folder


def captions_in(path: Path) -> list[str]:
    folder = open_folder(path)
    return read_captions(folder.images, folder.captions)


def test_captions_lie_beside_the_pictures_or_in_the_folders_list(captioned: Path) -> None:
    folder = open_folder(captioned)
    assert [path.name for path in folder.images] == ["0.png", "1.png", "2.png"]
    assert read_captions(folder.images, folder.captions) == [
        "a photo of {subject} on the beach",
        "sks dog, at night, in the snow",
        "{subject}",
    ]


def test_pictures_without_a_caption_are_named(captioned: Path) -> None:
    (captioned / "0.txt").unlink()
    (captioned / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"no caption for 0\.png, 2\.png; write a \.txt"):
        captions_in(captioned)


@pytest.mark.parametrize("broken", ['{"file": 3}', '{"file_name": "0.png", "text": null}', "[]", "{"])
def test_a_broken_list_is_told_with_its_line(captioned: Path, broken: str) -> None:
    (captioned / "metadata.jsonl").write_text(f'{{"file_name": "2.png", "text": "{{subject}}"}}\n{broken}\n')
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 2: expected"):
        captions_in(captioned)


def test_captions_are_read_as_editors_save_them(captioned: Path) -> None:
    (captioned / "0.txt").unlink()
    (captioned / "1.txt").unlink()
    (captioned / "0.TXT").write_bytes("\ufeffa photo of {subject}\r\nat night\r\n".encode())
    (captioned / "1.caption").write_text("{subject} asleep", encoding="utf-8")
    entry = json.dumps({"file_name": "2.png", "text": "{subject}\u2028by a lake\x85"}, ensure_ascii=False)
    (captioned / "metadata.jsonl").write_bytes(f"\ufeff{entry}\r\n\r\n  \n".encode())
    assert captions_in(captioned) == [
        "a photo of {subject} at night",
        "{subject} asleep",
        "{subject}\u2028by a lake\x85",
    ]


def test_of_several_captions_of_an_image_the_txt_is_read_and_the_other_is_told(captioned: Path) -> None:
    (captioned / "0.caption").write_text("{subject} asleep")
    (captioned / "0.png.txt").write_text("{subject} with the whole file name")
    assert captions_in(captioned)[0] == "{subject} with the whole file name"
    notes = list(folder_notes(open_folder(captioned), reads_captions=True))
    assert notes == [f"{captioned}: captions that are not read, as the image has another one: 0.caption, 0.txt"]


@pytest.mark.parametrize("name", ["0.txt", "metadata.jsonl"])
@pytest.mark.parametrize(("encoding", "reason"), [("latin-1", "byte 0xe9 in line 2"), ("utf-16", "it is UTF-16")])
def test_a_file_that_is_not_utf_8_is_named_in_one_line(captioned: Path, name: str, encoding: str, reason: str) -> None:
    (captioned / name).write_bytes("\n{subject} in a caf\u00e9".encode(encoding))
    with pytest.raises(UserError) as error:
        captions_in(captioned)
    assert str(error.value) == f"{captioned / name}: not a text in UTF-8 ({reason}); save it as UTF-8"


@pytest.mark.parametrize("name", ["0.txt", "0.TXT", "0.caption", "metadata.jsonl"])
def test_captions_that_are_not_read_get_a_word(pictures: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "captioned"
    shutil.copytree(pictures, folder)
    assert list(folder_notes(open_folder(folder), reads_captions=False)) == []
    (folder / name).write_text("a photo of {subject}")
    (note,) = folder_notes(open_folder(folder), reads_captions=False)
    assert note == f"{folder}: captions that are not read: {name}; set data.captions=true to train with them"


def test_a_text_that_belongs_to_no_picture_is_still_told(captioned: Path) -> None:
    (captioned / "notes.txt").write_text("not a caption")
    with pytest.raises(UserError, match=r"notes\.txt"):
        list_images(captioned)


def test_without_the_subject_a_caption_is_of_any_other_of_the_class() -> None:
    subjects = [
        SubjectConfig(identifier="sks", class_noun="dog"),
        SubjectConfig(identifier="olis", class_noun="cat"),
    ]
    assert without_subjects("a photo of sks dog, at night", subjects) == "a photo of dog, at night"
    assert without_subjects("a photo of sks dog and olis cat", subjects) == "a photo of dog and cat"
    assert without_subjects("SKS dog asks for sks1, a dog's toy", subjects) == "dog asks for 1, a dog's toy"
    assert without_subjects("a photo of sks on the beach", subjects) == "a photo of dog on the beach"


def test_dropout_and_shuffling_are_functions_of_the_place() -> None:
    captions = Captions(["a, b, c, d"], Randomness(0), dropout=0.25, shuffle=True)
    said = [captions(0, place) for place in range(400)]
    assert said == [captions(0, place) for place in range(400)]
    assert 0.18 < said.count("") / 400 < 0.32
    kept = {text for text in said if text}
    assert len(kept) == 6, "all orders of b, c and d"
    assert all(text.startswith("a,") and sorted(text.split(", ")) == ["a", "b", "c", "d"] for text in kept)
    assert {Captions(["a, b"], Randomness(0))(0, place) for place in range(9)} == {"a, b"}


def run_with(config_file: Path, name: str, *overrides: str) -> tuple[RunFolder, list[str]]:
    quick = ["validate.every_steps=0", "train.max_steps=3", f"run.name={name}", "optim.warmup_steps=0"]
    config = load_config(config_file, [*quick, *overrides])
    assert train(config) == 0
    run = RunFolder(config)
    header, *lines = run.metrics.read_text().splitlines()
    column = header.split(",").index("train/loss_instance")
    return run, [line.split(",")[column] for line in lines]


def test_captions_that_all_say_the_runs_prompt_change_nothing(config_file: Path, captioned: Path) -> None:
    for path in list_images(captioned):
        path.with_suffix(".txt").write_text("a photo of {subject}")
    plain = run_with(config_file, "plain", f"subject.images={captioned}", "prior.source=none")[1]
    captions = run_with(config_file, "said", f"subject.images={captioned}", "prior.source=none", "data.captions=true")[
        1
    ]
    assert captions == plain
    for path in list_images(captioned):
        path.with_suffix(".txt").write_text("a photo of {subject} on the moon")
    other = run_with(config_file, "moon", f"subject.images={captioned}", "prior.source=none", "data.captions=true")[1]
    assert other != plain


def test_class_pictures_are_made_of_the_captions_without_the_identifier(config_file: Path, captioned: Path) -> None:
    """Picture i of the caption i: with one caption for all they would be others."""
    changes = (f"subject.images={captioned}", "prior.num_images=2", "prior.batch_size=2", "data.captions=true")
    first = run_with(config_file, "first", *changes)[0]
    (captioned / "1.txt").write_text("a photo of {subject} on the moon")
    second = run_with(config_file, "second", *changes)[0]
    one, two = (load_file(next(run.prior.rglob("*.safetensors")))["latents"] for run in (first, second))
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[1], two[1])


def test_a_caption_that_is_not_of_the_subject_is_refused(config_file: Path, captioned: Path) -> None:
    (captioned / "0.txt").write_text("a photo of something else")
    with pytest.raises(UserError, match=r"0\.png: its caption 'a photo of something else' has neither"):
        run_with(config_file, "refused", f"subject.images={captioned}", "data.captions=true")


def test_an_identifier_inside_another_word_is_not_the_subject(config_file: Path, captioned: Path) -> None:
    (captioned / "0.txt").write_text("a photo of tasks")
    with pytest.raises(UserError, match=r"0\.png: its caption 'a photo of tasks' has neither"):
        run_with(config_file, "refused", f"subject.images={captioned}", "data.captions=true")


def test_a_misspelt_field_in_a_caption_is_named_with_its_image(config_file: Path, captioned: Path) -> None:
    (captioned / "0.txt").write_text("a photo of {subjct}")
    with pytest.raises(UserError, match=r"0\.png: its caption .*\{subjct\} is unknown; did you mean \{subject\}\?"):
        run_with(config_file, "refused", f"subject.images={captioned}", "data.captions=true")


def test_changed_captions_are_refused_in_a_run_that_goes_on(config_file: Path, captioned: Path) -> None:
    run_with(config_file, "run", f"subject.images={captioned}", "data.captions=true")
    (captioned / "0.txt").write_text("a photo of {subject} on the moon")
    with pytest.raises(UserError, match=r"captions: changed .since this run was started"):
        run_with(config_file, "run", f"subject.images={captioned}", "data.captions=true", "train.max_steps=5")


def test_a_frozen_text_encoder_sees_every_prompt_once_and_to_the_same_end(config_file: Path, captioned: Path) -> None:
    changes = (f"subject.images={captioned}", "data.captions=true", "data.caption_dropout=0.3")
    frozen = run_with(config_file, "frozen", *changes, "method.train_text_encoder=false")[1]
    still = run_with(config_file, "still", *changes, "optim.text_encoder_lr=1.0e-30")[1]
    assert [float(loss) for loss in frozen] == pytest.approx([float(loss) for loss in still], rel=1e-2)
