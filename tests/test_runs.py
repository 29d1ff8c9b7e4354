"""The run folder: what is in it, how a run goes on, and what is refused."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CONFIG
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams

from dreambooth.checkpointing import find_state
from dreambooth.config import Config, load_config
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.families import load_family
from dreambooth.generation.grids.grid import cut
from dreambooth.run.folder import RunFolder
from dreambooth.training.callbacks import MetricsFile


def test_a_run_leaves_everything_that_was_promised(config: Config) -> None:
    assert train(config) == 0
    run = RunFolder(config)
    saved = yaml.safe_load(run.config.read_text())
    assert saved["train"]["max_steps"] == 8
    assert saved["provenance"]["torch"] == torch.__version__
    assert saved["provenance"]["git_commit"]
    assert find_state(run.state).step == 8
    assert sorted(path.name for path in run.samples.iterdir()) == [f"step-{n:06d}.png" for n in (0, 4, 8)]
    with Image.open(run.samples / "step-000004.png") as sheet:
        assert len(cut(sheet, side=64)) == 4
        assert sheet.height > 2 * 64 + 3 * 2, "the step and the prompts are written on it"
    assert len((run.logs / "metrics.csv").read_text().splitlines()) == 1 + 9  # the header, and step 0 for its loss
    assert json.loads((run.model / "dreambooth.json").read_text())["subjects"][0]["identifier"] == "sks"
    hidden = [path for path in run.path.rglob(".*") if path.is_file()]
    assert not hidden, f"temporary files were left: {hidden}"


def test_plain_diffusers_loads_the_result_and_gives_the_very_weights(config: Config) -> None:
    train(config)
    run = RunFolder(config)
    pipeline = DiffusionPipeline.from_pretrained(run.model)
    state = torch.load(run.state, weights_only=True)["state_dict"]
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, state[f"trained.denoiser.{name}"]), name
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a photo of a sks dog", num_inference_steps=2, height=64, width=64).images[0].size == (64, 64)


def test_the_model_takes_the_number_format_that_is_asked_for(config_file: Path) -> None:
    config = load_config(config_file, ["model.export_dtype=float16", "train.max_steps=3"])
    train(config)
    assert DiffusionPipeline.from_pretrained(RunFolder(config).model, dtype=torch.float32).unet.dtype == torch.float32
    weights = load_file(RunFolder(config).model / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}


def test_a_finished_run_says_so_and_does_nothing(
    config: Config, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    train(config)
    before = {path: path.stat().st_mtime_ns for path in RunFolder(config).path.rglob("*")}
    capsys.readouterr()
    assert train(config) == 0
    assert "finished at step 8" in capsys.readouterr().out
    assert "export_dtype" not in caplog.text
    config.model.export_dtype = "bfloat16"
    assert train(config) == 0
    assert "model.export_dtype=bfloat16: has no effect, the model of this run is written in float" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in RunFolder(config).path.rglob("*")} == before


def test_a_finished_run_can_be_made_longer_and_equals_one_that_was_long_from_the_start(config_file: Path) -> None:
    def run(name: str, steps: int) -> tuple[dict[str, torch.Tensor], str]:
        overrides = [f"run.name={name}", f"train.max_steps={steps}", "optim.schedule=constant", "optim.warmup_steps=1"]
        config = load_config(config_file, overrides)
        assert train(config) == 0
        folder = RunFolder(config)
        return torch.load(folder.state, weights_only=True)["state_dict"], (folder.logs / "metrics.csv").read_text()

    run("grown", 3)
    states = config_file.parent / "runs" / "grown" / "state"
    assert [path.name for path in states.glob("*.ckpt")] == ["last.ckpt"], "it needs no other to be made longer"
    grown, whole = run("grown", 7), run("whole", 7)
    assert grown[1] == whole[1]
    for name, value in whole[0].items():
        assert torch.equal(value, grown[0][name]), name


def test_a_run_killed_in_its_last_validation_does_it_again_and_exports_the_same_model(config: Config) -> None:
    train(config)
    run = RunFolder(config)
    weights, last_grid = run.model / "unet" / "diffusion_pytorch_model.safetensors", run.samples / "step-000008.png"
    files = (weights, last_grid, run.metrics, run.scores)
    before = [path.read_bytes() for path in files]
    shutil.rmtree(run.model)
    last_grid.unlink()
    run.scores.write_text("".join(run.scores.read_text().splitlines(keepends=True)[:-1]))
    assert train(config) == 0
    assert [path.read_bytes() for path in files] == before


def test_a_changed_setting_is_refused_with_a_diff_and_nothing_is_touched(config_file: Path) -> None:
    config = load_config(config_file, ["train.max_steps=2", "optim.warmup_steps=1"])
    train(config)
    before = {path: path.read_bytes() for path in RunFolder(config).path.rglob("*") if path.is_file()}
    changed = load_config(config_file, ["train.max_steps=4", "optim.lr=5e-4", "subject.class_noun=cat"])
    with pytest.raises(UserError) as caught:
        train(changed)
    for line in ("optim.lr: 0.001 -> 0.0005", "subject.class_noun: 'dog' -> 'cat'", "run.resume=never"):
        assert line in str(caught.value)
    assert "max_steps" not in str(caught.value)
    assert {path: path.read_bytes() for path in RunFolder(config).path.rglob("*") if path.is_file()} == before


def test_changed_pictures_are_refused(config_file: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "a.png")
    mine = [f"subject.images={tmp_path / 'mine'}", "optim.warmup_steps=1"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "mine" / "a.png")
    train(load_config(config_file, [*mine, "train.max_steps=2"]))
    Image.new("RGB", (64, 64), "navy").save(tmp_path / "mine" / "a.png")
    with pytest.raises(UserError, match=r"subject pictures: other content: a\.png \(since this run"):
        train(load_config(config_file, [*mine, "train.max_steps=4"]))


def test_never_resuming_sets_the_old_run_aside(config_file: Path) -> None:
    short = ["train.max_steps=2", "optim.warmup_steps=1", "validate.every_steps=0"]
    train(load_config(config_file, short))
    again = load_config(config_file, [*short, "run.resume=never", "optim.lr=1e-4"])
    assert train(again) == 0
    assert train(again) == 0
    folder = RunFolder(again).path
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run", "run.old-1", "run.old-2"]
    assert find_state(folder.with_name("run.old-1") / "state" / "last.ckpt").step == 2


@pytest.mark.parametrize(
    ("override", "error", "named"),
    [
        ("subject.images=nowhere", UserError, "nowhere"),
        ("model.base=./nowhere", ModelError, "nowhere"),
        ("subject.prompt=" + "very " * 40 + "{subject}", UserError, "the identifier 'sks' comes later"),
        ("validate.prompts=['" + "very " * 40 + "{subject}']", UserError, r"validate\.prompts .*'sks' comes later"),
        ("subject.identifier=Dog", UserError, "is the class noun itself"),
        ("validate.scheduler=dimm", UserError, "scheduler=dimm: unknown sampler; did you mean ddim"),
        ("prior.scheduler=dimm", UserError, "scheduler=dimm: unknown sampler; did you mean ddim"),
        ("method.name=lara", UserError, "method.name=lara: unknown method; one of full"),
        ("train.precision=16-mixed", UserError, "needs a GPU"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    config_file: Path, override: str, error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        train(load_config(config_file, ["train.device=cpu", override]))
    assert not RunFolder(load_config(config_file)).path.exists()


def test_an_identifier_that_the_tokenizer_splits_gets_a_clear_word(
    config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(load_config(config_file, ["subject.identifier=rumpelstilz", "train.max_steps=1", "optim.warmup_steps=0"]))
    told = caplog.text
    assert "subject.identifier 'rumpelstilz' is" in told
    said = re.search(
        r"is (\d+) tokens to this tokenizer \((.*)\), .* learned more cleanly: (\w+), (\w+), (\w+)\n", told
    )
    tokenizer = load_family(load_config(config_file).model.base).tokenizer
    ids = tokenizer("rumpelstilz", add_special_tokens=False).input_ids
    assert said is not None
    assert int(said[1]) == len(ids)
    assert [int(number) for number in re.findall(r"' (\d+)", said[2])] == ids
    assert all(len(tokenizer(said[n], add_special_tokens=False).input_ids) == 1 for n in (3, 4, 5))


@pytest.mark.parametrize(
    ("identifier", "expected"), [("<|endoftext|>", "is no word to this tokenizer"), ("", "must not be empty")]
)
def test_an_identifier_that_is_no_token_is_refused(config_file: Path, identifier: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        train(load_config(config_file, [f"subject.identifier={identifier}"]))


def test_the_end_of_a_prompt_that_the_model_does_not_read_is_told_and_the_run_goes_on(
    config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "validate.prompts=['a photo of {subject}" + " very" * 30 + " late']"
    assert train(load_config(config_file, ["train.max_steps=1", "optim.warmup_steps=0", long])) == 0
    told = caplog.text
    assert "tokens with start and end; this model reads 32 and drops: 'very" in told
    assert "late'" in told


def test_a_caption_that_a_shuffle_could_cut_the_identifier_off_is_refused(
    config_file: Path, pictures: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(pictures, tmp_path / "mine"))
    for path in mine.glob("*.png"):
        path.with_suffix(".txt").write_text("a photo, {subject}," + " very" * 25 + ", late")
    short = ["train.max_steps=1", "optim.warmup_steps=0", f"subject.images={mine}", "data.captions=true"]
    assert train(load_config(config_file, [*short, "validate.every_steps=0"])) == 0
    with pytest.raises(UserError, match=r"the caption 'a photo,.* and the identifier 'sks' comes later"):
        train(load_config(config_file, [*short, "data.shuffle_captions=true", "run.name=shuffled"]))


def test_pictures_that_must_be_enlarged_are_named(config_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = ["train.max_steps=1", "optim.warmup_steps=0", "validate.every_steps=0"]
    train(load_config(config_file, short))
    assert "enlarged" not in caplog.text
    train(load_config(config_file, [*short, "run.name=larger", "data.resolution=72"]))
    assert "smaller than data.resolution (72), so enlarged: 0.png, 1.png, 2.png" in caplog.text


def test_copies_and_moving_pictures_are_named(
    config_file: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Path(shutil.copytree(pictures, tmp_path / "mine"))
    shutil.copy(mine / "1.png", mine / "copy\n.png")
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("teal", "navy")]
    frames[0].save(mine / "moving.gif", save_all=True, append_images=frames[1:])
    short = ["train.max_steps=1", "optim.warmup_steps=0", "validate.every_steps=0"]
    assert train(load_config(config_file, [*short, f"subject.images={mine}"])) == 0
    told = caplog.text
    assert r"the same image twice, which then counts twice; leave one out: 1.png and copy\n.png" in told
    assert "moving.gif (1 of 2)" in told


def test_a_prior_of_another_prompt_is_never_reused(config_file: Path) -> None:
    short = ["train.max_steps=1", "optim.warmup_steps=0", "run.resume=never"]
    train(load_config(config_file, short))
    config = load_config(config_file, [*short, "subject.class_prompt=an image of a {class}"])
    old = RunFolder(config).prior
    (first,) = old.iterdir()
    config.run.resume = "auto"
    RunFolder(config).state.unlink()  # as if killed before the first save, then the prompt was changed
    train(config)
    assert len(list(old.iterdir())) == 2
    assert first.is_dir()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> EventAccumulator:
    """Return what TensorBoard has of the quick run."""
    folder = tmp_path_factory.mktemp("watched")
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(runs=folder, base=tiny_base, pictures=pictures))
    config = load_config(path, ["log.tensorboard=true"])
    train(config)
    events = EventAccumulator(str(RunFolder(config).logs))
    events.Reload()
    return events


def test_tensorboard_shows_the_same_tree_of_names_and_pictures(watched: EventAccumulator) -> None:
    names = {"train/loss", "train/loss_instance", "train/loss_prior", "optim/lr", "optim/grad_norm"}
    assert names <= set(watched.Tags()["scalars"])
    assert [event.step for event in watched.Scalars("train/loss")] == list(range(1, 9))
    assert [event.step for event in watched.Images("eval/samples")] == [0, 4, 8]


def test_tensorboard_explains_every_number_and_captions_the_images(watched: EventAccumulator) -> None:
    told = {name: watched.SummaryMetadata(name).summary_description for name in watched.Tags()["scalars"]}
    assert told["eval/loss"] == (
        "Loss. Of the subject, at noise and timesteps that are always the same. Less is better."
    )
    assert [name for name, text in told.items() if text.count(".") < 2] == [], "nothing is known of these"
    caption = watched.SummaryMetadata("eval/samples").summary_description
    assert caption.endswith("\n1. a photo of sks dog\n2. a photo of a dog")


def test_tensorboard_has_the_settings_as_text_and_in_the_table_of_hyperparameters(watched: EventAccumulator) -> None:
    """Look at the run itself: a second one in a folder below would show up beside it."""
    (text,) = watched.Tensors("config/text_summary")
    assert "    max_steps: 8" in text.tensor_proto.string_val[0].decode()
    start = hparams.parse_session_start_info_plugin_data(content_of(watched, hparams.SESSION_START_INFO_TAG))
    assert start.hparams["optim.lr"].number_value == 1e-3
    experiment = hparams.parse_experiment_plugin_data(content_of(watched, hparams.EXPERIMENT_TAG))
    results = {metric.name.tag for metric in experiment.metric_infos}
    assert results >= {"best/quality", "eval/loss", "train/loss"}
    assert watched.Scalars("best/step")[-1].value == 8
    end = hparams.parse_session_end_info_plugin_data(content_of(watched, hparams.SESSION_END_INFO_TAG))
    assert end.status == api_pb2.STATUS_SUCCESS
    assert [path.name for path in Path(watched.path).iterdir() if path.is_dir()] == []


def content_of(events: EventAccumulator, tag: str) -> bytes:
    return bytes(events.SummaryMetadata(tag).plugin_data.content)


def records_of(path: Path) -> bytes:
    """Return what a W&B file holds, its records joined: it cuts them at blocks of 32 KiB, as LevelDB's log does."""
    data, position, joined = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 2**15 - position % 2**15) < 7:
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        joined += data[position + 7 : position + 7 + length]
        position += 7 + length
    return joined


