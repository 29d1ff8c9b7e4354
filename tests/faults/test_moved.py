"""A run goes on wherever it, its base, its encoders and its images have gone: identity is content, not a path."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from dreambooth.checkpointing import FoundState, StateEntry
from dreambooth.config import Change, Config, load_config
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.run.fingerprints import LOCATIONS, fingerprint_names
from dreambooth.run.folder import RunFolder
from dreambooth.run.resume import is_moved

ENCODER = Path(__file__).parents[2] / "checkpoints" / "toyworld-encoders" / "vit"
SHORT = ("optim.warmup_steps=0", "optim.schedule=constant", "prior.source=none", "validate.every_steps=2")


@pytest.fixture
def home(config_file: Path, tiny_base: Path, pictures: Path, tmp_path: Path) -> Path:
    """A folder with all that a run needs and the run in it, two steps long."""
    folder = tmp_path / "here"
    for source, name in ((tiny_base, "base"), (pictures, "photos"), (ENCODER, "dino")):
        shutil.copytree(source, folder / name)
    train(config_in(folder, config_file, 2))
    return folder


def config_in(folder: Path, config_file: Path, max_steps: int, *more: str) -> Config:
    paths = (f"run.dir={folder}", f"model.base={folder}/base", f"subject.images={folder}/photos")
    return load_config(
        config_file, [*SHORT, *paths, f"validate.dino={folder}/dino", f"train.max_steps={max_steps}", *more]
    )


def weights(config: Config) -> dict[str, torch.Tensor]:
    return dict(torch.load(RunFolder(config).state, weights_only=True)["state_dict"])


def test_moved_to_another_folder_it_goes_on_to_the_same_bits_and_notes_where_things_are(
    home: Path, config_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = tmp_path / "there"
    shutil.copytree(home, there)
    assert train(config_in(home, config_file, 4)) == 0
    shutil.rmtree(home / "dino")
    moved = config_in(there, config_file, 4)
    caplog.clear()
    assert train(moved) == 0
    for key, name in (("model.base", "base"), ("subject.images", "photos"), ("validate.dino", "dino")):
        assert f"{key}: {there}/{name} in place of {home}/{name}; the content is the same" in caplog.text
    stayed = weights(config_in(home, config_file, 4))
    for name, weight in weights(moved).items():
        assert torch.equal(stayed[name], weight), name
    saved = yaml.safe_load(RunFolder(moved).config.read_text())
    assert saved["model"]["base"] == f"{there}/base"
    assert "overridden" not in saved["provenance"]


def test_a_path_spelled_otherwise_is_the_same(home: Path, config_file: Path) -> None:
    spelled = f"model.base={home}/../{home.name}/./base/"
    assert train(config_in(home, config_file, 3, spelled, "validate.every_steps=2")) == 0


def test_another_base_or_encoder_is_refused_wherever_it_lies_and_whatever_one_says(
    home: Path, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, pattern in (("base", "unet/*.safetensors"), ("dino", "*.safetensors")):
        other = tmp_path / "other" / name
        shutil.copytree(home / name, other)
        (path,) = other.glob(pattern)
        content = bytearray(path.read_bytes())
        content[-3] ^= 1  # the last weight's mantissa
        path.write_bytes(content)
    for key, name in (("model.base", "base model"), ("validate.dino", "dino encoder")):
        setting = f"{key}={tmp_path / 'other' / name.split()[0]}"
        for max_steps in (2, 4):  # as much as finished, and longer
            with pytest.raises(UserError, match=f"{name}: changed") as caught:
                train(config_in(home, config_file, max_steps, setting), accepted_changes=(key,))
            assert "--override" not in str(caught.value), "it proposes what it then refuses"
    assert "finished" not in capsys.readouterr().out
    assert train(config_in(home, config_file, 2)) == 0
    assert "finished at step 2" in capsys.readouterr().out


@pytest.mark.parametrize("key", [*LOCATIONS, "subject.images", "subjects[1].images"])
def test_a_path_may_change_only_where_the_state_knows_what_lay_there(key: str) -> None:
    change = Change(key, "here", "there")
    known = StateEntry(2, 1, "0", dict.fromkeys(fingerprint_names(key), "digest"))
    assert is_moved(change, FoundState(Path("last.ckpt"), known))
    assert not is_moved(change, FoundState(Path("last.ckpt"), StateEntry(2, 1, "0"))), "a state of earlier versions"
    if key in ("data.mask", "prior.folder", "method.start", "validate.images", "validate.dino", "validate.clip"):
        assert not is_moved(Change(key, None, "there"), FoundState(Path("last.ckpt"), known)), "none is no path"
    for kind in ("alpha", "auto"):
        assert not is_moved(Change("data.mask", "masks", kind), FoundState(Path("last.ckpt"), known)), "no path either"
    assert not is_moved(Change("optim.lr", 1.0, 2.0), FoundState(Path("last.ckpt"), known))
