"""Validation while training: it scores, keeps the best step, ends what no longer helps, and goes on exactly.

On the embedded base and its encoders: the very code that runs Stable Diffusion, DINO and CLIP.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from dreambooth.cli import main
from dreambooth.config import Config, load_config
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.generation.models.location import find_card, steps_of
from dreambooth.generation.request import read_recipe
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.run.folder import RunFolder
from dreambooth.step_models import model_at_step
from dreambooth.training.progress import TrainProgress

ROOT = Path(__file__).parent.parent
ENCODERS = ROOT / "checkpoints" / "toyworld-encoders"


def quick_demo(runs: Path, base: Path, *overrides: str) -> Config:
    """The demo without its prior, at a rate at which it learns the robot, and forgets all else, in some 20 steps."""
    return load_config(
        ROOT / "configs" / "toyworld.yaml",
        [
            f"run.dir={runs}",
            f"model.base={base}",
            f"subject.images={ROOT / 'data' / 'robot'}",
            f"validate.dino={ENCODERS / 'vit'}",
            f"validate.clip={ENCODERS / 'clip'}",
            "log.tensorboard=false",
            "prior.source=none",
            "method.start_word=null",
            "data.mask=null",
            "optim.identifier_lr=4e-3",
            "optim.lr=1e-3",
            "optim.schedule=constant",
            "train.batch_size=2",
            "train.max_steps=24",
            "validate.every_steps=6",
            "validate.num_images=2",
            "validate.num_inference_steps=2",
            'validate.prompts=["a photo of {subject} on the moon", "a photo of a {class}", "a photo of a fish"]',
            *overrides,
        ],
    )


def read_by(blip2: Path) -> list[str]:
    """Return the settings by which a BLIP-2 reads the images, too."""
    return [
        f"validate.matcher={blip2 / 'retrieval'}",
        f"validate.reader={blip2}",
        "validate.questions=['is it night?']",
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shipped_base: Path, tiny_blip2: Path) -> RunFolder:
    """A run of 24 steps with 5 validations, left in peace; no test changes it."""
    config = quick_demo(
        tmp_path_factory.mktemp("runs"),
        shipped_base,
        "run.name=whole",
        "train.keep_states=true",
        "validate.keep_weights=true",
        *read_by(tiny_blip2),
    )
    assert train(config) == 0
    return RunFolder(config)


def exported(run: RunFolder) -> dict[str, torch.Tensor]:
    return UNet2DConditionModel.from_pretrained(run.model, subfolder="unet").state_dict()


def card(run: RunFolder) -> dict[str, int]:
    return json.loads((run.model / "dreambooth.json").read_text())


def test_every_validation_has_one_number_a_picture_and_its_means_in_metrics_csv(finished: RunFolder) -> None:
    entries = ValidationLog(finished.scores).entries
    assert [entry.step for entry in entries] == [0, 6, 12, 18, 24]
    counts = {name: len(numbers) for name, numbers in entries[-1].scores.items()}
    of_encoders = ("dino", "clip_i", "clip_t", "pres", "div", "drift", "drift_other")
    assert counts == dict.fromkeys((*of_encoders, "match", "question_is_it_night"), 2)
    with open(finished.metrics) as file:
        lines = {int(line["step"]): line for line in csv.DictReader(file)}
    assert list(lines) == list(range(25))
    for entry in entries:
        for name, mean in entry.metrics().items():
            assert float(lines[entry.step][name]) == mean, (entry.step, name)
    assert lines[5]["eval/dino"] == lines[0]["train/loss"] == ""


def test_the_training_loss_per_timestep_decile_is_that_of_the_steps_since_the_last_validation(
    finished: RunFolder,
) -> None:
    with open(finished.metrics) as file:
        lines = list(csv.DictReader(file))
    losses = [float(lines[step]["train/loss"]) for step in range(7, 13)]
    deciles = [float(value) for i in range(10) if (value := lines[12][f"train/loss_t{i}"])]
    assert min(deciles) <= sum(losses) / len(losses) <= max(deciles)
    assert not any(lines[11][f"train/loss_t{i}"] for i in range(10))


def test_the_model_has_the_weights_of_the_best_step(finished: RunFolder) -> None:
    best = ValidationLog(finished.scores).best
    assert best is not None
    assert (card(finished)["step"], card(finished)["last_step"]) == (best.step, 24)
    kept = torch.load(finished.best, weights_only=True)
    assert kept["global_step"] == best.step
    for name, value in exported(finished).items():
        assert torch.equal(value, kept["state_dict"][f"denoiser.{name}"]), name


def test_the_model_has_the_last_weights_where_that_is_wished(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "whole"
    shutil.copytree(finished.path, copy)
    shutil.rmtree(copy / "model")
    config = load_config(copy / "config.yaml", [f"run.dir={tmp_path}", "validate.keep_best=false"])
    assert train(config) == 0
    run = RunFolder(config)
    last = torch.load(run.state, weights_only=True)["state_dict"]
    for name, value in exported(run).items():
        assert torch.equal(value, last[f"trained.denoiser.{name}"]), name
    assert card(run)["step"] == 24
    told = capsys.readouterr().out
    assert "kept: step" not in told
    assert f"verdict: {ValidationLog(run.scores).verdict_on(24)}\n" in told


def test_best_weights_that_are_gone_are_told_and_never_taken_for_others(
    finished: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "whole"
    shutil.copytree(finished.path, copy)
    shutil.rmtree(copy / "model")
    (copy / "state" / "best.ckpt").unlink()
    config = load_config(copy / "config.yaml", [f"run.dir={tmp_path}"])
    assert train(config) == 0
    assert card(RunFolder(config))["step"] == 24
    assert "best.ckpt does not hold the best step" in caplog.text


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_validated_comes_to_the_same_scores_and_best_step(
    finished: RunFolder, tmp_path: Path, shipped_base: Path, tiny_blip2: Path
) -> None:
    """As a kill leaves it: the state of step 12 saved, its grid drawn, nothing of it in the validation log yet."""
    own = ["run.name=whole", *read_by(tiny_blip2)]
    config = quick_demo(tmp_path, shipped_base, *own, "train.max_steps=12", "train.save_every_steps=6")
    assert train(config) == 0
    run = RunFolder(config)
    run.scores.write_text("".join(run.scores.read_text().splitlines(keepends=True)[:-1]))
    shutil.rmtree(run.model)
    assert train(quick_demo(tmp_path, shipped_base, *own)) == 0
    assert run.scores.read_text() == finished.scores.read_text()
    assert run.metrics.read_text() == finished.metrics.read_text()
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (run.model / weights).read_bytes() == (finished.model / weights).read_bytes()


@pytest.mark.slow
def test_a_run_that_no_longer_gets_better_ends_and_goes_on_only_with_more_patience(
    tmp_path: Path, shipped_base: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """At this rate the class is soon forgotten, so a best step is followed by worse ones."""
    config = quick_demo(tmp_path, shipped_base, "train.max_steps=400", "validate.patience=1")
    assert train(config) == 0
    run = RunFolder(config)
    last = ValidationLog(run.scores).entries[-1].step
    assert card(run)["step"] == last - 6
    assert card(run)["last_step"] == last < 400
    assert "no better for 1 validation" in caplog.text
    assert train(config) == 0
    assert f"finished at step {last}" in capsys.readouterr().out
    before = run.scores.read_text()  # and killed in the validation that ends it, the run ends at the very same step
    run.scores.write_text("".join(before.splitlines(keepends=True)[:-1]))
    shutil.rmtree(run.model)
    assert train(config) == 0
    assert run.scores.read_text() == before
    assert card(run)["last_step"] == last
    more = quick_demo(tmp_path, shipped_base, f"train.max_steps={last + 6}", "validate.patience=0")
    assert train(more) == 0
    assert card(run)["last_step"] == last + 6


def test_what_is_measured_may_not_change_within_a_run(finished: RunFolder) -> None:
    longer = ["train.max_steps=30", f"run.dir={finished.path.parent}"]
    with pytest.raises(UserError, match=r"validate\.num_images: 2 -> 3"):
        train(load_config(finished.config, [*longer, "validate.num_images=3"]))
    with pytest.raises(UserError, match=r"validate\.questions: .* -> "):
        train(load_config(finished.config, [*longer, "validate.questions=['is it day?']"]))


@pytest.mark.parametrize(("key", "folder"), [("dino", "nowhere"), ("clip", "vit")])
def test_an_encoder_that_is_not_one_is_told_before_anything_is_written(
    tmp_path: Path, shipped_base: Path, key: str, folder: str
) -> None:
    config = quick_demo(tmp_path, shipped_base, f"validate.{key}={ENCODERS / folder}")
    with pytest.raises(ModelError, match=folder):
        train(config)
    assert not RunFolder(config).path.exists()


def test_without_encoders_there_are_grids_and_losses_and_the_last_step_is_kept(config: Config) -> None:
    run = RunFolder(config)

    def ask(progress: TrainProgress) -> None:
        if progress.step in (2, 4):  # 4 is validated
            run.sample_now.touch()

    assert train(config, on_progress=ask) == 0
    grids = {path.stem: path for path in run.samples.glob("step-*.png")}
    assert sorted(grids) == [f"step-{step:06d}" for step in (0, 2, 4, 8)], "images are drawn when they are asked for"
    assert Image.open(grids["step-000002"]).size == Image.open(grids["step-000004"]).size
    assert not run.sample_now.exists()
    entries = ValidationLog(run.scores).entries
    assert [(entry.step, entry.scores) for entry in entries] == [(0, {}), (4, {}), (8, {})]
    assert card(RunFolder(config))["step"] == 8


def test_automatic_encoders_that_cannot_be_had_are_told_and_left_out(
    config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = ["train.max_steps=1", "optim.warmup_steps=0", "validate.dino=auto", "validate.clip=auto"]
    assert train(load_config(config_file, short)) == 0
    told = caplog.text
    assert "no scores by validate.dino: facebook/dino-vits16" in told
    assert "no scores by validate.clip: openai/clip-vit-base-patch32" in told


@pytest.mark.slow
def test_the_text_encoder_stops_at_the_first_validation_that_drifts_too_far(
    config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And after a resumption it is still stopped: the same weights as without one."""
    settings = (
        "optim.text_encoder_stop_drift=1e-6", "validate.num_images=1", "validate.every_steps=2",
        f"validate.dino={ENCODERS / 'vit'}", "prior.source=none", "optim.schedule=constant", "optim.warmup_steps=0",
    )  # fmt: skip

    def state_after(name: str, max_steps: int) -> dict[str, torch.Tensor]:
        config = load_config(config_file, [*settings, f"run.name={name}", f"train.max_steps={max_steps}"])
        assert train(config) == 0
        return torch.load(RunFolder(config).state, weights_only=True)["state_dict"]

    whole, short, resumed = state_after("whole", 4), state_after("resumed", 2), state_after("resumed", 4)
    assert "the text encoder stays as it is" in caplog.text
    for name, weight in short.items():
        if name != "decile_losses":
            assert torch.equal(whole[name], weight) == ("text_encoder" in name), name
        assert torch.equal(whole[name], resumed[name]), name


