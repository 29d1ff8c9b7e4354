"""The Python interface: train with progress and a stop, load, generate, evaluate, export; in any thread."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIG
from test_metrics_encoders import make_clip, make_vit

import dreambooth
from dreambooth.generation.request import read_recipe

QUIET = {"optim.warmup_steps": 0, "validate.every_steps": 0, "prior.source": "none", "train.max_steps": 4}


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> Path:
    folder = tmp_path_factory.mktemp("api")
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(runs=folder, base=tiny_base, pictures=pictures))
    return path


@pytest.fixture(scope="module")
def run(config_path: Path) -> dreambooth.Run:
    return dreambooth.train(config_path, QUIET)


@pytest.fixture(scope="module")
def model(run: dreambooth.Run) -> dreambooth.Model:
    return run.load("cpu")


def test_importing_the_package_is_quick_and_loads_no_library() -> None:
    code = "import time; t = time.process_time(); import dreambooth; print(time.process_time() - t)"
    code += "; import sys; print([name for name in ('torch', 'numpy', 'omegaconf', 'PIL') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.splitlines()
    assert float(seconds) < 0.3
    assert heavy == "[]"


def test_every_name_is_there_and_a_wrong_one_is_not() -> None:
    assert all(getattr(dreambooth, name) is not None for name in dreambooth.__all__)
    assert set(dreambooth.__all__) <= set(dir(dreambooth))
    assert callable(dreambooth.export), "no room has this name, or it would take the function's place once imported"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = dreambooth.trian


def test_progress_is_reported_after_each_step_and_a_finished_run_is_returned_at_once(config_path: Path) -> None:
    seen: list[dreambooth.TrainProgress] = []
    run = dreambooth.train(config_path, {**QUIET, "run.name": "progress"}, on_progress=seen.append)
    assert [each.step for each in seen] == [1, 2, 3, 4]
    assert all(np.isfinite(each.metrics["train/loss"]) for each in seen)
    assert str(seen[-1]).startswith("step 4/4, loss ")
    assert run == dreambooth.Run(config_path.parent / "progress", is_finished=True, step=4)
    again = dreambooth.train(config_path, {**QUIET, "run.name": "progress"}, on_progress=seen.append)
    assert (again, len(seen)) == (run, 4)


def test_stopped_from_another_thread_and_called_again_it_comes_to_the_same_weights(
    config_path: Path, run: dreambooth.Run
) -> None:
    found: list[dreambooth.Run] = []
    overrides, stop = {**QUIET, "run.name": "stopped"}, threading.Event()

    def stop_at_2(progress: dreambooth.TrainProgress) -> None:
        if progress.step == 2:
            stop.set()

    def work() -> None:
        found.append(dreambooth.train(config_path, overrides, on_progress=stop_at_2, stop=stop))
        found.append(dreambooth.train(config_path, overrides, on_progress=lambda progress: progress.step < 3))
        found.append(dreambooth.train(config_path, overrides))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [(each.is_finished, each.step) for each in found] == [(False, 2), (False, 3), (True, 4)]
    names = [path.relative_to(run.folder) for path in (run.folder / "model").rglob("*.safetensors")]
    assert names
    for name in names:
        assert (run.folder / name).read_bytes() == (found[-1].folder / name).read_bytes()


def test_images_carry_the_recipe_that_makes_them_again(model: dreambooth.Model, tmp_path: Path) -> None:
    seen: list[dreambooth.Progress] = []
    images = model.generate(
        ["a photo of {subject}", "a {class}"], num_images=2, seed=5, steps=2, size=(64, 48), on_progress=seen.append
    )
    assert [(image.recipe["prompt"], image.recipe["seed"], image.size) for image in images] == [
        ("a photo of sks dog", 5, (64, 48)),
        ("a photo of sks dog", 6, (64, 48)),
        ("a dog", 5, (64, 48)),
        ("a dog", 6, (64, 48)),
    ]
    assert [each.fraction for each in seen] == [0.5, 1.0]
    (tmp_path / "prompts.txt").write_text("a __colours__ {class}\n")
    (tmp_path / "colours.txt").write_text("red\n")
    (of_file,) = model.generate(tmp_path / "prompts.txt", num_images=1, steps=2, size=(64, 48))
    assert of_file.recipe["prompt"] == "a red dog"
    images[1].save(tmp_path / "one.png")
    assert read_recipe(tmp_path / "one.png") == images[1].recipe
    for again in (model.reproduce(images[1]), model.reproduce(tmp_path / "one.png")):
        assert again.recipe == images[1].recipe
        assert np.abs(np.asarray(again, int) - np.asarray(images[1], int)).max() <= 1


def test_a_model_says_what_it_has_learned(model: dreambooth.Model, run: dreambooth.Run, tiny_base: Path) -> None:
    assert repr(model) == f"<dreambooth.Model {run.folder}: sks dog>"
    assert model.subjects[0].class_noun == "dog"
    base = dreambooth.load(tiny_base, "cpu")
    assert repr(base) == f"<dreambooth.Model {tiny_base}: no subject>"


def test_it_is_evaluated_and_exported_without_being_loaded_again(
    model: dreambooth.Model, run: dreambooth.Run, pictures: Path, tmp_path: Path
) -> None:
    make_vit(tmp_path / "vit")
    make_clip(tmp_path / "clip")
    (tmp_path / "prompts.txt").write_text("a {subject} on the beach\n")
    scores = model.evaluate(
        pictures,
        tmp_path / "out",
        prompts=str(tmp_path / "prompts.txt"),
        num_images=1,
        num_class_images=0,
        dino=str(tmp_path / "vit"),
        clip=str(tmp_path / "clip"),
    )
    assert set(scores.means[model.name]) == {"dino", "clip_i", "clip_t"}
    assert "| model |" in str(scores)
    folder = model.export("diffusers", tmp_path / "exported")
    assert dreambooth.load(folder, "cpu").subjects == model.subjects


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda model: dreambooth.load("./nowhere"), dreambooth.ModelError, "no such folder"),
        (lambda model: dreambooth.train("no.yaml"), dreambooth.UserError, "no such config"),
        (lambda model: model.generate("a {subject_2}"), dreambooth.UserError, "no {subject_2}"),
        (lambda model: model.generate("a dog", size=(60, 64)), dreambooth.UserError, "use 56x64 or 64x64"),
        (lambda model: model.generate("a dog", num_images=0), dreambooth.UserError, "at least 1"),
        (lambda model: model.generate("a dog", scheduler="dimm"), dreambooth.UserError, "did you mean ddim"),
        (lambda model: model.export("kohia"), dreambooth.UserError, "kohya"),
    ],
)
def test_mistakes_are_exceptions_that_name_them(call, error, named, model: dreambooth.Model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=named.replace("{", r"\{")):
        call(model)


def test_overrides_are_values_as_python_has_them(config_path: Path) -> None:
    overrides = {**QUIET, "run.name": "007", "method.targets": ["attention"], "validate.dino": None, "data.flip": True}
    run = dreambooth.train(config_path, {**overrides, "train.max_steps": 1})
    config = (run.folder / "config.yaml").read_text()
    assert run.folder.name == "007"
    assert "flip: true" in config


def test_signals_are_left_alone_outside_the_main_thread(config_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []
    overrides = {**QUIET, "run.name": "thread", "train.max_steps": 1}
    thread = threading.Thread(
        target=lambda: dreambooth.train(config_path, overrides, lambda progress: seen.append(signal.getsignal(2)))
    )
    thread.start()
    thread.join()
    assert seen == [before]
