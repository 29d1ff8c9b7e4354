"""Plug-ins: the two of docs/extending.md work as shown, and one that fails is named and stops nothing else."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.errors import UserError
from dreambooth.plugins import active
from dreambooth.plugins.active import forget
from dreambooth.plugins.finding import PREFIX, VARIABLE

ROOT = Path(__file__).parent.parent
QUICK = ["--steps", "1", "--size", "64x64"]
SHIPPED = dict(
    re.findall(r"```python\n# plugins/(\w+)\.py\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
)
HEAD = "from dreambooth.plugins.hooks import hookimpl\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that is the one of plug-ins, as long as a test runs."""
    (tmp_path / "plugins").mkdir()
    monkeypatch.chdir(tmp_path)
    forget()
    yield tmp_path / "plugins"
    forget()
    for name in [each for each in sys.modules if each.startswith(PREFIX)]:
        del sys.modules[name]


def install(folder: Path, **sources: str) -> None:
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    forget()


def sample(base: Path, out: str, *options: str) -> Image.Image:
    assert main(["sample", str(base), "a dog", "--num-images", "1", *QUICK, "--out", out, *options]) == 0
    return Image.open(next(Path(out).glob("00000*.png")))


def test_the_two_of_the_page_are_there() -> None:
    assert sorted(SHIPPED) == ["watermark", "weather"]


