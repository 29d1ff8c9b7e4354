"""`train.memory=auto`: the first set of savings that fits is applied and said; a run keeps the one it began with."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CONFIG

from dreambooth.config import Config, load_config
from dreambooth.disk import GIB
from dreambooth.errors import UserError
from dreambooth.preflight.check import check
from dreambooth.preflight.fitting import applied, fit_to_memory
from dreambooth.preflight.memory_plan import Planner, with_savings
from dreambooth.run.folder import RunFolder, write_config

Rows = list[tuple[Config, int]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_z_image_base: Path, pictures: Path) -> Config:
    folder = tmp_path_factory.mktemp("fitting")
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(runs=folder / "runs", base=tiny_z_image_base, pictures=pictures))
    return load_config(path, ["method.name=lora", "validate.every_steps=0", "train.memory=auto", "data.resolution=128"])


@pytest.fixture(scope="module")
def rows(config: Config) -> Rows:
    """Return what each set of savings takes, the configs as they are first."""
    return [(changed, need.total) for _, changed, need in with_savings(Planner(config), config)]


def memory_for(need: int) -> int:
    return int((need + GIB) / 0.9) + 10


@pytest.mark.slow
def test_the_first_set_of_savings_that_fits_is_applied_and_said(
    config: Config, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(rows) > 2
    run = RunFolder(config)
    assert fit_to_memory(config, memory_for(rows[0][1])) == config
    assert "nothing is changed" in caplog.text
    changed, needed = rows[1]
    assert fit_to_memory(config, memory_for(needed)) == changed
    assert f"with {' '.join(applied(config, changed))} {needed / GIB:.2f} GiB do" in caplog.text
    assert not run.path.exists()


@pytest.mark.slow
def test_savings_that_are_all_not_enough_are_told_before_anything_is_written(config: Config) -> None:
    with pytest.raises(UserError, match=r"train.memory=auto: .* are needed with all that saves memory \(train\."):
        fit_to_memory(config, GIB)


def test_a_run_goes_on_with_the_savings_that_it_began_with(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    run, begun = RunFolder(config), replace(config, train=replace(config.train, gradient_checkpointing=True))
    run.path.mkdir(parents=True)
    write_config(run, begun, [])
    assert fit_to_memory(config, GIB) == begun
    assert "the run goes on with train.gradient_checkpointing=true, as it began" in caplog.text
    assert "ok" in [finding.level for finding in check(config) if finding.about == "run folder"]


def test_a_run_that_goes_on_does_not_lose_other_settings_of_its_user(config: Config) -> None:
    run = RunFolder(config)
    run.path.mkdir(parents=True, exist_ok=True)
    write_config(run, config, [])
    changed = replace(config, optim=replace(config.optim, name="adafactor", max_grad_norm=0.25))
    assert fit_to_memory(changed, GIB) == changed


@pytest.mark.slow
def test_a_plan_without_weights_is_one_with_them(config: Config) -> None:
    assert Planner(config, has_weights=False).need(config) == Planner(config).need(config)
