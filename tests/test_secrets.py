"""What a run, its pictures, its report and its exports tell others: no token, no key, no home folder.

Weights & Biases keeps its own files below logs/wandb: no token is in them, but the path of its folder is. The run's
config.yaml and the cards need to find base and pictures again: they have them with `~` for the home folder, or whole
where they lie elsewhere; a model card, README.md, has the base's name alone.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import CONFIG
from PIL import Image

from dreambooth.cli import main
from dreambooth.config import load_config, to_dict
from dreambooth.home_folder import hide_home, with_home, without_home
from dreambooth.subject_info import read_card

SECRETS = {"HF_TOKEN": "hf_CANARYcanaryCANARYcanaryCANARY01", "WANDB_API_KEY": "c0ffee" * 6 + "c0ff"}
OWNER = "canary-person"
EXPORTS = {"full": ("single-file",), "lora": ("diffusers", "single-file", "lora", "kohya")}


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path, weights_and_biases: None
) -> Iterator[Path]:
    """All that a user does, below a home folder of that name, with secrets in the environment."""
    folder = tmp_path_factory.mktemp("homes") / OWNER
    shutil.copytree(tiny_base, folder / "models" / "base")
    shutil.copytree(pictures, folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SECRETS, "HOME": str(folder)}.items():
            patch.setenv(name, value)
        for method, forms in EXPORTS.items():
            config = folder / f"{method}.yaml"
            config.write_text(
                CONFIG.format(runs=folder / "runs", base=folder / "models" / "base", pictures=folder / "photos")
            )
            overrides = [
                f"run.name={method}", f"method.name={method}", "train.max_steps=2", "validate.every_steps=2",
                "optim.warmup_steps=0", "log.tensorboard=true", f"log.wandb={str(method == 'full').lower()}",
            ]  # fmt: skip
            assert main(["train", str(config), *overrides]) == 0
            run = folder / "runs" / method
            assert (run / "report.html").is_file()
            short = ["--steps", "1", "--num-images", "1"]
            assert main(["sample", str(run), "a {subject}", *short, "--out", str(folder / "made" / method)]) == 0
            for form in forms:
                out = folder / "made" / f"{method}-{form}"
                assert main(["export", str(run), "--format", form, "--out", str(out)]) == 0
        yield folder


def written(home: Path) -> list[Path]:
    return [path for name in ("runs", "made") for path in (home / name).rglob("*") if path.is_file()]


def holding(home: Path, text: str) -> list[str]:
    """Files that have these bytes anywhere, names too."""
    needle = text.encode()
    files = {str(path.relative_to(home)): path.read_bytes() for path in written(home)}
    assert len(files) > 60
    return [name for name, content in files.items() if needle in content or text in name]


def test_no_token_or_key_is_in_any_file(home: Path) -> None:
    for value in SECRETS.values():
        assert holding(home, value) == []


def test_the_home_folder_is_in_no_file(home: Path) -> None:
    found = [name for name in holding(home, OWNER) if "logs/wandb/" not in name]
    assert found == []


def test_a_model_card_has_the_name_of_a_base_and_not_its_place(home: Path) -> None:
    cards = [path for path in written(home) if path.name == "README.md"]
    assert len(cards) == sum(map(len, EXPORTS.values()))
    for card in cards:
        text = card.read_text()
        assert "models/base" not in text, card
        assert "`base`" in text, card


def test_what_is_written_with_a_tilde_is_found_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = home / "runs" / "lora"
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["base"] == "~/models/base"
    assert saved["subject"]["images"] == "~/photos"
    assert load_config(run / "config.yaml").model.base == str(home / "models" / "base")
    card = read_card(run / "model")
    assert card is not None
    assert card.base == "~/models/base"
    assert main(["train", str(run / "config.yaml")]) == 0
    assert "finished at step 2" in capsys.readouterr().out
    (picture,) = (home / "made" / "lora").glob("0*.png")
    assert "~/runs/lora" in Image.open(picture).info["dreambooth"]
    assert main(["sample", "--from-image", str(picture), "--out", str(home / "again")]) == 0


def test_a_path_outside_of_home_stays_and_one_inside_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for path in ("/home/me", "/home/me/a b/c", "/home/merlin/a", "/data/a", "~", "~/a", "me/a", "a/~/b", "~you/a", ""):
        assert with_home(without_home(path)) == with_home(path)
        assert with_home(path).replace("~", "") == with_home(path) or not path.startswith("~/")
    assert without_home("/home/me/a") == "~/a"
    assert without_home("/home/merlin/a") == "/home/merlin/a"
    text = "in /home/me/a, '/home/me' and /home/merlin"
    assert hide_home(text) == "in ~/a, '~' and /home/merlin"


def test_the_name_of_the_home_folder_within_another_path_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/root")
    assert hide_home("/mnt/root/photos and data/root/a, but --out=/root/a") == (
        "/mnt/root/photos and data/root/a, but --out=~/a"
    )
    monkeypatch.setenv("HOME", "/home/anna")
    assert hide_home("/net/home/anna/photos") == "/net/home/anna/photos"
    assert hide_home("file:///home/anna/a.png") == "file://~/a.png"
    for before in ("-I", "\x1b[1m", '"a\\n', "x=", "/usr:"):
        assert hide_home(f"{before}/home/anna/a") == f"{before}~/a"


def test_a_runs_config_is_the_same_whoever_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run: {name: x}\nmodel: {base: ~/b}\nsubject: {images: ~/p, class_noun: dog}\n")
    monkeypatch.setenv("HOME", "/home/one")
    one = load_config(path)
    assert one.model.base == os.path.join("/home/one", "b")
    saved = to_dict(one)
    monkeypatch.setenv("HOME", "/home/two")
    assert to_dict(load_config(path)) == saved