def test_a_stop_on_drift_needs_something_that_measures_it(config: Config) -> None:
    config.optim.text_encoder_stop_drift = 0.1
    with pytest.raises(UserError, match=r"optim\.text_encoder_stop_drift=0\.1: there is nothing to measure"):
        train(config)
    assert not RunFolder(config).path.exists()


def test_the_model_of_every_validation_can_be_made_of_the_weights_that_are_kept(finished: RunFolder) -> None:
    """And those of the step that was kept are the result, which nothing is made for."""
    card = find_card(str(finished.path))
    assert card is not None
    assert sorted(steps_of(finished.path)) == [6, 12, 18, 24]
    assert model_at_step(finished.path, card.step) == finished.path
    other = 6 if card.step != 6 else 12
    model = model_at_step(finished.path, other)
    assert model == finished.steps / f"{other:06d}"
    made = UNet2DConditionModel.from_pretrained(model, subfolder="unet").state_dict()
    kept = torch.load(finished.steps / f"{other:06d}.ckpt", weights_only=True)["state_dict"]
    name = next(name for name in made if name.endswith("to_q.weight"))
    assert any(torch.equal(made[name], weight.to(made[name].dtype)) for own, weight in kept.items() if name in own)
    assert not torch.equal(made[name], exported(finished)[name])
    again = find_card(str(model))
    assert again is not None
    assert (again.step, again.subjects) == (other, card.subjects)
    with pytest.raises(UserError, match=r"step 7: .*whole has no weights of this step; it has those of 6, 12, 18, 24"):
        model_at_step(finished.path, 7)


def test_a_grid_over_steps_shows_each_and_names_the_model_in_its_recipe(finished: RunFolder, tmp_path: Path) -> None:
    card = find_card(str(finished.path))
    assert card is not None
    other = 6 if card.step != 6 else 12
    grid = ["--steps", "1", "--grid", f"step={other},24", "--out", str(tmp_path)]
    assert main(["sample", str(finished.path), "a photo of {subject}", *grid]) == 0
    recipes = [read_recipe(path) for path in sorted(tmp_path.glob("0*.png"))]
    assert len({recipe["weights"] for recipe in recipes}) == 2
    assert any(str(recipe["model"]).endswith(f"steps/{other:06d}") for recipe in recipes)
