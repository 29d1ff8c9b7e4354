"""What the demo promises, by the renderer's truth. Slow: it trains the demo, with its prior and without."""

from pathlib import Path

import pytest

from dreambooth.config import load_config
from dreambooth.engine import RunFolder, train
from dreambooth.pictures import load_model
from dreambooth.toyworld import world
from dreambooth.toyworld.cli import DEMO_SEED
from dreambooth.toyworld.judge import Judge
from dreambooth.toyworld.outcome import Outcome, measure, table

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, shipped_base: Path) -> dict[str, Outcome]:
    """The demo as `make demo` runs it, and the same without a prior."""
    runs = tmp_path_factory.mktemp("demo")
    judge, spec = Judge.load(shipped_base / "judge"), world.subject("robot", DEMO_SEED)
    found = {}
    for name, override in (("with prior", "prior.source=stream"), ("without prior", "prior.source=none")):
        paths = [f"model.base={shipped_base}", f"subject.images={ROOT / 'data' / 'robot'}", f"run.dir={runs}"]
        config = load_config(
            ROOT / "configs" / "toyworld.yaml",
            [*paths, override, f"run.name={name}", "validate.every_steps=0", "log.tensorboard=false"],
        )
        assert train(config) == 0
        found[name] = measure(load_model(str(RunFolder(config).path), None, "cpu", None), spec, judge)
    print(f"\n{table(found)}")
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_subject_is_that_very_subject(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["with prior"]
    assert outcome.subject_similarity > outcome.other_similarity + 0.2
    assert outcome.nearer_to_subject >= 0.6
    assert outcome.class_right >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_subject_is_in_the_place_that_the_prompt_names(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["with prior"].place_right >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_class_stays_diverse_with_the_prior_and_does_not_without(outcomes: dict[str, Outcome]) -> None:
    kept, lost = outcomes["with prior"], outcomes["without prior"]
    assert kept.class_prompt_diversity > lost.class_prompt_diversity + 0.2
    assert kept.class_prompt_similarity < lost.class_prompt_similarity - 0.2
