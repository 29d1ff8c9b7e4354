"""What the demo promises, by the renderer's truth. Slow: it trains the demo, with its prior and without."""

import shutil
from pathlib import Path

import pytest

from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.generation.models.loading import load_model
from dreambooth.run.folder import RunFolder
from toyworld import outcome
from toyworld.cli import DEMO_SEED
from toyworld.editions import SECOND
from toyworld.outcome import Outcome, draw, load_judge, measure, table

ROOT = Path(__file__).parents[2]
BASE = ROOT / "checkpoints" / "toyworld-second"
ENCODERS = ROOT / "checkpoints" / "toyworld-second-encoders"
PATHS = (
    f"model.base={BASE}",
    f"subject.images={ROOT / 'data' / 'second-robot'}",
    f"validate.dino={ENCODERS / 'vit'}",
    f"validate.clip={ENCODERS / 'clip'}",
    f"data.mask_model={ROOT / 'checkpoints' / 'toyworld-segmenter'}",
)


def judged(model: str) -> Outcome:
    spec = SECOND.subject("robot", DEMO_SEED)
    return measure(load_model(model, "cpu"), spec, load_judge(BASE / "judge"), SECOND)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The demo as `make demo` runs it, and the same without a prior."""
    runs = tmp_path_factory.mktemp("demo")
    found = {}
    for name, override in (("with prior", "prior.source=teacher"), ("without prior", "prior.source=none")):
        config = load_config(
            ROOT / "configs" / "toyworld.yaml",
            [
                *PATHS,
                f"run.dir={runs}",
                override,
                f"run.name={name}",
                "validate.every_steps=0",
                "log.tensorboard=false",
            ],
        )
        assert train(config) == 0
        found[name] = judged(str(RunFolder(config).path))
    print(f"\n{table(found)}\n{class_of_the_base()}")
    return found


def class_of_the_base() -> str:
    """Return a line: what the two rows of the class prompt say of the untouched base."""
    images = draw(load_model(str(BASE), "cpu"), "a photo of a robot", 24)
    spec = SECOND.subject("robot", DEMO_SEED)
    base = outcome.judged(images, images, spec, load_judge(BASE / "judge"), SECOND)
    similarity, diversity = base.class_prompt_similarity, base.class_prompt_diversity
    return f"the untouched base: class prompt: similarity to the subject {similarity:.2f}, diversity {diversity:.2f}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_that_was_trained_far_too_long_comes_out_with_an_earlier_step_that_is_truly_better(
    tmp_path: Path,
) -> None:
    """Four times the steps at an undiminished rate. Better by the renderer's truth: what the rule has never seen."""
    overrides = [
        *PATHS,
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
    folders = {"best": str(RunFolder(best).path), "last": str(RunFolder(last).path)}
    cards = {name: load_model(folder, "cpu").card for name, folder in folders.items()}
    steps = {name: card.step for name, card in cards.items() if card is not None}
    found = {name: judged(folder) for name, folder in folders.items()}
    print(f"\n{steps}\n{table(found)}")
    assert steps["best"] < steps["last"] == 960
    better, worse = found.values()
    assert truth(better) > truth(worse)


def truth(of: Outcome) -> float:
    """The subject in the right place, and the class as diverse and as unlike the subject as it was: one number."""
    return of.nearer_to_subject * of.place_right * of.class_prompt_diversity - max(0.0, of.class_prompt_similarity)


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
