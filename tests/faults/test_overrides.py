"""Going on with other settings or pictures: refused with what differs, or taken on purpose."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from dreambooth.checkpointing import find_state, manifest_path
from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.data.image_folder import list_images
from dreambooth.data.images import digest_files
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.run.fingerprints import digests, joined_digest
from dreambooth.run.folder import RunFolder

ROOT = Path(__file__).parents[2]
SHORT = ("optim.warmup_steps=0", "optim.schedule=constant", "validate.every_steps=0", "prior.source=none")
FIRST, LONGER = (*SHORT, "train.max_steps=2"), (*SHORT, "train.max_steps=4")


def rates(run: RunFolder) -> list[float]:
    with open(run.metrics, encoding="utf-8") as file:
        return [float(row["optim/lr"]) for row in csv.DictReader(file)]


def everything(run: RunFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_a_learning_rate_changed_on_purpose_is_taken_and_told(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(load_config(config_file, FIRST))
    changed = load_config(config_file, [*LONGER, "optim.lr=5e-4", "optim.weight_decay=0.1", "optim.beta1=0.8"])
    run = RunFolder(changed)
    before = everything(run)
    keys = ("optim.lr", "optim.weight_decay", "optim.beta1")
    with pytest.raises(UserError, match=r"--override optim\.lr --override optim\.w"):
        train(changed)
    with pytest.raises(UserError, match=r"(?s)settings.*optim\.beta1: 0\.9 -> 0\.8$"):
        train(changed, accepted_changes=keys[:2])
    assert everything(run) == before
    assert train(changed, accepted_changes=keys) == 0
    assert rates(run) == [1e-3, 1e-3, 5e-4, 5e-4]
    (group, *_) = torch.load(run.state)["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], group["betas"][0]) == (0.1, 0.8)
    saved = yaml.safe_load(run.config.read_text())
    assert saved["optim"]["lr"] == 5e-4
    assert saved["provenance"]["overridden"][0] == "step 2: optim.lr: 0.001 -> 0.0005"
    # From now on it is the run's: nothing has to be said again, and what was said stays.
    assert train(load_config(run.config, ["train.max_steps=5"])) == 0
    assert rates(run)[4:] == [5e-4]
    assert len(yaml.safe_load(run.config.read_text())["provenance"]["overridden"]) == 3


def test_a_number_format_changed_on_purpose_is_taken(config_file: Path) -> None:
    """One reaches for it when numbers went non-finite."""
    train(load_config(config_file, FIRST))
    changed = load_config(config_file, [*LONGER, "train.precision=bf16-mixed", "train.batch_size=1"])
    assert train(changed, accepted_changes=("train.precision", "train.batch_size")) == 0
    assert find_state(RunFolder(changed).state).step == 4


@pytest.mark.parametrize(
    "setting", ["method.rank=8", "optim.name=adamw8bit", "method.name=lora", "data.resolution=72", "model.family=sdxl"]
)
def test_what_saved_weights_do_not_fit_is_refused_whatever_one_says(config_file: Path, setting: str) -> None:
    key = setting.split("=")[0]
    train(load_config(config_file, FIRST))
    changed = load_config(config_file, [*LONGER, setting])
    before = everything(RunFolder(changed))
    with pytest.raises(UserError, match=rf"--override {key}: not possible") as caught:
        train(changed, accepted_changes=(key,))
    assert "run.resume=never" in str(caught.value)
    with pytest.raises(UserError, match=rf"other settings.*\n  {key}: ") as caught:
        train(changed)
    assert "--override" not in str(caught.value), "it proposes what it then refuses"
    assert everything(RunFolder(changed)) == before


def test_an_encoder_that_the_run_did_not_have_is_refused_whatever_one_says(config_file: Path) -> None:
    """Its scores would be measured against anchors of another one."""
    train(load_config(config_file, FIRST))
    changed = load_config(config_file, [*LONGER, f"validate.dino={ROOT / 'checkpoints' / 'toyworld-encoders' / 'vit'}"])
    before = everything(RunFolder(changed))
    with pytest.raises(UserError, match=r"other settings.*\n  validate\.dino: None -> ") as caught:
        train(changed, accepted_changes=("validate.dino",))
    assert "--override" not in str(caught.value), "it proposes what it then refuses"
    assert everything(RunFolder(changed)) == before


def test_the_command_takes_it_by_key_and_knows_an_unknown_one(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config_file), *FIRST]) == 0
    again = ["train", str(config_file), *LONGER, "optim.lr=5e-4"]
    assert main([*again, "--override", "optim.rate"]) == 2
    assert "--override optim.rate: unknown key" in capsys.readouterr().err
    assert main([*again, "--override", "optim.lr"]) == 0


@pytest.fixture
def mine(config_file: Path, tmp_path: Path) -> Path:
    """A folder of three pictures, a, b and c, with which a run of two steps was trained."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, colour in (("a", "teal"), ("b", "navy"), ("c", "olive")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
    train(load_config(config_file, [*FIRST, f"subject.images={folder}"]))
    return folder


def test_other_pictures_are_refused_with_the_list_or_taken_on_purpose(config_file: Path, mine: Path) -> None:
    Image.new("RGB", (64, 64), "plum").save(mine / "b.png")
    (mine / "c.png").rename(mine / "d.png")
    longer = load_config(config_file, [*LONGER, f"subject.images={mine}"])
    before = everything(RunFolder(longer))
    listed = r"subject pictures: gone: c\.png; new: d\.png; other content: b\.png .*\(--override subject\.images\)"
    with pytest.raises(UserError, match=listed):
        train(longer)
    assert everything(RunFolder(longer)) == before
    assert train(longer, accepted_changes=("subject.images",)) == 0
    told = yaml.safe_load(RunFolder(longer).config.read_text())["provenance"]["overridden"]
    assert told == ["step 2: subject pictures: gone: c.png; new: d.png; other content: b.png"]
    assert train(load_config(config_file, [*SHORT, "train.max_steps=5", f"subject.images={mine}"])) == 0


def test_a_state_with_one_digest_for_all_pictures_still_tells_whether_they_changed(
    config_file: Path, mine: Path
) -> None:
    """As earlier versions wrote it."""
    assert joined_digest(digests(list_images(mine))) == digest_files(list_images(mine))
    longer = load_config(config_file, [*LONGER, f"subject.images={mine}"])
    manifest = manifest_path(RunFolder(longer).state)
    entries = yaml.safe_load(manifest.read_text())
    for entry in entries:
        del entry["seal"]
        entry["identity"]["subject pictures"] = digest_files(list_images(mine))
    manifest.write_text(str(entries).replace("'", '"'))
    assert train(longer) == 0
    for entry in entries:
        entry["identity"]["subject pictures"] = "0" * 64
        entry["sha256"] = find_state(RunFolder(longer).state).sha256
    manifest.write_text(str(entries).replace("'", '"'))
    with pytest.raises(UserError, match="subject pictures: changed"):
        train(load_config(config_file, [*SHORT, "train.max_steps=5", f"subject.images={mine}"]))
