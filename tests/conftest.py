"""What tests share. Heavy imports stand in the fixtures: pytest-xdist's first process loads this and runs no test."""

import functools
import gc
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # so small a network is fastest on one core, and subprocesses agree
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
sys.path.append(str(Path(__file__).parent / "faults"))

from warm import Warm

from dreambooth.config import Config, load_config

if TYPE_CHECKING:
    from dreambooth.families import Family

ROOT = Path(__file__).parent.parent
pytest_plugins = ["time_limits"]
MEMORY = Path("/dev/shm")  # a file system in memory, on Linux
_num_modules_frozen = 0


def pytest_collection_finish() -> None:
    """Let the garbage collector look less often."""
    gc.set_threshold(10_000, 10, 20)


def pytest_runtest_setup() -> None:
    """Let the garbage collector pass over what imports have made, a million objects that stay: a sixth of the time."""
    global _num_modules_frozen
    if len(sys.modules) > _num_modules_frozen + 100:
        gc.collect()
        gc.freeze()
        _num_modules_frozen = len(sys.modules)


def pytest_configure(config: pytest.Config) -> None:
    """Have a run on all cores write into memory, where there is enough: a training of a second flushes 50 files."""
    is_on_all_cores = bool(getattr(config.option, "numprocesses", None))
    if is_on_all_cores and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**33:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    # caplog sees what the library reports. As pytest's log_level it would be set twelve times a test: 16 ms.
    logging.getLogger().setLevel(logging.INFO)


CONFIG = """
run: {{name: run, dir: {runs}}}
model: {{base: {base}}}
subject: {{images: {pictures}, class_noun: dog}}
data: {{resolution: 64}}
prior: {{num_images: 6, num_inference_steps: 2, scheduler: ddim, batch_size: 2}}
optim: {{lr: 1.0e-3, warmup_steps: 2, schedule: cosine}}
train: {{max_steps: 8, batch_size: 2, save_every_steps: 2, num_threads: 1}}
validate:
  {{every_steps: 4, num_images: 2, num_inference_steps: 2, dino: null, clip: null,
    prompts: ["a photo of {{subject}}", "a photo of a {{class}}"]}}
log: {{tensorboard: false}}
"""


@pytest.fixture(scope="module")
def weights_and_biases() -> Iterator[None]:
    """It keeps the mode and key that a process first used it with: taken down before and after."""
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(scope="session")
def tiny_xl_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import make_tiny_xl_base

    return make_tiny_xl_base(tmp_path_factory.mktemp("base") / "xl")


@pytest.fixture(scope="session")
def flow_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a tiny base of a family of flow matching, by the family's name, once."""
    from tiny_flow import FLOW_BASES

    folder = tmp_path_factory.mktemp("flow")
    return functools.cache(lambda name: FLOW_BASES[name](folder / name))


@pytest.fixture(scope="session")
def tiny_z_image_base(flow_base: Callable[[str], Path]) -> Path:
    return flow_base("z_image")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import make_tiny_base

    return make_tiny_base(tmp_path_factory.mktemp("base") / "epsilon")


@pytest.fixture(scope="session")
def tiny_base_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import make_tiny_base

    return make_tiny_base(tmp_path_factory.mktemp("base") / "v", "v_prediction")


@pytest.fixture(scope="session")
def tiny_blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP-2 of random weights, with what searches and matches in `retrieval`."""
    from tiny import make_blip2

    return make_blip2(tmp_path_factory.mktemp("blip2"))


@pytest.fixture
def family(tiny_base: Path) -> "Family":
    from dreambooth.families import load_family

    return load_family(str(tiny_base))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import make_pictures

    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def config_file(tmp_path: Path, tiny_base: Path, pictures: Path) -> Path:
    """A run of 8 quick steps on the tiny base, with everything that a run has but TensorBoard."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(runs=tmp_path / "runs", base=tiny_base, pictures=pictures))
    return path


@pytest.fixture
def config(config_file: Path) -> Config:
    return load_config(config_file)


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Return what runs commands in processes that need not import anything first."""
    with Warm() as parent:
        yield parent


@pytest.fixture(scope="session")
def shipped_base() -> Path:
    """The embedded base model."""
    folder = ROOT / "checkpoints" / "toyworld"
    assert (folder / "model_index.json").is_file(), f"{folder} is part of this repository"
    return folder


@pytest.fixture
def base(tmp_path: Path) -> str:
    """The configs of a base of 64 pixels without its weights: what a run takes is not found out, which is slow."""
    folder = tmp_path / "base"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text('{"sample_size": 8}')
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return str(folder)