@pytest.mark.usefixtures("weights_and_biases")
@pytest.mark.slow
def test_weights_and_biases_logs_offline(config_file: Path) -> None:
    config = load_config(config_file, ["log.wandb=true", "log.wandb_model=true", "train.max_steps=4"])
    assert train(config) == 0
    files = list((RunFolder(config).logs / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1
    # Numbers, the scores of the kept step in the run's summary, and the artifact that was asked for.
    model, images = b"diffusion_pytorch_model.safetensors", b"samples/step-000004.png"
    expected = (b"train/loss_prior", b"best/loss", model, images)
    deadline = time.monotonic() + 60  # W&B's own process writes the file, and ends the run a moment before that
    while not all(each in records_of(files[0]) for each in expected):
        assert time.monotonic() < deadline, records_of(files[0])
        time.sleep(0.05)


def test_a_resumed_metrics_file_has_neither_gaps_nor_doubles_nor_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    for step in range(1, 6):
        metrics.write(step, {"train/loss": step / 4})
    path.write_text(path.read_text() + "6,0.12")
    MetricsFile(path).go_on_from(3)
    assert path.read_text().splitlines() == ["step,train/loss", "1,0.25", "2,0.5", "3,0.75"]
    MetricsFile(path).go_on_from(0)
    assert path.read_text() == ""


def test_a_validation_fills_in_the_line_of_its_step_and_columns_do_not_depend_on_when_they_came(tmp_path: Path) -> None:
    early, late = MetricsFile(tmp_path / "early.csv"), MetricsFile(tmp_path / "late.csv")
    for metrics, is_early in ((early, True), (late, False)):
        if is_early:
            metrics.write(0, {"eval/loss": 1.0})
        metrics.write(1, {"train/loss": 0.5, "optim/lr": 0.1})
        metrics.write(1, {"eval/loss": 0.25})
        metrics.write(2, {"train/loss": 0.75, "optim/lr": 0.1})
    lines = ["1,0.5,0.1,0.25", "2,0.75,0.1,"]
    assert (tmp_path / "late.csv").read_text().splitlines() == ["step,train/loss,optim/lr,eval/loss", *lines]
    assert (tmp_path / "early.csv").read_text().splitlines()[1:] == ["0,,,1.0", *lines]