def test_the_watermark_is_on_the_image_and_in_its_recipe(
    folder: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = sample(tiny_base, "plain")
    install(folder, watermark=SHIPPED["watermark"])
    marked = sample(tiny_base, "marked")
    is_other = np.any(np.asarray(plain) != np.asarray(marked), axis=2)
    assert is_other[-16:].any(), "no text"
    assert not is_other[:-20].any(), "more than the text differs"
    assert '"plugins": [{"name": "watermark", "version": "1.0"}]' in marked.info["dreambooth"]
    assert "plugins" not in plain.info["dreambooth"]
    (folder / "watermark.py").unlink()
    forget()
    assert main(["sample", "--from-image", marked.filename, "--out", "again"]) == 0
    assert "made with the plug-in watermark 1.0, which is not here" in capsys.readouterr().err


def test_the_axis_makes_a_grid(folder: Path, tiny_base: Path) -> None:
    install(folder, weather=SHIPPED["weather"])
    grid = ["--grid", "weather=none,rain", *QUICK, "--out", "out"]
    assert main(["sample", str(tiny_base), "a dog", *grid]) == 0
    recipes = [Image.open(path).info["dreambooth"] for path in sorted(Path("out").glob("0*.png"))]
    assert [re.search(r'"prompt": "([^"]*)"', each)[1] for each in recipes] == ["a dog", "a dog, in the rain"]


def test_help_names_each_with_its_version(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(folder, **SHIPPED)
    for arguments in (["--help"], ["sample", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "plug-ins: watermark 1.0 (plugins/watermark.py)" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setenv(VARIABLE, "")
    forget()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "plug-ins" not in capsys.readouterr().out


COMMAND = (
    HEAD
    + """
import sys

def add_arguments(parser):
    parser.add_argument("name")

def run(args):
    if args.name == "nobody":
        raise KeyError("nobody is there")
    print(f"hello {args.name}")
    return 0

@hookimpl
def add_rows(table):
    return {"hello": (sys.modules[__name__], "greet somebody"), "train": None} if table == "commands" else None
"""
)


def test_a_command_runs_and_its_failure_names_the_plug_in(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    install(folder, greeting=COMMAND)
    assert main(["hello", "world"]) == 0
    assert capsys.readouterr().out == "hello world\n"
    assert "plug-in greeting: commands: there is a train already" in caplog.text, "found before the output is arranged"
    with pytest.raises(KeyError) as caught:
        main(["hello", "nobody"])
    assert caught.value.__notes__ == [
        "raised in the plug-in greeting (plugins/greeting.py), which is no part of dreambooth"
    ]


FAILS = {
    "import": "import dreambooth.nowhere",
    "unknown hook": f"{HEAD}@hookimpl\ndef change_everything(image):\n    return image\n",
    "unknown argument": f"{HEAD}@hookimpl\ndef change_image(picture):\n    return picture\n",
    "no hook": "# of dreambooth\n",
    "too new": f"{HEAD}DREAMBOOTH_API = 99\n@hookimpl\ndef change_image(image):\n    return image\n",
    "raises": f"{HEAD}@hookimpl\ndef change_image(image):\n    raise ZeroDivisionError('none of it')\n",
    "returns something else": f"{HEAD}@hookimpl\ndef change_image(image):\n    return 3\n",
    "rows": f"{HEAD}@hookimpl\ndef add_rows(table):\n    return 3\n",
}


@pytest.mark.parametrize("what", FAILS)
def test_one_that_fails_is_named_and_the_others_go_on(
    what: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(folder, bad=FAILS[what], watermark=SHIPPED["watermark"])
    image = Image.new("RGB", (64, 64))
    changed = active().change("change_image", image=image, request=None)
    active().rows("axes")
    assert changed is not image, "the other one was stopped as well"
    assert "plug-in bad (plugins/bad.py)" in caplog.text
    assert [each.split()[0] for each in active().described] == ["watermark"]
    if what == "raises":
        assert "ZeroDivisionError: none of it (line 4)" in caplog.text


def test_an_axis_that_fails_is_an_error_in_one_line(
    folder: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axis = (
        "@hookimpl\ndef add_rows(table):\n    return {'hour': lambda cell, value: 1 / 0} if table == 'axes' else {}\n"
    )
    install(folder, clock=HEAD + axis)
    assert main(["sample", str(tiny_base), "a dog", "--grid", "hour=1,2"]) == 2
    error = capsys.readouterr().err
    assert "--grid hour=1: plug-in clock (plugins/clock.py): division by zero" in error


LOOKS_ON = (
    HEAD
    + """
from dreambooth.metrics.log_names import Metric, Score

SEEN = []

@hookimpl
def change_latents(latents_BCHW, step, num_steps):
    SEEN.append(("latents", step, num_steps))
    return latents_BCHW * 0.5

@hookimpl
def change_request(request):
    from dataclasses import replace
    return replace(request, seed=request.seed + 7)

@hookimpl
def change_model(model):
    SEEN.append(("model", model.name))

@hookimpl
def after_image(recipe):
    SEEN.append(("image", recipe["seed"]))

@hookimpl
def after_step(step, metrics):
    SEEN.append(("step", step, "train/loss" in metrics))

@hookimpl
def after_validation(step, metrics, grid, prompts):
    SEEN.append(("validation", step, metrics.get("eval/brightness"), len(prompts)))

@hookimpl
def after_training(step, model):
    SEEN.append(("training", model.name))

def brightness(images, prompt, photos):
    return [sum(image.convert("L").tobytes()) / (255 * image.width * image.height) for image in images]

@hookimpl
def add_rows(table):
    if table == "scores":
        return {"brightness": Score(Metric("Brightness", "subject prompts: mean of all pixels"), brightness)}
    if table == "losses":
        return {"half": lambda snr_B, gamma: snr_B / 2}
"""
)


TWO_SCORES = (
    LOOKS_ON.partition("@hookimpl")[0]
    + """
def failing(images, prompt, photos):
    raise RuntimeError("no such thing")

def fine(images, prompt, photos):
    SEEN.append("fine")
    return [0.0] * len(images)

@hookimpl
def add_rows(table):
    rows = {"a": failing, "b": fine} if table == "scores" else {}
    return {name: Score(Metric(name, "a test"), measure) for name, measure in rows.items()}
"""
)


def test_a_score_that_fails_takes_its_plugins_other_scores_along_and_nothing_else(
    folder: Path, config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from dreambooth.engine import train

    install(folder, looks=TWO_SCORES)
    quick = ["train.max_steps=1", "validate.every_steps=1", "prior.source=none", "optim.warmup_steps=0"]
    encoder = f"validate.clip={ROOT / 'checkpoints' / 'toyworld-encoders' / 'clip'}"
    assert train(load_config(config_file, [*quick, encoder])) == 0
    assert "scores: a: RuntimeError: no such thing" in caplog.text
    assert sys.modules[f"{PREFIX}looks"].SEEN == []


def test_the_hooks_of_sampling_are_called(folder: Path, tiny_base: Path) -> None:
    plain = sample(tiny_base, "plain")
    install(folder, looks=LOOKS_ON)
    changed = sample(tiny_base, "changed")
    seen = sys.modules[f"{PREFIX}looks"].SEEN
    assert seen == [("model", str(tiny_base)), ("latents", 1, 1), ("image", 7)]
    assert plain.tobytes() != changed.tobytes()
    assert main(["sample", "--from-image", changed.filename, "--out", "again"]) == 0
    assert seen[-1] == ("image", 7), "the recipe's request was changed once more"


def test_a_training_is_seen_scored_and_weighted(folder: Path, config_file: Path) -> None:
    from dreambooth.engine import train
    from dreambooth.metrics.log_names import describe
    from dreambooth.run.folder import RunFolder

    quick = ["train.max_steps=2", "validate.every_steps=2", "prior.source=none", "optim.warmup_steps=0"]
    encoder = f"validate.clip={ROOT / 'checkpoints' / 'toyworld-encoders' / 'clip'}"
    losses = {}
    for weighting in ("none", "half"):
        install(folder, looks=LOOKS_ON)
        own = [*quick, encoder, f"loss.weighting={weighting}", f"run.name={weighting}"]
        config = load_config(config_file, own)
        assert train(config) == 0
        losses[weighting] = (RunFolder(config).path / "logs" / "metrics.csv").read_text()
    seen = sys.modules[f"{PREFIX}looks"].SEEN
    kinds = [each[0] for each in seen]
    assert kinds == ["validation", "step", "step", "validation", "training"]
    assert all(0 < each[2] < 1 for each in seen if each[0] == "validation"), "the score is not in the validation"
    assert describe("eval/brightness") == "Brightness. Subject prompts: mean of all pixels."
    first = [float(text.splitlines()[2].split(",")[1]) for text in losses.values()]
    assert first[1] == pytest.approx(first[0] / 2), "the weighting of the plug-in is not taken"


ROWS = (
    HEAD
    + """
@hookimpl
def add_rows(table):
    if table == "families":
        from dreambooth.families import FamilyRow, sd
        return {"other": FamilyRow(("OtherPipeline",), sd.load, sd.load_single_file)}
    if table == "methods":
        from dreambooth.methods import Facts, full
        from dreambooth.methods.base import Method
        return {"copy": Method(Facts(1e-3, is_adapter=False), full.attach)}
    if table == "formats":
        from dreambooth.exporting.formats import Format
        return {"note": Format(write, any_family=True)}

def write(family, card, folder, name):
    (folder / "note.txt").write_text(f"{type(family).__name__} of {name}")
"""
)


def test_a_family_a_method_and_a_format_are_found_by_name(
    folder: Path, config_file: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dreambooth.engine import train

    install(folder, rows=ROWS)
    base = shutil.copytree(tiny_base, tmp_path / "other")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps({**index, "_class_name": "OtherPipeline"}))
    quick = ["train.max_steps=1", "validate.every_steps=0", "prior.source=none", "optim.warmup_steps=0"]
    assert train(load_config(config_file, [*quick, f"model.base={base}", "method.name=copy"])) == 0
    run = str(tmp_path / "runs" / "run")
    assert main(["export", run, "--format", "note"]) == 0
    written = tmp_path / "runs" / "run" / "exports" / "note"
    assert (written / "note.txt").read_text() == "StableDiffusion of run"
    assert "An export as note" in (written / "README.md").read_text()
    assert main(["export", run, "--format", "gguf"]) == 2
    assert "'gguf' is not known; one of diffusers" in (told := capsys.readouterr().err)
    assert "note" in told


def test_a_loss_that_is_nobodys_is_refused(folder: Path, config_file: Path) -> None:
    install(folder, looks=LOOKS_ON)
    with pytest.raises(UserError, match=r"loss.weighting: 'quarter' is not allowed; expected none | min_snr"):
        load_config(config_file, ["loss.weighting=quarter"])


def test_an_installed_package_needs_no_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = tmp_path / "site"
    (site / "marks-2.5.dist-info").mkdir(parents=True)
    (site / "marks-2.5.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: marks\nVersion: 2.5\n")
    (site / "marks-2.5.dist-info" / "entry_points.txt").write_text("[dreambooth]\nmarks = marks_of_dreambooth\n")
    (site / "marks_of_dreambooth.py").write_text(SHIPPED["watermark"])
    monkeypatch.syspath_prepend(str(site))
    forget()
    assert active().described == ["marks 2.5 (marks)"]
    assert active().changing == [{"name": "marks", "version": "2.5"}]


def test_files_of_other_programs_are_left_alone(folder: Path) -> None:
    install(folder, other="raise SystemExit('this was run')")
    assert not active()
