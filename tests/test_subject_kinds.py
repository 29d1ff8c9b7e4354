"""A style and a data set: learned from captions without a class noun, and scored by what applies to them."""

import shutil
from pathlib import Path

import pytest

from dreambooth import build
from dreambooth.build.prompts import texts_of
from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.generation.request import read_recipe
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.run.folder import RunFolder
from dreambooth.subject_info import read_card

ENCODER = Path(__file__).parent.parent / "checkpoints" / "toyworld-encoders" / "clip"
QUICK = ["train.max_steps=2", "validate.every_steps=2", "optim.warmup_steps=0", "prior.source=none", "method.name=lora"]
QUICK += [f"validate.clip={ENCODER}", "validate.num_images=1", "method.rank=2"]


@pytest.fixture
def captioned(pictures: Path, tmp_path: Path) -> Path:
    """Return a folder of images with captions that name nothing new."""
    folder = shutil.copytree(pictures, tmp_path / "captioned")
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        path.with_suffix(".txt").write_text(f"a drawing of a house, number {number}")
    return folder


def written(config_file: Path, images: Path, kind: str, **own: str) -> Path:
    """Return a config file of a kind, without a class noun."""
    text = config_file.read_text()
    start, end = text.index("subject:"), text.index("data:")
    keys = ", ".join(f"{key}: {value}" for key, value in {"images": images, "kind": kind, **own}.items())
    path = config_file.with_name(f"{kind}.yaml")
    path.write_text(f"{text[:start]}subject: {{{keys}}}\n{text[end:]}")
    return path


def test_a_style_is_named_by_its_identifier_alone(config_file: Path, pictures: Path, tmp_path: Path) -> None:
    prompt = '"a picture in the style of {subject}"'
    asked = 'validate.prompts=["a house in the style of {subject}", "a house"]'
    config = load_config(written(config_file, pictures, "style", prompt=prompt), [*QUICK, asked])
    assert texts_of(config)[0] == "a picture in the style of sks"
    assert train(config) == 0
    run = RunFolder(config)
    first = ValidationLog(run.scores).entries[0]
    assert {"clip_i", "clip_t"} <= first.scores.keys(), "likeness to the style's images, and to the prompt"
    assert first.quality is None, "there is no class that could be kept"
    assert read_card(run.model).step == 2
    command = ["sample", str(run.path), "a dog in the style of {subject}", "--steps", "1", "--num-images", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    recipe = read_recipe(next((tmp_path / "out").glob("*.png")))
    assert recipe["prompt"] == "a dog in the style of sks"


def test_a_data_set_is_learned_as_its_captions_say(
    config_file: Path, captioned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["data.captions=true", "validate.prompts=[a drawing of a house]"]
    config = load_config(written(config_file, captioned, "dataset"), [*QUICK, *asked])
    data = build.load_subject_data(config)
    assert data.captions[0][1] == "a drawing of a house, number 1"
    assert train(config) == 0
    run = RunFolder(config)
    assert {"clip_i", "clip_t"} <= ValidationLog(run.scores).entries[-1].scores.keys()
    assert load_config(run.config).subjects[0].kind == "dataset", "a run goes on from its own config"
    assert main(["export", str(run.path), "--format", "lora"]) == 0
    card = (run.path / "exports" / "lora" / "README.md").read_text()
    assert "# run" in card
    assert "A prompt reads like `a drawing of a house`." in card
    capsys.readouterr()
    assert main(["sample", str(run.path), "a photo of {subject}"]) == 2
    assert "has learned no subject" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "own", "overrides", "message"),
    [
        ("style", {"class_noun": "painting"}, [], "subject.class_noun: 'painting', but a style has no class"),
        ("style", {}, ["prior.source=stream"], "prior.source: stream, but subject.kind is style"),
        ("style", {}, ['validate.prompts=["a {class}"]'], "validate.prompts: 'a {class}': a style has no {class}"),
        ("style", {}, ["method.name=pivotal"], "method.start_word: required for a style"),
        ("dataset", {}, [], "data.captions: false, but a dataset is learned from its captions"),
        ("dataset", {"identifier": "sks"}, [], "subject.identifier: 'sks', but a dataset has no name"),
        ("dataset", {}, ["method.name=textual_inversion"], "trains an identifier, and a dataset has none"),
        ("dataset", {}, ['validate.prompts=["a {subject}"]'], "a dataset has no {subject}"),
        ("painting", {}, [], "subject.kind: 'painting' is not allowed"),
    ],
)
def test_what_a_kind_has_not_is_refused_by_name(
    kind: str, own: dict[str, str], overrides: list[str], message: str, config_file: Path, pictures: Path
) -> None:
    plain = ["prior.source=none", "method.name=lora", "validate.prompts=[a house]"]
    with pytest.raises(UserError) as caught:
        load_config(written(config_file, pictures, kind, **own), [*plain, *overrides])
    assert message in str(caught.value)


def test_a_subject_still_needs_its_class_noun(config_file: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match=r"subject\.class_noun: required"):
        load_config(written(config_file, pictures, "subject"))
