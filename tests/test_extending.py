"""docs/extending.md shows real diffs: they are applied to a copy of the package, and what they add trains."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONFIG
from diffusers import AutoencoderKL, DDIMScheduler, LDMTextToImagePipeline, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from transformers import BertTokenizer

ROOT = Path(__file__).parent.parent
PAGE = 110  # lines


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, and all diffs applied to it."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "dreambooth", folder / "dreambooth", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    diffs = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    assert len(diffs) == 3
    for diff in diffs:
        assert len(diff.splitlines()) <= PAGE, "more than a page"
        applied = subprocess.run(["git", "apply"], input=diff, cwd=folder, capture_output=True, text=True, check=False)
        assert applied.returncode == 0, f"{applied.stderr}\nof\n{diff}"
    return folder


def make_ldm_base(folder: Path) -> Path:
    """A random model of latent diffusion's first kind, with a vocabulary of a few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "sks", "dog"]
    (folder / "vocab.txt").write_text("\n".join(words))
    shape = {"block_out_channels": (32,) * 4, "norm_num_groups": 8, "latent_channels": 4}
    vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **shape)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        layers_per_block=1,
    )
    bert = LDMBertModel(
        LDMBertConfig(
            vocab_size=len(words),
            encoder_layers=1,
            encoder_ffn_dim=64,
            encoder_attention_heads=2,
            head_dim=16,
            d_model=32,
        )
    )
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    LDMTextToImagePipeline(vae, bert, tokenizer, unet, DDIMScheduler()).save_pretrained(folder / "base")
    return folder / "base"


TRAIN_ALL = """
import json, sys
from dreambooth.cli import main
for arguments in json.loads(sys.argv[1]):
    if main(["train", *arguments]):
        sys.exit(1)
"""


@pytest.fixture(scope="module")
def runs(extended: Path, tiny_base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs with all that was added, trained in one process that imports the extended package."""
    folder = tmp_path_factory.mktemp("runs")
    config_file = folder / "config.yaml"
    config_file.write_text(CONFIG.format(runs=folder, base=tiny_base, pictures=pictures))
    quick = ["train.max_steps=2", "optim.warmup_steps=0", "validate.every_steps=0", "prior.source=none"]
    settings = {
        "none": ["loss.weighting=none", "loss.gamma=1"],
        "p2": ["loss.weighting=p2", "loss.gamma=1"],
        "oft": ["method.name=oft", "method.rank=2"],
        "ldm": [f"model.base={make_ldm_base(folder)}"],
    }
    arguments = [[str(config_file), *quick, f"run.name={name}", *own] for name, own in settings.items()]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_ALL, json.dumps(arguments)],
        cwd=extended, env=os.environ | {"PYTHONPATH": str(extended)}, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_the_diffs_of_the_page_apply(extended: Path) -> None:
    assert (extended / "dreambooth" / "families" / "ldm.py").is_file()


@pytest.mark.slow
def test_the_loss_and_the_method_train_and_do_what_they_say(runs: Path) -> None:
    plain, weighted = ((runs / name / "logs" / "metrics.csv").read_text() for name in ("none", "p2"))
    assert plain != weighted, "p2 weighs nothing"
    assert (runs / "oft" / "model" / "adapter.safetensors").is_file()


@pytest.mark.slow
def test_the_family_is_recognised_and_trains(runs: Path) -> None:
    index = (runs / "ldm" / "model" / "model_index.json").read_text()
    assert "LDMTextToImagePipeline" in index


def test_without_the_diffs_none_of_it_is_there(config_file: Path) -> None:
    """Else the tests above would hold for a page that shows nothing."""
    done = subprocess.run(
        [sys.executable, "train.py", str(config_file), "loss.weighting=p2"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "loss.weighting" in done.stderr
