"""What the demo promises, by the renderer's truth. Slow: it trains the demo, with its prior and without."""

import shutil
from pathlib import Path

import pytest

from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.generation.models.loading import load_model
from dreambooth.run.folder import RunFolder
from toyworld import world
from toyworld.cli import DEMO_SEED
from toyworld.judge import Judge
from toyworld.outcome import Outcome, measure, table

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, shipped_base: Path) -> dict[str, Outcome]:
    """The demo as `make demo` runs it, and the same without a prior."""
    runs = tmp_path_factory.mktemp("demo")
    judge, spec = Judge.load(shipped_base / "judge"), world.subject("robot", DEMO_SEED)
    found = {}
    for name, override in (("with prior", "prior.source=teacher"), ("without prior", "prior.source=none")):
        paths = [f"model.base={shipped_base}", f"subject.images={ROOT / 'data' / 'robot'}", f"run.dir={runs}"]
        config = load_config(
            ROOT / "configs" / "toyworld.yaml",
            [*paths, override, f"run.name={name}", "validate.every_steps=0", "log.tensorboard=false"],
        )
        assert train(config) == 0
        found[name] = measure(load_model(str(RunFolder(config).path), "cpu"), spec, judge)
    print(f"\n{table(found)}")
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_that_was_trained_far_too_long_comes_out_with_an_earlier_step_that_is_truly_better(
    tmp_path: Path, shipped_base: Path
) -> None:
    """Four times the steps at an undiminished rate. Better by the renderer's truth: what the rule has never seen."""
    overrides = [
        f"model.base={shipped_base}",
        f"subject.images={ROOT / 'data' / 'robot'}",
        f"validate.dino={shipped_base.parent / 'toyworld-encoders' / 'vit'}",
        f"validate.clip={shipped_base.parent / 'toyworld-encoders' / 'clip'}",
        f"run.dir={tmp_path}",
        "train.max_steps=960",
        "optim.schedule=constant",
        "validate.patience=0",
        "log.tensorboard=false",
    ]
    best = load_config(ROOT / "configs" / "toyworld.yaml", overrides)
    assert train(best) == 0
    last = load_config(ROOT / "configs" / "toyworld.yaml", [*overrides, "run.name=last", "validate.keep_best=false"])
    shutil.copytree(RunFolder(best).path, RunFolder(last).path)
    shutil.rmtree(RunFolder(last).model)
    assert train(last) == 0
    judge, spec = Judge.load(shipped_base / "judge"), world.subject("robot", DEMO_SEED)
    models = {name: load_model(str(RunFolder(run).path), "cpu") for name, run in (("best", best), ("last", last))}
    steps = {name: model.card.step for name, model in models.items() if model.card is not None}
    found = {f"{name}, step {steps[name]}": measure(model, spec, judge) for name, model in models.items()}
    print(f"\n{table(found)}")
    assert steps["best"] < steps["last"] == 960
    better, worse = found.values()
    assert truth(better) > truth(worse)


def truth(outcome: Outcome) -> float:
    """The subject in the right place, and the class as diverse and as unlike the subject as it was: one number."""
    return outcome.nearer_to_subject * outcome.place_right * outcome.class_prompt_diversity - max(
        0.0, outcome.class_prompt_similarity
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_subject_comes_where_the_prompt_puts_it_and_the_class_stays_diverse_with_the_prior_only(
    outcomes: dict[str, Outcome],
) -> None:
    """One test, as both trainings are for all of it: tests in a group are divided among processes all the same."""
    kept, lost = outcomes["with prior"], outcomes["without prior"]
    assert kept.subject_similarity > kept.other_similarity + 0.2
    assert kept.nearer_to_subject >= 0.6
    assert kept.class_right >= 0.9
    assert kept.place_right >= 0.9
    assert kept.class_prompt_diversity > lost.class_prompt_diversity + 0.2
    assert kept.class_prompt_similarity < lost.class_prompt_similarity - 0.2
