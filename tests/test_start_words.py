"""The words that an identifier's embedding starts as: named, or chosen from the photos."""

import logging
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from torch import Tensor

from dreambooth.build.start_words import choose_start_words, looks
from dreambooth.config import Config, load_config
from dreambooth.data.image_folder import list_images
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.families import Family, load_family
from dreambooth.methods.base import MethodSettings
from dreambooth.methods.table import METHODS
from dreambooth.metrics.encoders import load_clip
from dreambooth.report import content
from dreambooth.run.folder import RunFolder
from toyworld import world

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "checkpoints" / "toyworld-encoders" / "clip"
QUICK = ["train.max_steps=2", "validate.every_steps=0", "train.save_every_steps=1", "log.tensorboard=false"]


def rows(family: Family, *words: str) -> Tensor:
    """Return the embeddings of words of one token each."""
    weight_VD = cast(Any, family.text_encoders[0]).get_input_embeddings().weight
    return weight_VD[[family.tokenize(word)[0] for word in words]].detach().clone()


def test_an_identifier_of_full_starts_as_the_mean_of_its_words_and_no_other_row_changes(family: Family) -> None:
    before, dog_and_cat = rows(family, "photo", "dog", "cat"), rows(family, "dog", "cat")
    METHODS["full"].attach(family, MethodSettings(words=("sks",), start_words=(("dog", "cat"),)))
    torch.testing.assert_close(rows(family, "sks")[0], dog_and_cat.mean(0))
    assert torch.equal(rows(family, "photo", "dog", "cat"), before)


def test_a_new_word_starts_as_the_mean_of_several(family: Family) -> None:
    dog_and_cat = rows(family, "dog", "cat")
    METHODS["textual_inversion"].attach(family, MethodSettings(words=("<sks>",), start_words=(("dog", "cat"),)))
    start = next(
        value for name, value in family.text_encoders[0].named_parameters() if "trainable_tokens_delta" in name
    )
    torch.testing.assert_close(start[0].detach(), dog_and_cat.mean(0))


def test_an_identifier_of_several_tokens_and_a_word_of_several_are_refused(family: Family) -> None:
    with pytest.raises(UserError, match=r"subject\.identifier: 'dogcatdog' is \d tokens"):
        METHODS["full"].attach(family, MethodSettings(words=("dogcatdog",), start_words=(("dog",),)))
    with pytest.raises(UserError, match=r"method\.start_word: 'dogcatdog' is \d tokens"):
        METHODS["full"].attach(family, MethodSettings(words=("sks",), start_words=(("dogcatdog",),)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.name=lora", "method.start_word=auto"], "method.start_word: lora trains no row"),
        (["method.name=full", "method.start_word=' '"], "method.start_word: ' ' has no word"),
        (
            ["method.name=full", "method.train_text_encoder=false", "method.start_word=red"],
            "method.start_word: set, but",
        ),
        (["method.name=full", "method.start_word=auto", "validate.clip=null"], "auto chooses by validate.clip"),
        (
            ["method.name=pivotal", "subject.kind=style", "prior.source=none", "method.start_word=auto"],
            "auto tells what a subject looks like",
        ),
    ],
)
def test_settings_that_no_word_can_start_are_refused(config_file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(config_file, overrides)


def test_words_that_a_lora_never_read_keep_no_old_config_from_being_opened(config_file: Path) -> None:
    assert load_config(config_file, ["method.name=lora", "method.start_word=dog"]).method.start_word == "dog"


def test_both_text_encoders_of_sdxl_start_the_identifier_as_its_words(tiny_xl_base: Path) -> None:
    family = load_family(str(tiny_xl_base))
    METHODS["full"].attach(family, MethodSettings(words=("sks",), start_words=(("dog", "cat"),)))
    ids = [family.tokenize(word)[0] for word in ("sks", "dog", "cat")]
    for text_encoder in family.text_encoders:
        sks_D, *words = cast(Any, text_encoder).get_input_embeddings().weight[ids].detach()
        torch.testing.assert_close(sks_D, torch.stack(words).mean(0))


@pytest.mark.parametrize(("class_noun", "seed"), [("robot", 21), ("dog", 1)])
def test_clip_sees_the_pattern_and_a_colour_in_the_photos(class_noun: str, seed: int, shipped_base: Path) -> None:
    spec = world.subject(class_noun, seed)
    found = looks(
        load_clip(str(CLIP)), load_family(str(shipped_base)), list_images(ROOT / "data" / class_noun), class_noun
    )
    assert found[0] == spec.pattern
    assert found[1] in (spec.main, spec.second)
    assert len(found) == 2  # no material is a word of the toy world


def toy_config(tmp_path: Path, shipped_base: Path, *overrides: str) -> Config:
    paths = [f"model.base={shipped_base}", f"subject.images={ROOT / 'data' / 'robot'}", f"run.dir={tmp_path}"]
    encoders = [f"validate.clip={CLIP}", "validate.dino=null", "prior.source=none", "data.mask=null"]
    return load_config(ROOT / "configs" / "toyworld.yaml", [*paths, *encoders, *QUICK, *overrides])


def noted_in_config(runs: Path) -> list[str]:
    """Return the start words that the config of the one run has noted."""
    (config,) = runs.glob("*/config.yaml")
    return list(yaml.safe_load(config.read_text())["provenance"].get("start_words", []))


def test_a_run_chooses_once_and_goes_on_with_what_it_has_learned(
    tmp_path: Path, shipped_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    auto = "method.start_word=auto"
    assert train(toy_config(tmp_path, shipped_base, auto, "train.max_steps=1")) == 0
    told = [record.message for record in caplog.records if "starts as" in record.message]
    assert len(told) == 1
    assert "'sks' starts as striped" in told[0]
    noted = noted_in_config(tmp_path)
    assert told[0].startswith(f"'sks' starts as {noted[0].removeprefix('sks: ')} (")
    caplog.clear()
    longer = toy_config(tmp_path, shipped_base, auto, "train.max_steps=2")
    assert train(longer) == 0
    assert not [record for record in caplog.records if "starts as" in record.message]
    assert noted_in_config(tmp_path) == noted
    run = RunFolder(longer)
    assert content.read(run.path).versions["start_words"] == noted[0]
    shutil.rmtree(run.state.parent)
    assert train(toy_config(tmp_path, shipped_base, "method.start_word=null", "train.max_steps=1")) == 0
    assert noted_in_config(tmp_path) == []


def test_words_are_chosen_for_auto_alone(tmp_path: Path, shipped_base: Path, family: Family) -> None:
    assert choose_start_words(toy_config(tmp_path, shipped_base, "method.start_word=red"), family, [[]]) is None


def test_an_identifier_of_several_tokens_stays_as_it_is_and_that_is_told(
    tmp_path: Path, shipped_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(tmp_path, shipped_base, "method.start_word=auto", "subject.identifier=zorgon")
    photos = [list_images(ROOT / "data" / "robot")]
    assert choose_start_words(config, load_family(str(shipped_base)), photos) == ((),)
    assert "'zorgon' is" in caplog.text


def test_a_new_word_that_clip_chose_for_goes_on_although_its_class_noun_is_two_words(
    tmp_path: Path, shipped_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own = ["method.name=textual_inversion", "subject.identifier=<sks>", "optim.identifier_lr=null"]
    own += ["subject.class_noun=toy robot", "method.start_word=auto"]
    assert train(toy_config(tmp_path, shipped_base, *own, "train.max_steps=1")) == 0
    assert "'<sks>' starts as" in caplog.text
    assert train(toy_config(tmp_path, shipped_base, *own, "train.max_steps=2")) == 0
