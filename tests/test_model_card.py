"""The model card of an export, and its way to the hub: its client's real requests, answered by a local server."""

import ast
import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from conftest import CONFIG
from diffusers import DiffusionPipeline
from hub_answers import Hub, answering
from huggingface_hub import ModelCard
from PIL import Image
from tiny import run_model_card

from dreambooth.cli import main
from dreambooth.exporting.history import History
from dreambooth.exporting.model_card import licence_of, metadata, write
from dreambooth.exporting.tools import ExportedFiles
from dreambooth.families import load_family
from dreambooth.subject_info import ExportCard, LearnedSubject

QUICK = ["train.max_steps=4", "validate.every_steps=4", "method.name=lora", "method.rank=2", "prior.source=none"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> Path:
    """A LoRA of a base that has a model card with a licence."""
    folder = tmp_path_factory.mktemp("card")
    base = shutil.copytree(tiny_base, folder / "base")
    (base / "README.md").write_text("---\nlicense: openrail++\n---\n# A base\n")
    (folder / "config.yaml").write_text(CONFIG.format(runs=folder, base=base, pictures=pictures))
    assert main(["train", str(folder / "config.yaml"), *QUICK]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    assert main(["export", str(run), "--format", "lora"]) == 0
    return run / "exports" / "lora"


# -------------------------------------------------------------------------------- the card


def test_the_card_says_what_it_is_how_it_was_made_and_how_well(exported: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    told = card.data.to_dict()
    assert told["license"] == "openrail++"
    assert told["instance_prompt"] == "a photo of sks dog"
    assert "lora" in told["tags"]
    assert "base_model" not in told, "a folder has no name on the hub"
    rows = {
        line.split("|")[1].strip(" `"): line.split("|")[2].strip() for line in card.text.splitlines() if "|" in line
    }
    assert (rows["method.rank"], rows["optim.lr"], rows["prior.source"]) == ("2", "0.001", "none")
    score = json.loads((exported / "dreambooth.json").read_text())["scores"]["eval/loss"]
    assert rows["eval/loss"] == f"{score:.4f}"
    assert "Step 4 of 4" in card.text


def test_its_picture_is_the_kept_steps_grid_with_the_prompts_of_the_rows(exported: Path, run: Path) -> None:
    text = (exported / "README.md").read_text()
    assert re.search(r"!\[\w+\]\(samples.png\)\s.*1\. a photo of sks dog\n2\. a photo of a dog\n", text, re.DOTALL)
    assert (exported / "samples.png").read_bytes() == (run / "samples" / "step-000004.png").read_bytes()


def test_the_code_in_it_makes_a_picture(exported: Path) -> None:
    """Every format's loading lines are run in test_formats.py; here to the end."""
    made = run_model_card(exported)
    assert isinstance(made["image"], Image.Image)
    assert made["image"].size == (64, 64)


def test_the_code_in_it_loads_the_variant_that_the_base_has(tiny_base: Path, config_file: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    load_family(str(tiny_base)).pipeline().to(dtype=torch.float16).save_pretrained(half, variant="fp16")
    assert main(["train", str(config_file), *QUICK, f"model.base={half}", "model.variant=fp16"]) == 0
    assert main(["export", str(tmp_path / "runs" / "run"), "--format", "lora"]) == 0
    made = run_model_card(tmp_path / "runs" / "run" / "exports" / "lora", end="image =")
    assert isinstance(made["pipeline"], DiffusionPipeline)


def test_whatever_the_prompt_says_the_code_is_sound_and_the_table_whole(tiny_base: Path, tmp_path: Path) -> None:
    prompt = 'a "red|blue"\n{subject}'
    subject = LearnedSubject("sks", "dog", prompt, "a {class}")
    card = ExportCard(
        (subject,), 64, 2, 3.0, 8, base="me/base", base_revision="v2", settings={"subject.prompt": prompt}
    )
    write(tmp_path, ExportedFiles("lora", "run", card), load_family(str(tiny_base)), card, History("run"), None)
    text = (tmp_path / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    constants = [node.value for node in ast.walk(ast.parse(code[1])) if isinstance(node, ast.Constant)]
    assert 'a "red|blue"\nsks dog' in constants
    assert """DiffusionPipeline.from_pretrained("me/base", revision='v2')""" in code[1]
    assert '| `subject.prompt` | a "red\\|blue" {subject} |\n' in text


def test_a_result_that_has_left_its_run_says_that_settings_and_pictures_are_missing(run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    assert main(["export", str(alone), "--format", "lora"]) == 0
    text = (alone / "exports" / "lora" / "README.md").read_text()
    assert "settings were not at hand" in text
    assert "samples.png" not in text
    assert "`eval/loss`" in text


def test_a_base_on_the_hub_is_named_and_its_licence_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = LearnedSubject("sks", "dog", "a photo of {subject}", "a photo of a {class}")
    card = ExportCard((subject,), 64, 2, 3.0, 8, base="maker/base")
    told = metadata("lora", card, licence_of("maker/base")).to_dict()
    assert (told["base_model"], told["base_model_relation"]) == ("maker/base", "adapter")
    assert "license" not in told, "it is not known, so it is not told"
    snapshot = tmp_path / "models--maker--base" / "snapshots" / "0" / "README.md"
    snapshot.parent.mkdir(parents=True)
    snapshot.write_text("---\nlicense: other\nlicense_name: toy-1\nlicense_link: LICENSE\n---\n")
    (tmp_path / "models--maker--base" / "refs").mkdir()
    (tmp_path / "models--maker--base" / "refs" / "main").write_text("0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert licence_of("maker/base") == {"license": "other", "license_name": "toy-1", "license_link": "LICENSE"}


@pytest.mark.parametrize("text", ["", "# no metadata", "---\nlicense: [\n---\n", "---\n- a list\n---\n"])
def test_a_base_whose_card_says_nothing_has_no_known_licence(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert licence_of(str(tmp_path)) == {}


# -------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    with answering(monkeypatch) as handler:
        yield handler


def push(run: Path, *arguments: str) -> int:
    return main(["export", str(run), "--format", "lora", "--push-to-hub", *arguments])


def test_the_hub_receives_the_folder_with_its_card(
    hub: type[Hub], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(run, "me/robot", "--private") == 0
    assert "/me/robot" in capsys.readouterr().out
    received = dict(hub.received)
    created = received["/api/repos/create"]
    assert (created["organization"], created["name"]) == ("me", "robot")
    assert created.get("private") is True or created.get("visibility") == "private"
    operations = received["/api/models/me/robot/commit/main"]
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in operations
        if line["key"] == "file"
    }
    folder = run / "exports" / "lora"
    assert files == {path.name: path.read_bytes() for path in folder.iterdir() if not path.is_symlink()}
    assert files.keys() == {"README.md", "dreambooth.json", f"{run.name}.safetensors", "samples.png"}
    assert 'here = snapshot_download("me/robot")' in files["README.md"].decode()


def test_a_hub_that_refuses_is_told_and_the_export_stays(
    hub: type[Hub], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses = "/api/models/me/robot/commit"
    assert push(run, "me/robot") == 3
    told = capsys.readouterr().err
    assert "error: me/robot: the hub did not take it: " in told
    assert f"hf upload me/robot {run / 'exports' / 'lora'}" in told
    assert (run / "exports" / "lora" / "README.md").is_file()


def test_a_network_that_is_not_there_is_told(
    hub: type[Hub], run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert push(run, "me/robot") == 3
    assert "the hub did not take it" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert push(run, "me/robot") == 3
    assert "offline mode is enabled" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--push-to-hub", "me/ro bot"], 2, "--push-to-hub: 'me/ro bot' is no name of a repository"),
        (["--push-to-hub", "robot"], 2, "--push-to-hub: 'robot' names no owner; write OWNER/NAME"),
        (["--private"], 2, "--private: says how --push-to-hub"),
        (["--push-to-hub", "me/robot"], 3, "me/robot: nobody is logged in to the hub; run `hf auth login`"),
    ],
)
def test_what_the_hub_would_refuse_is_told_before_anything_is_written(
    arguments: list[str],
    code: int,
    named: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    out = tmp_path / "out"
    assert main(["export", str(run), "--format", "lora", "--out", str(out), *arguments]) == code
    assert named in capsys.readouterr().err
    assert not out.exists()
