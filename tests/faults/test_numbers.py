"""Numbers that are not finite: no step of them counts, and those who brought them are named."""

import re
from pathlib import Path

import pytest
import torch
from crashes import spoil_class_picture
from warm import Warm

from dreambooth.checkpointing import find_state
from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.run.folder import RunFolder

SHORT = ("validate.every_steps=0", "train.save_every_steps=2")


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(("optim.name=adamw8bit",), marks=pytest.mark.slow),
        pytest.param(("train.micro_batch_size=1", "data.num_workers=1"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_sample_that_is_not_finite_stops_the_run_before_its_step_and_is_named(
    config_file: Path, more: tuple[str, ...], warm: Warm
) -> None:
    """Class picture 5 comes in step 3, of two class pictures each; the state of step 2 stays."""
    train(load_config(config_file, [*SHORT, *more, "train.max_steps=3", "optim.warmup_steps=2"]))
    run = RunFolder(load_config(config_file))
    spoil_class_picture(run, 5)
    for path in (run.state, run.previous, run.metrics):
        path.unlink(missing_ok=True)
    log = config_file.with_name("log")
    assert warm.run(["train", str(config_file), *SHORT, *more], log) == 4
    said = log.read_text()
    assert re.search(r"step 3: (train/loss|optim/grad_norm) is nan", said), said
    assert re.search(r"samples whose loss is not finite: class image 5 \(timestep \d+\)$", said.strip()), said
    assert "Traceback" not in said
    assert find_state(run.state).step == 2
    assert [line.split(",")[0] for line in run.metrics.read_text().splitlines()] == ["step", "1", "2"]
    saved = torch.load(run.state)
    tensors = [*saved["state_dict"].values(), *(m for s in saved["optimizer_states"][0]["state"].values()
                                                for m in s.values() if isinstance(m, torch.Tensor))]  # fmt: skip
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors)


def test_where_every_sample_is_finite_but_the_gradient_is_not_all_are_named(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explosive = ("optim.lr=1e18", "optim.weight_decay=0", "train.save_every_steps=1", "prior.source=none")
    assert main(["train", str(config_file), *SHORT[:1], *explosive]) == 4
    said = capsys.readouterr().err
    names = re.findall(r"(\d\.png) \(timestep (\d+)\)", said)
    assert len(names) == 2, said
    assert all(0 <= int(t) < 1000 for _, t in names)


def test_a_damaged_class_picture_is_made_again(config_file: Path) -> None:
    """Flipped, torn or empty: the next run finds it out, and makes the same."""
    config = load_config(config_file, [*SHORT, "train.max_steps=3"])
    train(config)
    paths = sorted(RunFolder(config).prior.glob("*/*.safetensors"))
    before = [path.read_bytes() for path in paths]
    assert len(paths) == 3
    flipped = bytearray(before[0])
    flipped[-5] ^= 4
    paths[0].write_bytes(flipped)
    paths[1].write_bytes(before[1][:-10])
    paths[2].write_bytes(b"")
    train(load_config(config_file, [*SHORT, "train.max_steps=6"]))
    assert [path.read_bytes() for path in paths] == before
